/* The rules that decide each coordinate by itself: sign, signum, lion, sparsign. 8 at a time. */
#ifndef MPISIGN_GPU_RULES_H
#define MPISIGN_GPU_RULES_H

#include "gpu.h"

enum Rule { SIGN = 0, SIGNUM = 1, LION = 2, SPARSIGN = 3 };

/* Units of 8 that a thread has in flight, 64 to 128 bytes of loads. */
template <int RULE> constexpr int units_of = RULE == SIGN ? 4 : 2;

/* A row of the table of pieces (mpisign/backend/cuda/kernels.py). */
struct Piece {
    const void *data;
    int64_t length;
    int64_t dtype;
    int64_t byte; /* where it starts in the planes */
    void *momentum;
    int64_t momentum_dtype;
    int64_t block; /* the first CUDA block that works on it */
    int64_t unused;
};

struct Call {
    float a, b, c, d; /* the rule's parameters */
    uint8_t *sign, *mask;
    int64_t zeros;
    mpisign_random rnd;
};

/* 8 items as they are in memory: 4, 8 or 16 words. What they are is looked at only when all loads of
 * a thread are under way, so that one code serves all dtypes and no load waits for another. */
struct Raw {
    uint32_t w[16];
};

MPISIGN_FN void load_raw(const void *x, int64_t dtype, int64_t i, Raw &raw)
{
    const bool long_item = dtype == MPISIGN_FP64, short_item = !long_item && dtype != MPISIGN_FP32;
    const int64_t size = long_item ? 8 : short_item ? 2 : 4;
    const Words<4> *from = (const Words<4> *)((const char *)x + i * size);
    UNROLL
    for (int k = 0; k < 4; k++) {
        if (k == 0 || (k == 1 && !short_item) || long_item) {
            Words<4> four = from[k];
            UNROLL
            for (int j = 0; j < 4; j++)
                raw.w[4 * k + j] = four.w[j];
        }
    }
}

/* Any address; absent items are 0. */
MPISIGN_FN void load_raw_narrow(const void *x, int64_t dtype, int64_t i, uint32_t present, Raw &raw)
{
    UNROLL
    for (int k = 0; k < 16; k++)
        raw.w[k] = 0;
    UNROLL
    for (int k = 0; k < 8; k++) {
        if (!(present >> k & 1))
            continue;
        if (dtype == MPISIGN_FP32) {
            raw.w[k] = ((const uint32_t *)x)[i + k];
        } else if (dtype == MPISIGN_FP64) {
            uint64_t item = ((const uint64_t *)x)[i + k];
            raw.w[2 * k] = (uint32_t)item;
            raw.w[2 * k + 1] = (uint32_t)(item >> 32);
        } else {
            raw.w[k / 2] |= (uint32_t)((const uint16_t *)x)[i + k] << 16 * (k & 1);
        }
    }
}

template <int DTYPE> MPISIGN_FN typename Item<DTYPE>::bits item_of(const Raw &raw, int k)
{
    if constexpr (DTYPE == MPISIGN_FP32)
        return raw.w[k];
    else if constexpr (DTYPE == MPISIGN_FP64)
        return raw.w[2 * k] | (uint64_t)raw.w[2 * k + 1] << 32;
    else
        return (uint16_t)(raw.w[k / 2] >> 16 * (k & 1));
}

template <int DTYPE> MPISIGN_FN void widen8(const Raw &raw, float out[8])
{
    UNROLL
    for (int k = 0; k < 8; k++)
        out[k] = widen<DTYPE>(item_of<DTYPE>(raw, k));
}

MPISIGN_FN void widen8(const Raw &raw, int64_t dtype, float out[8])
{
    if (dtype == MPISIGN_FP32)
        widen8<MPISIGN_FP32>(raw, out);
    else if (dtype == MPISIGN_FP16)
        widen8<MPISIGN_FP16>(raw, out);
    else if (dtype == MPISIGN_BF16)
        widen8<MPISIGN_BF16>(raw, out);
    else
        widen8<MPISIGN_FP64>(raw, out);
}

/* SIGN looks at the bits of the dtype itself: an fp64 that fp32 rounds to 0 has a sign. */
template <int DTYPE> MPISIGN_FN Ballot ballot_of_bits(const typename Item<DTYPE>::bits x[8])
{
    typedef typename Item<DTYPE>::bits bits;
    constexpr int top = 8 * (int)sizeof(bits) - 1;
    constexpr bits magnitude = (bits)~((bits)1 << top);
    constexpr bits infinity = DTYPE == MPISIGN_FP16   ? (bits)0x7c00
                              : DTYPE == MPISIGN_BF16 ? (bits)0x7f80
                              : DTYPE == MPISIGN_FP32 ? (bits)0x7f800000
                                                      : (bits)0x7ff0000000000000ull;
    Ballot b = {0, 0, 0};
    UNROLL
    for (int k = 0; k < 8; k++) {
        bits a = x[k] & magnitude;
        b.negative |= (uint32_t)(x[k] >> top) << k;
        b.zero |= (uint32_t)(a == 0) << k;
        b.nan |= (uint32_t)(a > infinity) << k;
    }
    return b;
}

template <int DTYPE> MPISIGN_FN Ballot ballot_of_raw(const Raw &raw)
{
    typename Item<DTYPE>::bits x[8];
    UNROLL
    for (int k = 0; k < 8; k++)
        x[k] = item_of<DTYPE>(raw, k);
    return ballot_of_bits<DTYPE>(x);
}

MPISIGN_FN Ballot ballot_of_raw(const Raw &raw, int64_t dtype)
{
    if (dtype == MPISIGN_FP32)
        return ballot_of_raw<MPISIGN_FP32>(raw);
    if (dtype == MPISIGN_FP16)
        return ballot_of_raw<MPISIGN_FP16>(raw);
    if (dtype == MPISIGN_BF16)
        return ballot_of_raw<MPISIGN_BF16>(raw);
    return ballot_of_raw<MPISIGN_FP64>(raw);
}

/* v is voted on, `next` is the new momentum, which is stored if it is finite as stored: NaN and
 * infinity would never leave it again. A NaN in either leaves the momentum as it is and does not
 * vote. The momentum is fp32 or bf16. */
template <int RULE>
MPISIGN_FN Ballot momentum_step(const float g[8], const float m[8], const Piece &piece, int64_t i,
                                uint32_t present, bool wide, const Call &call)
{
    const bool in_bf16 = piece.momentum_dtype == MPISIGN_BF16;
    uint32_t voted[8], stored[8], finite = 0;
    Ballot ballot;
    UNROLL
    for (int k = 0; k < 8; k++) {
        float next = blend(call.a, m[k], call.b, g[k]), v = next;
        if constexpr (RULE == LION)
            next = blend(call.c, m[k], call.d, g[k]);
        stored[k] = in_bf16 ? bf16_of_float(next) : bits_of_float(next);
        const uint32_t as_fp32 = in_bf16 ? stored[k] << 16 : stored[k];
        finite |= (uint32_t)((as_fp32 & 0x7fffffffu) < 0x7f800000u) << k;
        if constexpr (RULE == SIGNUM)
            v = float_of_bits(as_fp32);
        voted[k] = v == v && next == next ? bits_of_float(v) : 0x7fc00000u;
    }
    ballot = ballot_of_bits<MPISIGN_FP32>(voted);
    const uint32_t which = present & finite & ~ballot.nan;
    if (in_bf16) {
        uint16_t items[8];
        UNROLL
        for (int k = 0; k < 8; k++)
            items[k] = (uint16_t)stored[k];
        store8((uint16_t *)piece.momentum, i, which, wide, items);
    } else {
        store8((uint32_t *)piece.momentum, i, which, wide, stored);
    }
    return ballot;
}

/* `first`: the unit's place in the streams, in units of 8 coordinates. */
MPISIGN_FN uint32_t sparsign_step(const float g[8], uint32_t present, uint64_t first, int64_t byte,
                                  const Call &call)
{
    uint32_t halves[4], votes = 0, negative = 0, zero = 0, nan = 0;
    philox4x32_10(first | MPISIGN_HALVES, (uint32_t)call.rnd.step, call.rnd.stream, call.rnd.seed,
                  halves);
    UNROLL
    for (int k = 0; k < 8; k++) {
        float size = float_of_bits(bits_of_float(g[k]) & 0x7fffffffu), rest;
        nan |= (uint32_t)(g[k] != g[k]) << k;
        zero |= (uint32_t)(g[k] == 0.0f) << k;
        negative |= (uint32_t)(g[k] < 0.0f) << k;
        /* Of NaN: neither comparison holds, no vote. */
        int verdict =
            sparsign_first(call.a * size, halves[k / 2] >> 16 * (k & 1) & 0xffffu, &rest);
        if (verdict == SPARSIGN_DRAW_MORE) {
            uint64_t i = 8 * first + (uint64_t)k;
            uint32_t words[4];
            philox4x32_10(i >> 2 | MPISIGN_WORDS, (uint32_t)call.rnd.step, call.rnd.stream,
                          call.rnd.seed, words);
            verdict = sparsign_second(rest, words[k & 3]);
        }
        votes |= (uint32_t)(verdict == SPARSIGN_YES) << k;
    }
    votes &= present;
    if (present) {
        call.sign[byte] = (uint8_t)(negative & votes);
        if (call.mask)
            call.mask[byte] = (uint8_t)votes;
    }
    return (uint32_t)__popc(zero & present) | (uint32_t)__popc(nan & present) << 16;
}

template <int RULE>
MPISIGN_FN uint32_t finish_unit(const Raw &g, const Raw &m, const Piece &piece, int64_t i,
                                uint32_t present, bool wide, const Call &call)
{
    const int64_t byte = piece.byte + (i >> 3);
    float x[8], old[8];
    if constexpr (RULE != SIGN)
        widen8(g, piece.dtype, x);
    if constexpr (RULE == SPARSIGN) {
        return sparsign_step(x, present, call.rnd.byte_offset + (uint64_t)byte, byte, call);
    } else {
        Ballot ballot = {0, 0, 0};
        if constexpr (RULE == SIGN) {
            ballot = ballot_of_raw(g, piece.dtype);
        } else {
            if (piece.momentum_dtype == MPISIGN_BF16)
                widen8<MPISIGN_BF16>(m, old);
            else
                widen8<MPISIGN_FP32>(m, old);
            ballot = momentum_step<RULE>(x, old, piece, i, present, wide, call);
        }
        return cast_votes(ballot, present, byte, call.sign, call.mask, call.zeros, &call.rnd)
            .counts;
    }
}

/* Block `block` of those that work on this piece; returns this thread's counts. */
template <int RULE>
MPISIGN_FN uint32_t pack_block(const Piece &piece, int64_t block, const Call &call)
{
    constexpr int units = units_of<RULE>;
    constexpr bool has_momentum = RULE == SIGNUM || RULE == LION;
    const int64_t first = block * (8 * units * THREADS) + 8 * (int64_t)threadIdx.x;
    const bool wide =
        is_aligned(piece.data) && (!has_momentum || is_aligned(piece.momentum));
    /* Said so that no code for a momentum of other dtypes is made. */
    const int64_t of_momentum = piece.momentum_dtype == MPISIGN_BF16 ? MPISIGN_BF16 : MPISIGN_FP32;
    Raw g[units], m[units];
    uint32_t counts = 0;
    if (wide && (block + 1) * (8 * units * THREADS) <= piece.length) {
        UNROLL
        for (int u = 0; u < units; u++) {
            load_raw(piece.data, piece.dtype, first + 8 * u * THREADS, g[u]);
            if constexpr (has_momentum)
                load_raw(piece.momentum, of_momentum, first + 8 * u * THREADS, m[u]);
        }
    } else {
        UNROLL
        for (int u = 0; u < units; u++) {
            const int64_t i = first + 8 * u * THREADS;
            const uint32_t present = present8(i, piece.length);
            load_raw_narrow(piece.data, piece.dtype, i, present, g[u]);
            if constexpr (has_momentum)
                load_raw_narrow(piece.momentum, of_momentum, i, present, m[u]);
        }
    }
    UNROLL
    for (int u = 0; u < units; u++) {
        const int64_t i = first + 8 * u * THREADS;
        counts += finish_unit<RULE>(g[u], m[u], piece, i, present8(i, piece.length), wide, call);
    }
    return counts;
}

#endif
