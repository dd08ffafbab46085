"""Rows that no rank looks up, and padding rows, stay where they are: ranks are threads."""

from __future__ import annotations

import pytest
import torch

import mpisign
from mpisign import simulation
from mpisign.compressors import COMPRESSORS
from mpisign.exchange.embeddings import Embeddings
from mpisign.exchange.skip import rule_for

#: Of these a row that was looked up once may move on: their errors are paid later.
PAY_LATER = {"onebit", "ef_sparsign"}


class Words(torch.nn.Module):
    """``tok`` says nothing to who goes by names. 151 rows: longer than what goes in 16 bits."""

    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.tok = torch.nn.Embedding(151, 9, padding_idx=0)
        self.places = torch.nn.EmbeddingBag(130, 9, mode="sum")
        self.head = torch.nn.Linear(9, 151 if tied else 5, bias=False)
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, words, classes=None):
        where = torch.arange(words.numel())[:, None]
        logits = self.head(self.tok(words) + self.places(where))
        return logits[:, :classes].logsumexp(-1).mean()


def moved(comm, compression, tied=False, overlap=False):
    """Rows of ``tok`` that moved though no rank looked them up: now, or ever; and of ``places``."""
    net = Words(tied)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    mpisign.DistributedOptimizer(optimizer, comm=comm, compression=compression, overlap=overlap)
    tok, places = net.tok.weight, net.places.weight
    start = [x.detach().clone() for x in (tok, places)]
    now, used, still = set(), set(), set()
    for step in range(6):
        # Rank r looks up 4 rows, which the next step does not, and row 0, which is padding.
        rows = [[1 + (7 * step + 5 * r + i) % 40 for i in range(4)] for r in range(comm.size)]
        looked_up = {row for mine in rows for row in mine}
        used |= looked_up
        if tied:
            looked_up |= set(range(100))
        before = tok.detach().clone()
        optimizer.zero_grad()
        net(torch.tensor([*rows[comm.rank], 0]), 100 if tied else None).backward()
        optimizer.step()
        changed = (tok.detach() != before).any(1).nonzero().flatten().tolist()
        now |= set(changed) - looked_up
        still |= looked_up - set(changed)
    ever = (tok.detach() != start[0]).any(1).nonzero().flatten().tolist()
    assert torch.equal(places.detach()[5:], start[1][5:]), "rows of an EmbeddingBag"
    return now, set(ever) - used, still


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_rows_without_a_gradient_stay(name):
    settings = {"redundancy": 1, "placement": ((0,), (1,))} if name == "detox" else {}
    compression = COMPRESSORS[name](**settings)
    for now, ever, still in simulation.run(2, moved, compression, timeout=20):
        assert not ever
        assert name in PAY_LATER or not now
        assert name not in ("sign", "signum", "lion") or not still


def test_overlap_and_tied_weights():
    """Of a head whose loss leaves out classes, the rows of these have no gradient either."""
    for now, _, still in simulation.run(3, moved, "signum", False, True, timeout=20):
        assert not now and not still
    for now, _, still in simulation.run(2, moved, "signum", True, timeout=20):
        assert not now and not still - {0}


def test_what_is_an_embedding():
    class Own(torch.nn.Embedding):
        pass

    layers = [Own(5, 3), torch.nn.EmbeddingBag(5, 3), torch.nn.Linear(5, 3)]
    found = Embeddings()
    assert [found.has("x", m.weight) for m in layers] == [True, True, False]
    assert found.has("wte.weight", layers[2].weight)
    assert not found.has("embed.bias", layers[2].bias)
    for compression, how in (("sign", "abstain"), ("ef_sign", "16bit"), ("none", None)):
        rule = rule_for("test", "auto", mpisign.compressors.resolve("test", compression))
        assert rule("x", layers[0].weight) == how
    assert rule_for("test", None, COMPRESSORS["sign"]())("x", layers[0].weight) is None
