"""For ranks of tests: torch._dynamo is imported when more of it is used than an optimizer's step.

torch.optim imports it, and half of SymPy, for ``disable`` and ``graph_break``, which do nothing
unless torch.compile runs: seconds of every rank of every job. Not for DDP and FSDP, which use more.
"""

import importlib
import sys
import types


class Deferred(types.ModuleType):
    """torch._dynamo, until another of its names is asked for."""

    @staticmethod
    def disable(fn=None, *_, **__):
        return fn

    @staticmethod
    def graph_break(*_, **__):
        pass

    def __getattr__(self, name):
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


sys.modules["torch._dynamo"] = Deferred("torch._dynamo")
