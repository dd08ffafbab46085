"""mpisign under Hugging Face Accelerate: started by tests/test_frameworks.py."""

from __future__ import annotations

import runpy
import tempfile
import warnings
from pathlib import Path

import frameworks
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from frameworks_data import LR, SHARED, STEPS, differ, loss_of, net, plain, world
from job import digest, same_error
from launchers import ROOT

import mpisign
import mpisign.accelerate
import mpisign.ddp

EXAMPLE = runpy.run_path(str(ROOT / "docs/examples/accelerate_ddp.py"))


def prepared(accelerator, compression="signum", **settings):
    own = net()
    optimizer = torch.optim.SGD(own.parameters(), lr=LR)
    model, optimizer = accelerator.prepare(own, optimizer)
    state = mpisign.accelerate.register_comm_hook(
        accelerator, model, optimizer, compression, **settings
    )
    return model, optimizer, state


def step_of(accelerator, model, optimizer, step, clip=False):
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model, step))
        if clip and accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def check():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    votes_are_those_of_ddp(world(), accelerator)
    mistakes(world(), accelerator)
    overflow(world())
    EXAMPLE["main"]()


def votes_are_those_of_ddp(w, accelerator):
    """Bit for bit, with accumulation, saved half way and resumed."""
    (folder,) = broadcast_object_list([tempfile.mkdtemp(dir=SHARED)])
    model, optimizer, state = prepared(accelerator, "ef_sign")
    before = mpisign.stats().stages["exchange"].sent
    for step in range(4):
        step_of(accelerator, model, optimizer, step)
    assert mpisign.stats().stages["exchange"].sent > before and state.steps == 2
    accelerator.save_state(folder)
    for step in range(4, STEPS):
        step_of(accelerator, model, optimizer, step)
    every = set(w.gather(digest(model.parameters())))
    assert every == {plain("ef_sign", accumulate=2)}, every

    files = sorted(p.name for p in Path(folder).glob("votes-*"))
    assert files == [f"votes-rank{r}.pt" for r in range(w.size)], files
    assert differ([Path(folder, f) for f in files], "0.weight", "residual")

    accelerator.free_memory()
    again = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, state = prepared(again, "ef_sign")
    again.load_state(folder)
    for step in range(4, STEPS):
        step_of(again, model, optimizer, step)
    assert set(w.gather(digest(model.parameters()))) == every, "resumed"
    if w.rank == 0:
        (SHARED / "accelerate").write_text(folder)


def mistakes(w, accelerator):
    accelerator.free_memory()
    accelerator = Accelerator(cpu=True)
    model, optimizer, _ = prepared(accelerator)
    before = digest(model.parameters())
    clip = lambda: step_of(accelerator, model, optimizer, 0, clip=True)  # noqa: E731
    same_error(w, clip, "changed after it was voted on", "clip_grad_norm_")
    assert digest(model.parameters()) == before
    bare = accelerator.prepare(net()).module
    same_error(w, lambda: mpisign.accelerate.register_comm_hook(accelerator, bare), "prepare()")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    same_error(w, lambda: prepared(accelerator), "powers of two")


def overflow(w):
    """mixed_precision="fp16", which needs a GPU: its scaler is given to the hook."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model, optimizer, state = prepared(accelerator, "ef_sign")
    for step in range(4):
        spoils = step == 2 and w.rank == 1
        accelerator.backward(loss_of(model, step) * (float("inf") if spoils else 1.0))
        optimizer.step()
        assert optimizer.step_was_skipped == (step == 2), step
        optimizer.zero_grad()
    assert state.steps == 3, state.steps
    assert w.gather(accelerator.scaler.get_scale()) == [512.0] * w.size
    assert len(set(w.gather(digest(model.parameters())))) == 1


def three_ranks_continue():
    """With a checkpoint of two: the third has no residual, is told, and replicas stay equal."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, state = prepared(accelerator, "ef_sign")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator.load_state((SHARED / "accelerate").read_text())
        step_of(accelerator, model, optimizer, 4)
    texts = [str(x.message) for x in caught]
    want = "begins with no momentum" if dist.get_rank() == 2 else "of size 2, not of size 3"
    assert any(want in t for t in texts), texts
    assert state.steps == 3
    assert len(set(world().gather(digest(model.parameters())))) == 1


def main():
    frameworks.documentation("mpisign.accelerate")
    frameworks.on_ranks(check, 2)
    frameworks.on_ranks(three_ranks_continue, 3)
