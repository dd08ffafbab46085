/* The rules that decide each coordinate by itself: sign, signum, lion, sparsign. 8 at a time. */
#ifndef MPISIGN_GPU_RULES_H
#define MPISIGN_GPU_RULES_H

#include "gpu.h"

enum Rule { SIGN = 0, SIGNUM = 1, LION = 2, SPARSIGN = 3 };

/* Units of 8 that a thread has in flight, 64 to 128 bytes of loads. */
template <int RULE> constexpr int units_of = RULE == SIGN ? 4 : 2;

/* A row of the table of pieces (mpisign/cuda/kernels.py). */
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

template <int DTYPE, int MOMENTUM> struct Unit {
    typename Item<DTYPE>::bits g[8];
    typename Item<MOMENTUM>::bits m[8];
};

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

/* v is voted on, `next` is the new momentum; a NaN in either leaves the momentum and does not vote. */
template <int RULE, int DTYPE, int MOMENTUM>
MPISIGN_FN Ballot momentum_step(Unit<DTYPE, MOMENTUM> &unit, const Call &call)
{
    typename Item<MPISIGN_FP32>::bits voted[8];
    UNROLL
    for (int k = 0; k < 8; k++) {
        float g = widen<DTYPE>(unit.g[k]), m = widen<MOMENTUM>(unit.m[k]), v, next;
        if constexpr (RULE == SIGNUM) {
            next = blend(call.a, m, call.b, g);
            v = widen<MOMENTUM>(narrow<MOMENTUM>(next));
        } else {
            v = blend(call.a, m, call.b, g);
            next = blend(call.c, m, call.d, g);
        }
        bool good = v == v && next == next;
        voted[k] = good ? bits_of_float(v) : 0x7fc00000u;
        unit.m[k] = good ? narrow<MOMENTUM>(next) : unit.m[k];
    }
    return ballot_of_bits<MPISIGN_FP32>(voted);
}

/* `first`: the unit's place in the streams, in units of 8 coordinates. */
template <int DTYPE>
MPISIGN_FN uint32_t sparsign_step(const typename Item<DTYPE>::bits g[8], uint32_t present,
                                  uint64_t first, int64_t byte, const Call &call)
{
    uint32_t halves[4], votes = 0, negative = 0, zero = 0, nan = 0;
    philox4x32_10(first | MPISIGN_HALVES, (uint32_t)call.rnd.step, call.rnd.stream, call.rnd.seed,
                  halves);
    UNROLL
    for (int k = 0; k < 8; k++) {
        float x = widen<DTYPE>(g[k]), size = float_of_bits(bits_of_float(x) & 0x7fffffffu), rest;
        if (!(present >> k & 1))
            continue;
        if (x != x) {
            nan |= 1u << k;
            continue;
        }
        zero |= (uint32_t)(x == 0.0f) << k;
        negative |= (uint32_t)(x < 0.0f) << k;
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
    if (present) {
        call.sign[byte] = (uint8_t)(negative & votes);
        if (call.mask)
            call.mask[byte] = (uint8_t)votes;
    }
    return (uint32_t)__popc(zero) | (uint32_t)__popc(nan) << 16;
}

template <int RULE, int DTYPE, int MOMENTUM>
MPISIGN_FN uint32_t finish_unit(Unit<DTYPE, MOMENTUM> &unit, const Piece &piece, int64_t i,
                                uint32_t present, bool wide, const Call &call)
{
    typedef typename Item<MOMENTUM>::bits momentum_bits;
    int64_t byte = piece.byte + (i >> 3);
    if constexpr (RULE == SPARSIGN) {
        return sparsign_step<DTYPE>(unit.g, present, call.rnd.byte_offset + (uint64_t)byte, byte,
                                    call);
    } else {
        Ballot ballot;
        if constexpr (RULE == SIGN) {
            ballot = ballot_of_bits<DTYPE>(unit.g);
        } else {
            ballot = momentum_step<RULE>(unit, call);
            store8((momentum_bits *)piece.momentum, i, present, wide, unit.m);
        }
        return cast_votes(ballot, present, byte, call.sign, call.mask, call.zeros, &call.rnd).counts;
    }
}

/* Block `block` of those that work on this piece; returns this thread's counts. */
template <int RULE, int DTYPE, int MOMENTUM>
MPISIGN_FN uint32_t pack_block(const Piece &piece, int64_t block, const Call &call)
{
    typedef typename Item<DTYPE>::bits bits;
    typedef typename Item<MOMENTUM>::bits momentum_bits;
    constexpr int units = units_of<RULE>;
    constexpr bool has_momentum = RULE == SIGNUM || RULE == LION;
    const bits *g = (const bits *)piece.data;
    const momentum_bits *m = (const momentum_bits *)piece.momentum;
    int64_t first = block * (8 * units * THREADS);
    bool wide = is_aligned(g) && (!has_momentum || is_aligned(m));
    Unit<DTYPE, MOMENTUM> unit[units];
    uint32_t counts = 0;
    if (wide && first + 8 * units * THREADS <= piece.length) {
        /* No branch between the loads: all are under way before the first is needed. */
        UNROLL
        for (int u = 0; u < units; u++) {
            int64_t i = first + 8 * (u * THREADS + (int64_t)threadIdx.x);
            load8_wide(g, i, unit[u].g);
            if constexpr (has_momentum)
                load8_wide(m, i, unit[u].m);
        }
    } else {
        UNROLL
        for (int u = 0; u < units; u++) {
            int64_t i = first + 8 * (u * THREADS + (int64_t)threadIdx.x);
            uint32_t present = present8(i, piece.length);
            load8_narrow(g, i, present, unit[u].g);
            if constexpr (has_momentum)
                load8_narrow(m, i, present, unit[u].m);
        }
    }
    UNROLL
    for (int u = 0; u < units; u++) {
        int64_t i = first + 8 * (u * THREADS + (int64_t)threadIdx.x);
        counts += finish_unit<RULE>(unit[u], piece, i, present8(i, piece.length), wide, call);
    }
    return counts;
}

#endif
