"""What a step promises: the parameters move by the vote, the same on every rank."""

from __future__ import annotations

import functools

import torch
from expected import Expected, Net, at
from front_ends import EXACT, FRONTS, HOROVOD, REPLICATED, SHARDED, beta_of, make, promise
from job import attempt, digest, same_error, same_replicas


@promise(*FRONTS)
def vote(world, front):
    """Of all coordinates, and where the front end keeps momenta of their largest alone."""
    for density in (None, 0.25) if front in REPLICATED else (None,):
        settings = EXACT if density is None else {"density": density}
        w = make(world, front, compression=("signum", settings))
        expected = Expected(world, Net(), beta_of(front), density=density)
        for step in range(4):
            w.train(at(world, step))
            expected.train(at(world, step))
            expected.check(w, f"step {step}, density {density}")


@promise(*REPLICATED)
def replicas(world, front):
    """With random zeros and ties, options that change alike, and an optimizer with state."""
    inner = functools.partial(torch.optim.AdamW, lr=0.01)
    for options in ({}, {"inner": inner}):
        w = make(world, front, compression="signum", **options)
        before = digest(w.parameters().values())
        for step in range(5):
            w.optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            w.train(at(world, step))
            same_replicas(world, w, f"step {step}")
        assert digest(w.parameters().values()) != before


@promise(*REPLICATED)
def missing(world, front):
    """Count as zeros there; a parameter that no rank used stays where it is."""
    options = {"ddp": {"find_unused_parameters": True}} if front in ("ddp", "ddp_bare") else {}
    w = make(world, front, Net(extra=True), compression=("sign", EXACT), **options)
    expected = Expected(world, Net(extra=True))
    for step in range(3):
        here = at(world, step, extra=world.rank == step % world.size)
        w.train(here)
        expected.train(here)
        expected.check(w, f"step {step}")


@promise(*FRONTS)
def backwards(world, front):
    """The vote is on the sum of two losses' gradients, or every rank raises the same error."""
    options = {"backward_passes_per_step": 2} if front in HOROVOD else {}
    w = make(world, front, **options)
    expected = Expected(world, Net(), beta_of(front))
    for step in range(0, 6, 2):
        losses = at(world, step), at(world, step + 1)
        raised = attempt(world, lambda losses=losses: w.train(*losses))
        if raised:
            assert "backward" in raised, raised
            expected.check(w, "after the error")
            w.optimizer.zero_grad()
            losses = losses[:1]
            w.train(*losses)
        expected.train(*losses)
        expected.check(w, f"step {step}")


@promise(*HOROVOD)
def passes(world, front):
    """Horovod's own rule, told on every rank."""
    w = make(world, front)
    w.optimizer.zero_grad()
    at(world, 0)(w.model).backward()
    same_error(world, lambda: at(world, 1)(w.model).backward(), "more than")
    w.discard()  # Horovod's recipe still ends the step
    same_replicas(world, w)


class Words(torch.nn.Module):
    """Embeddings of names that tell nothing: tied, padded, and longer than any sentence."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tok = torch.nn.Embedding(20, 8, padding_idx=0)
        self.where = torch.nn.Embedding(16, 8)
        self.body = torch.nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.tok(tokens) + self.where(torch.arange(tokens.shape[1]))
        return self.body(x)


def words(step, rank):
    tokens = torch.randint(
        1, 10, (4, 6), generator=torch.Generator().manual_seed(100 * step + rank)
    )
    tokens[:, -1] = 0
    return tokens


@promise(*FRONTS)
def rows(world, front):
    """Rows that nobody looked up stay, of embeddings of any name, and the padding row.

    Under FSDP, which hands over a flat shard, with zeros="abstain" and ties="zero".
    """
    w = make(world, front, Words(), ("sign", EXACT) if front in SHARDED else "signum")
    before = w.parameters()
    for step in range(6):
        w.train(lambda model, step=step: model(words(step, world.rank)).square().mean())
    after = w.parameters()
    for name, rows in (("tok.weight", [0, *range(10, 20)]), ("where.weight", range(6, 16))):
        moved = (after[name] - before[name]).abs().amax(1)
        assert not moved[list(rows)].any(), f"{name}: {moved.tolist()}"
        used = [r for r in range(len(moved)) if r not in rows]
        assert moved[used].any(), f"{name}: {moved.tolist()}"
    same_replicas(world, w)


@promise(*FRONTS)
def warmup(world, front):
    """Plain averages first, then votes."""
    w = make(world, front, warmup_steps=2)
    expected, before = Expected(world, Net(), 0.9), {}
    for step in range(5):
        w.train(at(world, step))
        if step < 2:
            every = expected.gradients(at(world, step))
            with torch.no_grad():
                for name, p in expected.net.named_parameters():
                    p.sub_(expected.lr * sum(g[name] for g in every) / world.size)
            got = w.parameters()
            for name, p in expected.net.named_parameters():
                assert torch.allclose(got[name], p, atol=1e-6), f"step {step}: {name}"
                p.data.copy_(got[name])
        else:
            for name, now in w.parameters().items():
                moved = (now - before[name]).abs() / expected.lr
                assert torch.allclose(moved, moved.round(), atol=1e-4), f"step {step}: {name}"
                assert moved.max() < 1.5, f"step {step}: {name}"
        before = w.parameters()
        same_replicas(world, w, f"step {step}")
