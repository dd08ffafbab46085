"""For programs that tests start: what torch imports and an eager step never uses waits for its use.

torch.optim, process groups and DDP import torch._dynamo, and half of SymPy, for functions that do
nothing unless torch.compile runs; torch itself imports torch.export, and registers in Python what
every operator does to tensors without memory. That is more than half of what the start of a rank
costs, four seconds of a processor. Whoever asks for more of them gets the modules themselves, and
DTensor, which FSDP is made of, finds them there.
"""

import importlib
import sys
import types

#: In the order in which they can be imported.
UNUSED = ("torch._meta_registrations", "torch.export", "torch._dynamo")


class Deferred(types.ModuleType):
    """A module of torch that has ``known`` until something else of it is asked for."""

    def __init__(self, name, **known):
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name):
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        bring(*UNUSED)
        return getattr(importlib.import_module(self.__name__), name)


def bring(*names):
    if BeforeDTensor in sys.meta_path:
        sys.meta_path.remove(BeforeDTensor)
    for name in names:
        if isinstance(sys.modules[name], Deferred):
            del sys.modules[name]
    for name in names:
        importlib.import_module(name)


class BeforeDTensor:
    """Finds nothing."""

    @classmethod
    def find_spec(cls, name, *_):
        if name == "torch.distributed.tensor":
            bring(*UNUSED[:2])  # torch._dynamo imports it itself


sys.modules.update((name, Deferred(name)) for name in UNUSED)
sys.modules["torch._dynamo"] = Deferred(
    "torch._dynamo",
    disable=lambda fn=None, *_, **__: fn,
    graph_break=lambda *_, **__: None,
    trace_rules=Deferred("torch._dynamo.trace_rules", clear_lru_cache=lambda: None),
    utils=Deferred("torch._dynamo.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer"),
)
sys.meta_path.insert(0, BeforeDTensor)
