"""mpisign under Hugging Face's Trainer: started by tests/test_frameworks.py."""

from __future__ import annotations

import runpy
import shutil
import tempfile
import warnings
from pathlib import Path

import frameworks
import torch
import torch.distributed as dist
from frameworks_data import BATCH, LR, SHARED, STEPS, dataset, differ, net, plain, world
from job import digest, same_error
from launchers import ROOT
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from transformers import Trainer, TrainingArguments

import mpisign
from mpisign.transformers import MajorityVoteCallback

EXAMPLE = runpy.run_path(str(ROOT / "docs/examples/trainer_ddp.py"))


class Model(torch.nn.Module):
    """What a Trainer takes: it returns its loss."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.cross_entropy(self.net(x), labels)}


class OwnBatches(Trainer):
    """With the batches that ``frameworks_data.batch`` knows."""

    def get_train_dataloader(self):
        data = dataset(dist.get_world_size())
        sampler = DistributedSampler(data, shuffle=False)
        return DataLoader(data, BATCH, sampler=sampler, collate_fn=named)


def named(samples):
    xs, ys = zip(*samples, strict=True)
    return {"x": torch.stack(xs), "labels": torch.stack(ys)}


def train(folder, resume=None, compression="ef_sign", votes=None, **options):
    torch.manual_seed(0)
    options = {"max_steps": STEPS // 2, "max_grad_norm": 0, "save_steps": 2} | options
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="sgd",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = OwnBatches(Model(), arguments, train_dataset=dataset(dist.get_world_size()))
    callback = MajorityVoteCallback(trainer, compression, **(votes or {}))
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer, callback


def check():
    dist.init_process_group("gloo")
    w = world()
    (folder, _) = w.gather(tempfile.mkdtemp(dir=SHARED))
    votes_are_those_of_ddp(w, Path(folder))
    mistakes(w, Path(folder))
    dist.init_process_group = lambda *_: None  # a second one may find what is left of the first
    EXAMPLE["main"]()


def votes_are_those_of_ddp(w, folder):
    """With accumulation; saved half way and resumed, from its own folder and from another."""
    before = mpisign.stats().stages["exchange"].sent
    trainer, callback = train(folder)
    assert mpisign.stats().stages["exchange"].sent > before
    assert callback.state.steps == STEPS // 2
    want = plain("ef_sign", accumulate=2)
    assert set(w.gather(digest(trainer.model.parameters()))) == {want}
    half = folder / "checkpoint-2"
    assert differ([half / f"votes-rank{r}.pt" for r in range(w.size)], "net.0.weight", "residual")

    trainer, _ = train(folder, resume=half)
    assert set(w.gather(digest(trainer.model.parameters()))) == {want}
    dist.barrier()
    if w.rank == 0:
        shutil.copytree(half, folder / "elsewhere" / "half")
        (SHARED / "trainer").write_text(str(folder / "elsewhere" / "half"))
    dist.barrier()
    moved = folder / "elsewhere" / "half"
    other = folder / "other"
    same_error(w, lambda: train(other, resume=moved), "MajorityVoteCallback(resume_from_checkpoint")
    trainer, _ = train(other, resume=moved, votes={"resume_from_checkpoint": str(moved)})
    assert set(w.gather(digest(trainer.model.parameters()))) == {want}
    # Of another training, under the same name.
    train(folder / "third", compression="signum", max_steps=2)
    dist.barrier()
    wrong = lambda: train(folder / "third", resume=moved)  # noqa: E731
    same_error(w, wrong, "was saved with other parameters")


def mistakes(w, folder):
    same_error(w, lambda: train(folder / "clip", max_grad_norm=1.0), "Take max_grad_norm=0")
    trainer = OwnBatches(Model(), TrainingArguments(str(folder / "fp16"), use_cpu=True))
    # fp16=True, which needs a GPU: its scaler is given to the hook.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    trainer.args.max_grad_norm = 0.0
    trainer.add_callback(MajorityVoteCallback(trainer))
    same_error(w, trainer.train, "powers of two")
    same_error(w, lambda: MajorityVoteCallback(trainer, "sgin"), "compression must be")


def three_ranks_continue():
    """With a checkpoint of two: the third has no residual, is told, and replicas stay equal."""
    dist.init_process_group("gloo")
    saved = (SHARED / "trainer").read_text()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        votes = {"resume_from_checkpoint": saved}
        trainer, callback = train(SHARED / "three", resume=saved, votes=votes)
    texts = [str(x.message) for x in caught]
    want = "begins with no momentum" if dist.get_rank() == 2 else "of size 2, not of size 3"
    assert any(want in t for t in texts), texts
    assert callback.state.steps == STEPS // 2
    assert len(set(world().gather(digest(trainer.model.parameters())))) == 1


def main():
    frameworks.documentation("mpisign.transformers")
    frameworks.on_ranks(check, 2)
    frameworks.on_ranks(three_ranks_continue, 3)
