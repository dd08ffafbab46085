"""The CUDA devices that this process sees, by the driver itself: needs no package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Seen:
    """``driver``: the newest CUDA it serves, 13000 for 13.0. ``why``: there is no device."""

    devices: list[dict[str, Any]] = field(default_factory=list)
    driver: int = 0
    why: str = ""


def seen() -> Seen:
    """The devices, each {"name", "memory", "target": "sm_90", "uuid"}.

    RuntimeError where the driver fails.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Seen(why="none: no CUDA driver (libcuda.so.1)")
    count, version, status = ctypes.c_int(0), ctypes.c_int(0), cuda.cuInit(0)
    if status == _NO_DEVICE:
        return Seen(why="none: the CUDA driver sees no device")
    if status:
        raise RuntimeError(f"cuInit failed with {status}")
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return Seen([_device(cuda, number) for number in range(count.value)], version.value)


def _device(cuda: ctypes.CDLL, number: int) -> dict[str, Any]:
    name, uuid = ctypes.create_string_buffer(100), ctypes.create_string_buffer(16)
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, 100, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetUuid(uuid, device)
    for value, attribute in ((major, 75), (minor, 76)):  # COMPUTE_CAPABILITY_MAJOR, _MINOR
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return {
        "name": name.value.decode(),
        "memory": memory.value,
        "target": f"sm_{major.value}{minor.value}",
        "uuid": uuid.raw.hex(),
    }


def cuda_version(number: int) -> str:
    """CUDA's number as text: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"
