"""Whether DDP has averaged the gradients already, as far as can be seen."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch

DDP = (
    "DistributedDataParallel has averaged the gradients already, so that ranks have no momenta of "
    "their own: train the module that it wraps, or run forward and backward in the wrapper's "
    "no_sync()"
)
_NOTHING = "noop_hook"  # torch's hook under which DDP averages nothing


class Wrappers:
    """The DistributedDataParallel modules that hold some of ``parameters``."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._found: list[weakref.ref[Any]] = []
        torch_ddp = sys.modules.get("torch.nn.parallel.distributed")
        if torch_ddp is None:
            return
        own = {id(p) for p in parameters}
        kind = torch_ddp.DistributedDataParallel
        for x in gc.get_referrers(kind, *kind.__subclasses__()):
            if isinstance(x, kind) and any(id(p) in own for p in x.parameters()):
                self._found.append(weakref.ref(x))

    def average(self) -> bool:
        """Whether the last forward pass of one of them had gradients averaged."""
        return any(_averages(x) for r in self._found if (x := r()) is not None)


def _averages(module: Any) -> bool:
    # torch sets the second after each forward pass: False after one in no_sync().
    ran = getattr(module, "_lazy_init_ran", True) and module.require_forward_param_sync
    hooks = [getattr(hook, "__name__", "") for hook, *_ in getattr(module, "_comm_hooks", ())]
    return bool(ran) and _NOTHING not in hooks
