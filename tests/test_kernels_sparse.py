"""Coded sparse planes, bit for bit against a reference; and messages that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference as ref
import samples
import torch
from fused_arrays import any_isa, isa, isa_restored
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import golomb

from mpisign import _kernels, planes
from mpisign.errors import WireError
from mpisign.planes import coded_bytes_bound, decode, encode, plane_bytes

assert isa and isa_restored  # fixtures
BLOCK = golomb.BLOCK


def drawn(length, share, seed=0):
    """(sign, mask), booleans: about ``share`` of the coordinates are present."""
    bits = np.random.default_rng([seed, length]).random((2, length))
    mask = bits[1] < share
    return (bits[0] < 0.5) & mask, mask


def exactly(length, present, seed=0):
    """(sign, mask), booleans, ``present`` coordinates anywhere."""
    rng = np.random.default_rng([seed, length])
    mask = np.zeros(length, bool)
    mask[rng.choice(length, present, replace=False)] = True
    return (rng.random(length) < 0.5) & mask, mask


def stacked(sign, mask):
    return np.stack([ref.bits_to_plane(sign), ref.bits_to_plane(mask)])


def check(sign, mask, expected=None):
    """Coded as the reference codes, and decoded, into memory of which no more is written."""
    both, length = stacked(sign, mask), sign.size
    bound = coded_bytes_bound(length)
    room = np.full(bound + 16, 0xAA, np.uint8)
    message = encode(both, length=length, out=room[8:-8])
    assert message.tobytes() == (expected or golomb.encode(sign, mask))
    assert message.size <= bound - 8 and (room[:8] == 0xAA).all() and (room[-8:] == 0xAA).all()
    out = np.full((2, both.shape[1] + 16), 0xAA, np.uint8)
    inner = out[:, 8 : 8 + both.shape[1]]
    assert decode(message.copy(), length, out=inner) is inner
    assert np.array_equal(inner, both)
    assert (out[:, :8] == 0xAA).all() and (out[:, 8 + both.shape[1] :] == 0xAA).all()
    return message


@pytest.mark.parametrize("share", [0, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.23, 0.3, 0.5, 0.9, 1])
def test_coded_as_the_reference_codes_and_back(isa, share):
    for length in samples.LENGTHS:
        check(*drawn(length, share))


def test_one_present_or_one_absent(isa):
    for length in (1, 2, 8, 9, 64, 65, 1000, 4096):
        for at in {0, 1, length // 2, length - 1} & set(range(length)):
            for negative in (False, True):
                mask = np.arange(length) == at
                check(mask & negative, mask)
                check(~mask & negative, ~mask)


def test_blocks_are_coded_each_by_itself(isa):
    shares = [0.3, 0, 0.01, 1, 0.7, 2e-5, 0.1]
    parts = [drawn(BLOCK, share, seed) for seed, share in enumerate(shares)]
    parts.append(drawn(77, 0.1))
    sign, mask = (np.concatenate(bits) for bits in zip(*parts, strict=True))
    message = check(sign, mask)
    assert message.tobytes() == b"".join(golomb.encode(*part) for part in parts)


def test_what_lies_in_clusters_is_never_longer_than_a_mask_plane(isa):
    mask = np.zeros(BLOCK, bool)
    mask[-9000:] = True  # gaps of 0, and one of 122,072 that takes many zeros
    for present in (mask, mask[::-1], np.arange(BLOCK) % 3000 < 500):
        message = check(present[::-1] & present, present)
        assert message.size <= 1 + BLOCK // 8 + -(-int(present.sum()) // 8)


@pytest.mark.parametrize("share, figure", [(0.1, 0.576), (0.05, 0.339), (0.01, 0.091)])
def test_bits_per_coordinate_are_those_of_the_specification(share, figure):
    length = 1 << 20
    message = encode(stacked(*exactly(length, round(share * length))), length=length)
    bits = 8 * message.size / length
    rest = 1 - share
    entropy = -share * math.log2(share) - rest * math.log2(rest) + share  # and a bit of sign
    assert abs(bits - figure) < 0.001
    assert entropy <= bits < 1.02 * entropy


def test_what_no_one_may_see_is_left_out(isa):
    sign, mask = drawn(1003, 0.1)
    clean, dirty = stacked(sign, mask), stacked(sign | ~mask, mask)
    dirty[:, -1] |= 0xF8
    message = encode(dirty, length=1003)
    assert message.tobytes() == encode(clean, length=1003).tobytes()
    assert np.array_equal(decode(message, 1003), clean)
    full = np.full((2, 2), 0xFF, np.uint8)
    assert encode(full, length=9).tolist() == [33, 255, 1]


def test_planes_of_any_strides_and_frameworks():
    sign, mask = drawn(1000, 0.2)
    both = stacked(sign, mask)
    room = np.zeros((2, 2, 200), np.uint8)
    room[:, 1, 3:128] = both
    message = encode(room[:, 1, 3:128])
    assert message.tobytes() == encode(both).tobytes()
    tensor = encode(torch.from_numpy(both))
    assert isinstance(tensor, torch.Tensor) and tensor.numpy().tobytes() == message.tobytes()
    back = decode(tensor, 1000)
    assert isinstance(back, torch.Tensor) and np.array_equal(back.numpy(), both)
    assert encode(np.zeros((2, 0), np.uint8)).shape == (0,)
    assert decode(np.zeros(0, np.uint8), 0).shape == (2, 0)


@given(any_isa, st.binary(max_size=100), st.integers(0, 7), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_planes(name, data, unused, few):
    _kernels.use_isa(name)
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).astype(bool)
    length = max(0, bits.size // 2 - unused)
    sign, mask = bits[:length], bits[length : 2 * length]
    if few:
        mask = mask & drawn(length, 0.1)[1]
    check(sign & mask, mask)


# --- messages from anywhere ------------------------------------------------------------------


def decoded(message, length):
    """The planes, or None if that is no message; nothing but the planes is written either way."""
    nbytes = plane_bytes(length)
    out = np.full((2, nbytes + 16), 0xAA, np.uint8)
    try:
        decode(np.frombuffer(message, np.uint8).copy(), length, out=out[:, 8 : 8 + nbytes])
        result = out[:, 8 : 8 + nbytes].copy()
    except WireError:
        result = None
    assert (out[:, :8] == 0xAA).all() and (out[:, 8 + nbytes :] == 0xAA).all()
    return result


def expected(message, length):
    try:
        return golomb.decode(message, length)
    except ValueError:
        return None


def same(a, b):
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b))


KINDS = [0, 1, 2, 3, 8, 16, 17, 18, 31, 32, 33, 34, 255]


def test_every_message_of_two_bytes(isa):
    for length in (1, 8, 11):
        for kind in KINDS:
            for byte in range(256):
                message = bytes([kind, byte])
                assert same(decoded(message, length), expected(message, length)), message


@given(any_isa, st.sampled_from(KINDS), st.binary(max_size=60), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_any_bytes(name, kind, rest, length):
    _kernels.use_isa(name)
    message = bytes([kind]) + rest
    assert same(decoded(message, length), expected(message, length))


@given(
    any_isa,
    st.integers(1, 400),
    st.sampled_from([0.01, 0.1, 0.3, 0.6, 1]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3),
    st.integers(-3, 3),
)
@settings(max_examples=200, deadline=None)
def test_corrupted_messages(name, length, share, changes, longer):
    _kernels.use_isa(name)
    message = bytearray(golomb.encode(*drawn(length, share)))
    for at, change in changes:
        message[at % len(message)] ^= change
    message = bytes(message[:longer] if longer < 0 else message + bytes(longer))
    assert same(decoded(message, length), expected(message, length))


def test_corrupted_messages_of_many_blocks(isa):
    length = 2 * BLOCK + 1000
    rng = np.random.default_rng(1)
    for share in (0.02, 0.3, 0.6):
        message = np.frombuffer(golomb.encode(*drawn(length, share)), np.uint8)
        for _ in range(30):
            bad = message[: rng.integers(1, message.size + 1)].copy()
            bad[rng.integers(0, bad.size, 3)] ^= rng.integers(0, 256, 3, dtype=np.uint8)
            planes_of_it = decoded(bad.tobytes(), length)
            if planes_of_it is not None:  # then it says what any message says
                again = decode(encode(planes_of_it, length=length), length)
                assert np.array_equal(again, planes_of_it)
                assert not (planes_of_it[0] & ~planes_of_it[1]).any()


def test_what_is_wrong_is_said():
    sign, mask = drawn(100, 0.1)
    good = golomb.encode(sign, mask)
    masked = golomb.encode(*drawn(100, 0.6))
    for message, wrong in [
        (b"", "ends before its last coordinate"),
        (good[:-1], "ends before its last coordinate"),
        (good + b"\0", "goes on behind its last coordinate"),
        (b"\x12" + good[1:], "block of unknown kind"),
        (b"\x05" + good[1:], "position beyond its block"),
        (masked[:13] + b"\xff" + masked[14:], "padding not 0"),
        (b"\x21" + b"\xff" * 13, "padding not 0"),
    ]:
        with pytest.raises(WireError, match=f"decode: a message of {len(message)} bytes .*{wrong}"):
            decode(np.frombuffer(message, np.uint8), 100)


def test_a_message_says_nothing_of_another_length():
    both = stacked(*drawn(1000, 0.1))
    for length in (0, 1, 500, 2000):
        with pytest.raises(WireError):
            decode(encode(both), length)


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: encode(zeros(3)), ValueError, r"encode: planes .* \(2, B\), got \(3,\)"),
        (lambda: encode(zeros(3, 3)), ValueError, r"encode: planes must have shape"),
        (lambda: encode([1, 2]), TypeError, "encode: planes must be a NumPy array"),
        (lambda: encode(zeros(2, 3, dtype=int)), TypeError, "dtype uint8, got int64"),
        (lambda: encode(zeros(2, 3), length=25), ValueError, r"\(17 to 24\), got 25"),
        (lambda: encode(zeros(2, 3), out=zeros(14)), ValueError, r"n at least 15 for 24 .*\(14,\)"),
        (lambda: decode(zeros(2, 3), 8), ValueError, r"message must have shape \(n,\)"),
        (lambda: decode(zeros(3, dtype=float), 8), TypeError, "dtype uint8, got float64"),
        (lambda: decode(zeros(3), -1), ValueError, "length must not be negative, got -1"),
        (lambda: decode(zeros(1), 8, zeros(2, 2)), ValueError, r"out must have shape \(2, 1\)"),
    ],
)
def test_errors_name_function_argument_expected_and_got(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_exported():
    assert {"encode", "decode", "coded_bytes_bound"} <= set(planes.__all__)
