"""Signum under PyTorch Lightning: a strategy in the place of "ddp"; stopped half way and resumed.

torchrun --nproc-per-node 2 docs/examples/lightning_ddp.py
"""

import hashlib
import os
import tempfile

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from mpisign.lightning import MajorityVoteStrategy

EPOCHS, BATCH, LR = 6, 32, 2e-3
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        self.net = torch.nn.Sequential(*layers)

    def training_step(self, batch, _):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)  # no momentum: signum has its own


def fit(dataset, epochs, ckpt_path=None, **options):
    """A new model and trainer, as in a new process."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        strategy=MajorityVoteStrategy("signum"),  # where "ddp" was
        max_epochs=epochs,
        **QUIET,
        **options,
    )
    model = Digits()
    trainer.fit(model, DataLoader(dataset, BATCH, shuffle=True), ckpt_path=ckpt_path)
    return trainer, model


def digest(model) -> str:
    parameters = [p.detach().numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(parameters)).hexdigest()


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    dataset = TensorDataset(x[:1500], y[:1500])

    trainer, whole = fit(dataset, EPOCHS, enable_checkpointing=False)
    folder = trainer.strategy.broadcast(tempfile.mkdtemp())
    fit(dataset, EPOCHS // 2, callbacks=[ModelCheckpoint(folder, filename="half")])
    _, model = fit(dataset, EPOCHS, f"{folder}/half.ckpt", enable_checkpointing=False)

    digests = [None] * dist.get_world_size()
    dist.all_gather_object(digests, (digest(model), digest(whole)))
    assert len({d for pair in digests for d in pair}) == 1, "replicas differ, or the resumed run"
    if dist.get_rank() == 0:
        accuracy = (model.net(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
        print(f"accuracy {accuracy:.1%}; {len(digests)} replicas are bit-identical, resumed too")


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
