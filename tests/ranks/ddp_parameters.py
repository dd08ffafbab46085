"""Parameters under DDP's hook: of other kinds, embeddings, later ones; warm-up.

Part of ddp_suite.py.
"""

from __future__ import annotations

import pickle

import ddp_worlds as worlds
import torch
from ddp_worlds import (
    Net,
    everyone,
    gathered,
    local_gradients,
    loss_of,
    raised,
    same_replicas,
    train,
    votes_without_ties,
    wrapped,
)

from mpisign.compressors import Signum
from mpisign.errors import CollectiveError

EXACT = Signum(momentum=0.5, zeros="abstain", ties="zero")


def check_embeddings_without_names():
    """README's way: no names are given, and rows that no rank looks up stay, as does padding."""
    for tied in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Embedding(31, 5, padding_idx=0), torch.nn.Linear(5, 31, bias=False)
        )
        if tied:
            net[1].weight = net[0].weight
        model, optimizer, _ = wrapped(net, "signum", named=False)
        for step in range(5):
            before = net[0].weight.detach().clone()
            used = [[1 + (7 * step + 4 * r + i) % 20 for i in range(3)] for r in range(worlds.SIZE)]
            optimizer.zero_grad()
            logits = model(torch.tensor([0, *used[worlds.RANK]]))
            logits[..., : 9 if tied else None].logsumexp(-1).mean().backward()
            optimizer.step()
            moved = (net[0].weight.detach() != before).any(1).nonzero().flatten().tolist()
            wanted = {row for rows in used for row in rows} | set(range(9) if tied else ())
            assert set(moved) == wanted, (tied, step, moved)
        same_replicas(net)


def check_parameters_that_come_later():
    """An error that names the remedy, on every rank; the remedy keeps the momenta."""
    for named, ranks in ((True, range(worlds.SIZE)), (True, [1]), (False, range(worlds.SIZE))):
        net = Net()
        net.middle.requires_grad_(False)
        options = {} if named else {"optimizer": None}
        model, optimizer, state = wrapped(net, EXACT, **options)
        train(model, optimizer, 2)
        before = [p.detach().clone() for p in net.parameters()]
        net.middle.requires_grad_(worlds.RANK in ranks)

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss_of(model, 2).backward()
            optimizer.step()

        error = raised(CollectiveError if named else RuntimeError, step)
        assert "a new MajorityVoteState that loads this one's state_dict()" in error, error
        assert len(set(gathered(error))) == 1
        assert all(map(torch.equal, before, net.parameters()))
        if len(ranks) == 1 or not named:
            continue
        kept = state.state_dict()
        assert kept["steps"] == 2
        del model
        model, optimizer, state = wrapped(net, EXACT)
        state.load_state_dict(kept)
        momenta = {n: s["momentum"] for n, s in kept["state"].items()}
        mine = local_gradients(net, 2)
        for name, g in mine.items():
            mine[name] = momenta.get(name, torch.zeros_like(g)) * 0.5 + g * 0.5
        optimizer.zero_grad()
        loss_of(model, 2).backward()
        want = votes_without_ties(everyone(mine), state, 2)
        assert {"middle.weight"} == want.keys() - kept["state"].keys()
        for name, p in net.named_parameters():
            assert torch.equal(p.grad, want[name]), name
        optimizer.step()
        same_replicas(net)


def check_averages_before_votes():
    """Goes on in the middle of warm-up, from a pickle, with momenta that have seen all of it."""
    net = Net()
    model, optimizer, state = wrapped(net, EXACT, warmup_steps=3)
    momenta = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for step in range(5):
        if step == 2:
            again = pickle.loads(pickle.dumps(state))
            assert (again.steps, again.warmup_steps) == (2, 3)
            again.optimizer = optimizer
            model = torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.0005)
            model.register_comm_hook(again, worlds.mpisign.ddp.majority_vote_hook)
        mine = local_gradients(net, step)
        for name, g in mine.items():
            momenta[name] = momenta[name] * 0.5 + g * 0.5
        optimizer.zero_grad()
        loss_of(model, step).backward()
        votes = votes_without_ties(everyone(momenta), state, step)
        means = everyone(mine)
        if step < 3:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)  # of averages, which may be
        for name, p in net.named_parameters():
            mean = sum(g[name] for g in means) / worlds.SIZE
            if step < 3:
                assert torch.allclose(p.grad, mean, atol=1e-6), (step, name)
            else:
                assert torch.equal(p.grad, votes[name]), (step, name)
        optimizer.step()
    same_replicas(net)
