"""Errors that scripts/check-memory must catch, one each call: planted.py NAME [guard]."""

import os
import sys

if "guard" in sys.argv:
    import guard

    guard.start()

import numpy as np  # noqa: E402

from mpisign import _kernels  # noqa: E402

LENGTH = 1 << 21  # long enough for streaming stores
_kernels.use_isa(os.environ["MPISIGN_ISA"])
x = np.ones(LENGTH, np.float32)
plane = np.zeros(LENGTH // 8, np.uint8)
stack = np.zeros((3, LENGTH // 8), np.uint8)
random = (0, 0, 0, 0)
name = sys.argv[1]
#: What lies one past the end: a coordinate that is read or written, or the byte of a plane.
more = {"none": 0, "read": 1, "write": 1, "rows": 8}[name]

if name in ("none", "read"):
    long = np.zeros(LENGTH // 8 + 1, np.uint8)
    _kernels.pack(
        x.ctypes.data, 0, (LENGTH + more,), (4,), long.ctypes.data, 0, 0, random, 1
    )  # fmt: skip
if name in ("none", "write"):
    long = np.zeros(LENGTH // 8 + 1, np.uint8)
    _kernels.unpack(long.ctypes.data, 0, LENGTH + more, 0, 1.0, x.ctypes.data, 1)
if name in ("none", "rows"):
    long = np.zeros(LENGTH // 8 + 1, np.uint8)
    _kernels.majority(
        stack.ctypes.data, 0, LENGTH // 8, 3, LENGTH + more, 0, 1, long.ctypes.data, 0, 0, random, 1
    )  # fmt: skip
print("nothing caught")
