"""scripts/setup --env: what a shell must set; nothing that slows ranks with a core each."""

from __future__ import annotations

import importlib
import sys

import pytest
from launchers import ROOT


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield importlib.import_module("setup_commands")
    sys.modules.pop("setup_commands")


def test_ranks_share_cores_only_where_they_must(commands):
    n = commands.cores()
    few, many = commands.launch_env("openmpi", n), commands.launch_env("openmpi", n + 1)
    assert "OMPI_MCA_hwloc_base_binding_policy" not in few and "PATH" in few
    assert few.items() <= many.items() and set(many) - set(few) == {
        "OMPI_MCA_rmaps_base_oversubscribe",
        "OMPI_MCA_hwloc_base_binding_policy",
        "OMPI_MCA_mpi_yield_when_idle",
        "PRTE_MCA_rmaps_default_mapping_policy",
        "PRTE_MCA_hwloc_default_binding_policy",
    }
