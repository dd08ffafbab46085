"""For programs that tests start: what torch imports and an eager step never uses waits for its use.

torch.optim, process groups and DDP import torch._dynamo, and half of SymPy, for functions that do
nothing unless torch.compile runs; torch itself imports torch.export, and registers in Python what
every operator does to tensors without memory. That is more than half of what the start of a rank
costs, four seconds of a processor. Whoever asks for more of them gets the modules themselves, and
so does DTensor, which FSDP is made of. For the torch that scripts/setup installs.
"""

import importlib
import importlib.machinery
import sys
import types


class Deferred(types.ModuleType):
    """A module that has ``known`` until something else of it is asked for."""

    def __init__(self, name, **known):
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name):
        if name.startswith("__") and not (name == "__path__" and vars(self).get("loaded")):
            raise AttributeError(name)
        Finder.bring(*UNUSED)
        return getattr(importlib.import_module(self.__name__), name)


#: What is known of each without importing it, in the order in which they can be imported.
UNUSED = {
    "torch._meta_registrations": {},
    "torch.export": {},
    "torch._dynamo": {
        "disable": lambda fn=None, *_, **__: fn,
        "graph_break": lambda *_, **__: None,
        "trace_rules": Deferred("torch._dynamo.trace_rules", clear_lru_cache=lambda: None),
        "utils": Deferred("torch._dynamo.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer"),
    },
}


class Finder:
    """Finds deferred modules, each until it is asked for."""

    waiting = set(UNUSED)

    @classmethod
    def bring(cls, *names):
        cls.waiting -= set(names)
        for name in names:
            if isinstance(sys.modules.get(name), Deferred):
                del sys.modules[name]
        for name in names:
            importlib.import_module(name)

    @classmethod
    def find_spec(cls, name, *_):
        if name == "torch.distributed.tensor":
            cls.bring("torch._meta_registrations", "torch.export")  # torch._dynamo imports it
        # What is there already came when its parent was asked for its path.
        elif name in cls.waiting or name in sys.modules:
            return importlib.machinery.ModuleSpec(name, cls)

    @classmethod
    def create_module(cls, spec):
        return sys.modules.get(spec.name) or Deferred(spec.name, **UNUSED[spec.name])

    @classmethod
    def exec_module(cls, module):
        if isinstance(module, Deferred):
            module.loaded = True
        if module.__name__ == "torch._meta_registrations":
            from torch import _C, _opaque_base

            _C._set_generator_metaclass(_opaque_base.OpaqueBaseMeta)  # or there is no Generator


sys.meta_path.insert(0, Finder)
