"""The compressed allreduce of DeepSpeed's 1-bit optimizers, 0.19.6 the last release with it.

Neither backend runs on a host unchanged. The MPI backend needs CuPy, which NumPy replaces here. The
torch backend needs a packer that exists for Intel's GPUs only, and passes scales without a
dimension, which Gloo refuses: here NumPy packs, and the scales get one. All else is DeepSpeed's.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import os
import sys
import types
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from mpisign.bench.collectives import traffic
from mpisign.bench.collectives.method import CollectiveMethod, Gradient, Running, check_signs
from mpisign.bench.collectives.via import Via
from mpisign.experiments.errors import SettingsError

VERSION = "0.19.6"


def method(via: Via) -> CollectiveMethod:
    """Over MPI or over torch.distributed; it has no backend for Horovod."""
    adapted = "NumPy for CuPy" if via.name == "mpi" else "NumPy's packbits, scales of one dimension"
    return CollectiveMethod(
        "DeepSpeed 1-bit", "deepspeed", traffic.of_alltoall, partial(_start, via),
        notes=f"DeepSpeed: compressed_allreduce of {VERSION}, mean of scaled signs with two-sided "
        f"error feedback; made to run on a host: {adapted}.",
    )  # fmt: skip


def _start(via: Via, gradient: Gradient) -> Running:
    _installed()
    backend = _mpi_backend() if via.name == "mpi" else _torch_backend(via)
    multiple = 8 * via.size  # as its optimizers round the errors' size up
    rounded = -(-gradient.length // multiple) * multiple
    worker, server = torch.zeros(rounded), torch.zeros(rounded // via.size)
    buffer = torch.from_numpy(gradient.out)
    result: list[Any] = [gradient.out]

    def call() -> None:
        result[0] = backend.compressed_allreduce(buffer, worker, server, 0).numpy()

    return Running(
        call,
        lambda: check_signs(gradient, result[0]),
        prepare=gradient.refill,
        result=lambda: result[0],
    )


class OneBitAdam:
    """DeepSpeed's OnebitAdam over its MPI backend; gradients are averaged until it compresses.

    As torch's optimizers for what a training loop calls. ``freeze_step``: steps on averages; its
    first step, on zeros here, moves nothing.
    """

    def __init__(self, parameters: list[Any], lr: float, freeze_step: int, via: Any) -> None:
        _installed()
        with _quiet(), _numpy_as_cupy():
            module: Any = importlib.import_module("deepspeed.runtime.fp16.onebit.adam")
            self._engine = types.SimpleNamespace(
                mpu=None, local_rank=0, enable_backward_allreduce=True
            )
            rank, size = via.rank, via.size
            module.dist = types.SimpleNamespace(
                is_initialized=lambda: True, get_rank=lambda: rank, get_world_size=lambda: size
            )
            self._optimizer = module.OnebitAdam(
                parameters, self._engine, lr, freeze_step + 1, comm_backend_name="mpi"
            )
        self._parameters = parameters
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self._step()
        self.param_groups = self._optimizer.param_groups
        self.zero_grad = self._optimizer.zero_grad
        self.state_dict = self._optimizer.state_dict

    def step(self) -> None:
        """One step on the gradients."""
        if self._engine.enable_backward_allreduce:
            from mpi4py import MPI

            comm = MPI.COMM_WORLD
            flat = torch.cat([p.grad.reshape(-1) for p in self._parameters]).numpy()
            comm.Allreduce(MPI.IN_PLACE, flat)
            parts = np.split(flat, np.cumsum([p.numel() for p in self._parameters])[:-1])
            for p, part in zip(self._parameters, parts, strict=True):
                p.grad.copy_(torch.from_numpy(part).view(p.shape)).div_(comm.size)
        self._step()

    def _step(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._optimizer.step()


def _installed() -> None:
    try:
        found = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise SettingsError(f"not installed: pip install deepspeed=={VERSION}") from None
    if found != VERSION:
        raise SettingsError(
            f"deepspeed {found}: has no such backend, {VERSION} is the last that has"
        )


def _mpi_backend() -> Any:
    with _quiet(), _numpy_as_cupy():
        module = importlib.import_module("deepspeed.runtime.comm.mpi")
    return module.MpiBackend(cuda_aware=False)


def _torch_backend(via: Any) -> Any:
    with _quiet():
        module: Any = importlib.import_module("deepspeed.runtime.comm.compressed")
        deepspeed_comm = importlib.import_module("deepspeed.comm")
        deepspeed_comm.init_distributed(dist_backend="gloo", verbose=False)

    def all_gather(received: list[torch.Tensor], send: torch.Tensor, group: Any) -> None:
        deepspeed_comm.all_gather(received, send.reshape(received[0].shape), group=group)

    module.dist = types.SimpleNamespace(
        all_to_all_single=deepspeed_comm.all_to_all_single, all_gather=all_gather
    )
    backend = module.CompressedBackend.__new__(module.CompressedBackend)  # not its packer
    backend.world_group, backend.packer = via.group("deepspeed"), _PACKER
    backend.rank, backend.size = via.rank, via.size
    return backend


def _unpackbits(packed: torch.Tensor, length: int, rank: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy())).float().mul_(2).sub_(1)


#: What deepspeed/ops/csrc/xpu/packbits/packing.cpp does, by NumPy.
_PACKER = types.SimpleNamespace(
    packbits=lambda values, length, rank: torch.from_numpy(np.packbits(values.numpy() >= 0)),
    unpackbits=_unpackbits,
)


def _numpy_as_cupy() -> Any:
    """CuPy's functions that DeepSpeed calls, by NumPy, while the block runs."""
    cupy: Any = types.ModuleType("cupy")
    for name in ("packbits", "unpackbits", "split", "zeros", "asarray"):
        setattr(cupy, name, getattr(np, name))
    cupy.asnumpy = np.asarray
    cupy.from_dlpack = lambda capsule: torch.utils.dlpack.from_dlpack(capsule).numpy()
    stream = types.SimpleNamespace(synchronize=lambda: None)
    device = types.SimpleNamespace(use=lambda: None)
    cupy.cuda = types.SimpleNamespace(
        get_current_stream=lambda: stream, Device=lambda number: device
    )
    return mock.patch.dict(sys.modules, cupy=cupy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what DeepSpeed prints and logs when it is imported."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_BUILD_OPS", "0")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    out, errors = (contextlib.redirect_stdout, contextlib.redirect_stderr)
    try:
        with out(io.StringIO()), errors(io.StringIO()):
            yield
    finally:
        logging.disable(before)
