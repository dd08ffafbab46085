"""The host kernels (kernels/module.c). Addresses are not checked here, but by the callers."""

def pack(
    data: int,
    dtype: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    sign: int,
    mask: int,
    zeros: int,
    seed: int,
    step: int,
    stream: int,
    byte_offset: int,
    threads: int,
    /,
) -> tuple[int, int]: ...
def majority(
    sign: int,
    mask: int,
    row_stride: int,
    mask_row_stride: int,
    rows: int,
    length: int,
    out_sign: int,
    out_mask: int,
    ties: int,
    seed: int,
    step: int,
    byte_offset: int,
    threads: int,
    /,
) -> int: ...
def unpack(
    sign: int,
    mask: int,
    length: int,
    itemsize: int,
    scale_bits: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def encode_counts(
    plane: int, length: int, base: int, digits: int, words: int, threads: int, /
) -> None: ...
def decode_counts(
    negatives: int,
    votes: int,
    unscale: float,
    voters: int,
    base: int,
    digits: int,
    length: int,
    out_sign: int,
    out_mask: int,
    ties: int,
    seed: int,
    step: int,
    byte_offset: int,
    threads: int,
    /,
) -> int: ...
