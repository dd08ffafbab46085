"""mpisign under PyTorch Lightning: started by tests/test_frameworks.py."""

from __future__ import annotations

import os
import runpy
import tempfile
import warnings
from pathlib import Path

import frameworks
import lightning.pytorch as pl
import torch
import torch.distributed as dist
from frameworks_data import BATCH, LR, SHARED, STEPS, dataset, differ, net, plain, world
from job import digest, same_error
from launchers import ROOT
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import mpisign
from mpisign.lightning import MajorityVoteStrategy

EXAMPLE = runpy.run_path(str(ROOT / "docs/examples/lightning_ddp.py"))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


class Clipping(Module):
    def configure_gradient_clipping(self, optimizer, *_, **__):
        self.clip_gradients(optimizer, 0.5, "value")


class Adversaries(Module):
    """Two optimizers, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch, _):
        for i, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward((-1) ** i * super().training_step(batch, _))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=LR) for i in (0, 2)]


def fit(size, module=None, ckpt_path=None, strategy=None, **options):
    options = {"max_epochs": 1, "enable_checkpointing": "callbacks" in options} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=size,
        strategy=strategy or MajorityVoteStrategy("ef_sign"),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    module = module or Module()
    data = dataset(size)
    # Lightning's own sampler shuffles, whatever the loader's does.
    sampler = DistributedSampler(data, size, int(os.environ["RANK"]), shuffle=False)
    loader = DataLoader(data, BATCH, sampler=sampler)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer, module


def check():
    fit(2, max_steps=1)  # makes the process group
    w = world()
    votes_are_those_of_ddp(w)
    slurm_requeues(w)
    mistakes(w)
    overflow(w)
    two_optimizers(w)
    EXAMPLE["main"]()


def votes_are_those_of_ddp(w):
    """With accumulation; checkpoints of every epoch, of which the last is kept and resumed."""
    (folder, _) = w.gather(tempfile.mkdtemp(dir=SHARED))
    keep = ModelCheckpoint(folder, filename="{epoch}", save_last="link", save_top_k=1)
    before = mpisign.stats().stages["exchange"].sent
    accumulate = {"accumulate_grad_batches": 2}
    trainer, _ = fit(2, max_epochs=2, callbacks=[keep], **accumulate)
    assert mpisign.stats().stages["exchange"].sent > before
    assert trainer.strategy.state.steps == STEPS
    files = sorted(p.name for p in Path(folder).iterdir())
    assert files == ["epoch=1.ckpt", "epoch=1.ckpt.votes", "last.ckpt"], files
    ranks = sorted(Path(folder, "epoch=1.ckpt.votes").iterdir())
    assert [p.name for p in ranks] == [f"rank{r}.pt" for r in range(w.size)]
    assert differ(ranks, "net.0.weight", "residual")

    want = plain("ef_sign", accumulate=2, epochs=3)
    _, module = fit(2, max_epochs=3, ckpt_path=f"{folder}/last.ckpt", **accumulate)
    assert set(w.gather(digest(module.net.parameters()))) == {want}

    if w.rank == 0:
        (SHARED / "lightning").write_text(f"{folder}/last.ckpt")
    dist.barrier()


def slurm_requeues(w):
    """Slurm's signal saves under a number of its own; ranks that list the folder late agree."""
    (folder, _) = w.gather(tempfile.mkdtemp(dir=SHARED))
    trainer, _ = fit(2, max_epochs=1, default_root_dir=folder)
    connector = trainer._checkpoint_connector
    path = f"{folder}/hpc_ckpt_{1 + w.rank}.ckpt"  # as if rank 0 had saved when rank 1 looks
    assert w.rank or path == connector.hpc_save_path(folder)
    dist.barrier()
    trainer.save_checkpoint(path)
    assert connector._hpc_resume_path == f"{folder}/hpc_ckpt_1.ckpt", connector._hpc_resume_path
    fit(2, max_epochs=2, ckpt_path=connector._hpc_resume_path)
    if w.rank == 1:
        Path(f"{folder}/hpc_ckpt_1.ckpt.votes/rank1.pt").unlink()
    dist.barrier()
    try:
        fit(2, max_epochs=2, ckpt_path=connector._hpc_resume_path)
    except (FileNotFoundError, RuntimeError) as error:
        assert ("another rank", "votes' state of rank 1")[w.rank] in str(error), error
    else:
        raise AssertionError("no error")


def mistakes(w):
    same_error(w, lambda: fit(2, gradient_clip_val=1.0), "gradient_clip_val=None")
    module = Clipping()
    before = digest(module.parameters())
    strategy = MajorityVoteStrategy("signum")
    same_error(w, lambda: fit(2, module, strategy=strategy), "changed after it was voted on")
    assert digest(module.parameters()) == before, "the first step moved parameters"
    hook = {"ddp_comm_hook": lambda: None}
    same_error(w, lambda: MajorityVoteStrategy(**hook), "ddp_comm_hook must be left out")
    same_error(w, lambda: MajorityVoteStrategy("sgin"), "compression must be")


class Overflowing(Module):
    """The loss of the last rank is inf once."""

    def training_step(self, batch, i):
        loss = super().training_step(batch, i)
        return loss * (float("inf") if i == 2 and dist.get_rank() == 1 else 1.0)


def overflow(w):
    """precision="16-mixed", whose scaler the hook is given: the step is skipped on all ranks."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = [MixedPrecision("16-mixed", "cpu", scaler)]
    trainer, module = fit(2, Overflowing(), plugins=scaled)
    assert trainer.strategy.state.steps == STEPS - 1, trainer.strategy.state.steps
    assert w.gather(scaler.get_scale()) == [512.0] * w.size
    assert len(set(w.gather(digest(module.parameters())))) == 1


def two_optimizers(w):
    strategy = MajorityVoteStrategy("signum", find_unused_parameters=True)
    _, module = fit(2, Adversaries(), strategy=strategy)
    assert strategy.state.steps == 2 * STEPS
    assert len(set(w.gather(digest(module.parameters())))) == 1


def three_ranks_continue():
    """With a checkpoint of two: the third has no residual, is told, and replicas stay equal."""
    path = (SHARED / "lightning").read_text()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, module = fit(3, ckpt_path=path, max_epochs=3)
    texts = [str(x.message) for x in caught]
    want = "begins with no momentum" if dist.get_rank() == 2 else "of size 2, not of size 3"
    assert any(want in t for t in texts), texts
    assert trainer.strategy.state.steps == 2 * STEPS, trainer.strategy.state.steps
    assert len(set(world().gather(digest(module.parameters())))) == 1


def main():
    frameworks.documentation("mpisign.lightning")
    frameworks.on_ranks(check, 2)
    frameworks.on_ranks(three_ranks_continue, 3)
