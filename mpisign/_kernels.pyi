"""The host kernels (kernels/module.c); mpisign/backend/cuda/kernels.py has them on devices.

The callers (mpisign/planes/) check addresses, kernels do not. ``sign``, ``mask`` and the like are
addresses of planes, 0 for an optional one that is absent. Codes: dtypes as arrays.FLOATS, policies
as in policies.py. ``random`` is (seed, step, stream, byte_offset). The host kernels return ints;
the CUDA kernels return device arrays, not waited for.
"""

# fmt: off
Random = tuple[int, int, int, int]

#: The instruction set in use ("avx512", "avx2", "portable"), and those this processor has.
def isa() -> str: ...
def isas() -> tuple[str, ...]: ...
def use_isa(name: str, /) -> None: ...
def address(array: object, /) -> int:
    """Where the memory of an object with a buffer begins; BufferError, ValueError without one."""

def contiguous(array: object, writable: bool, /) -> int:
    """``address`` of a C-contiguous array, ``writable`` if so; BufferError or ValueError else."""

def hash_bytes(data: int, nbytes: int, seed: int, /) -> int:
    """XXH64 of memory."""

def hash_pieces(table: int, pieces: int, seed: int, /) -> int:
    """XXH64 of pieces, each with the hash of those before as its seed.

    ``table``: int64 (pieces, 2): address and bytes.
    """

def pack(data: int, dtype: int, shape: tuple[int, ...], strides: tuple[int, ...], sign: int,
    mask: int, zeros: int, random: Random, threads: int, /) -> tuple[int, int]:
    """One array of any strides (bytes); returns (zeros, NaNs)."""

def pack_pieces(rule: int, parameters: tuple[float, float, float, float], pieces: bytes, sign: int,
    mask: int, zeros: int, random: Random, threads: int, /) -> tuple[int, int]:
    """Contiguous arrays into one plane.

    ``pieces``: int64 native (n, 6): address, length, dtype, first byte in the planes,
    address of the momentum or 0, its dtype. ``rule``: SIGN, SIGNUM (b, 1 - b), LION (b1,
    1 - b1, b2, 1 - b2), SPARSIGN (budget).
    """

def pack_planes(data: int, dtype: int, length: int, table: int, pieces: int, zeros: int,
    random: Random, threads: int, /) -> int:
    """A contiguous array into planes that lie apart; returns the NaNs.

    ``table``: int64 (pieces, 4): bytes [a, b) of the planes, addresses of the sign plane and of the
    mask plane or 0. ``random``: without a first byte, which the table says.
    """

def unpack_planes(table: int, pieces: int, dtype: int, out: int, length: int, threads: int,
    /) -> None:
    """The inverse of ``pack_planes``, +1, -1 or 0."""

def error_feedback(grad: int, dtype: int, residual: int, length: int, rate: float, block: int,
    sign: int, mask: int, scales: int, zeros: int, random: Random, threads: int,
    /) -> tuple[int, int]:
    """Residual fp32, scales fp32 (ceil(length / block),); returns (zeros, values not finite)."""

def majority(sign: int, mask: int, row_stride: int, rows: int, length: int, weights: int,
    group: int, out_sign: int, out_mask: int, ties: int, random: Random, threads: int, /) -> int:
    """Returns coordinates that tied. ``weights``: uint32 (rows,) or 0; ``group``: rows, or 1."""

def group_distances(sign: int, mask: int, row_stride: int, rows: int, length: int, group: int,
    threads: int, /) -> bytes:
    """Int64 native (rows,): bits that differ from the group's vote, where both voted."""

def tally(sign: int, mask: int, row_stride: int, rows: int, length: int, weights: int, planes: int,
    negatives: int, positives: int, plane_stride: int, threads: int, /) -> None:
    """Count planes, lowest bit first; ``positives`` of masked stacks only, else 0."""

def weighted_sum(sign: int, mask: int, row_stride: int, rows: int, length: int, weights: int,
    block: int, start: float, scale: float, out: int, threads: int, /) -> None:
    """out fp32 = (start +- weights[0] ...) * scale; weights fp32 (rows, ceil(length / block))."""

def unpack(sign: int, mask: int, length: int, dtype: int, scale: float, out: int, threads: int,
    /) -> None: ...
def unpack_add(sign: int, mask: int, length: int, dtype: int, scale: float, out: int, threads: int,
    /) -> None: ...
def update(sign: int, mask: int, length: int, dtype: int, rate: float, weight_decay: float,
    parameter: int, threads: int, /) -> None: ...
def encode_counts(plane: int, length: int, base: int, digits: int, words: int, threads: int,
    /) -> None: ...
def decode_counts(negatives: int, votes: int, unscale: float, voters: int, base: int, digits: int,
    length: int, out_sign: int, out_mask: int, ties: int, random: Random, threads: int,
    /) -> int: ...
def encode_sparse(sign: int, mask: int, length: int, out: int, /) -> int:
    """Returns the bytes of the message, for which ``out`` has room in any case."""

def decode_sparse(data: int, size: int, length: int, sign: int, mask: int, /) -> int:
    """Returns 0, or -1 to -5 (kernels/host.h) for what is wrong with the message."""

#: Address, bytes from row to row, rows, coordinates, dtype.
Rows = tuple[int, int, int, int, int]

def rows_finite(rows: Rows, finite: int, threads: int, /) -> None:
    """``finite``: uint8 (rows,), 1 where all is finite (fp64: below 2^480), as of all below."""

def rows_distances(rows: Rows, norms: int, out: int, finite: int, threads: int, /) -> None:
    """Squared: out fp64, of pairs (0, 1) (0, 2) ... (n - 1, origin), or of ``norms`` (rows,)."""

def rows_mix(rows: Rows, mixture: tuple[int, int, int, int, int], out: int, finite: int,
    threads: int, /) -> None:
    """``mixture``: sums, and the addresses of int64 ends (sums,), int64 columns and fp64 values of
    what is not 0, uint8 (rows,) of the rows that are used. out: (sums, coordinates)."""

def rows_order(rows: Rows, low: int, high: int, nearest: int, out: int, finite: int, threads: int,
    /) -> None:
    """The mean of order statistics [low, high), or of the ``nearest`` values to the median."""
