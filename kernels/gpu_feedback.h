/* What the two ways of error feedback share: q = rate g + e, the sum of a block, the new residual. */
#ifndef MPISIGN_GPU_FEEDBACK_H
#define MPISIGN_GPU_FEEDBACK_H

#include "gpu_rules.h"

enum { CHUNK = 256 }; /* coordinates of a warp: 8 a lane, the leaves of one tree_sum */

MPISIGN_FN bool is_finite(float x)
{
    return (bits_of_float(x) & 0x7fffffffu) < 0x7f800000u;
}

/* One halving across lanes `step` apart: each keeps half of its values and sends the other half. */
template <int N> MPISIGN_FN void halve(const float *x, float *out, int step, int lane)
{
    bool upper = lane & step;
    UNROLL
    for (int k = 0; k < N; k++) {
        float mine = upper ? x[k + N] : x[k], other = upper ? x[k] : x[k + N];
        out[k] = mine + __shfl_xor_sync(0xffffffffu, other, step);
    }
}

/* The sum of the warp's 256 values, value 8 lane + k in x[k], by halves of 128, 64, ... 1: the order
 * of tree_sum in tests/reference/compressors.py. Addition commutes, so that every lane gets the same bits. */
MPISIGN_FN float tree_sum256(const float x[8])
{
    int lane = threadIdx.x & 31;
    float a[4], b[2], c[1];
    halve<4>(x, a, 16, lane);                            /* 128 */
    halve<2>(a, b, 8, lane);                             /* 64 */
    halve<1>(b, c, 4, lane);                             /* 32 */
    c[0] += __shfl_xor_sync(0xffffffffu, c[0], 2);       /* 16 */
    c[0] += __shfl_xor_sync(0xffffffffu, c[0], 1);       /* 8 */
    c[0] += __shfl_xor_sync(0xffffffffu, c[0], 16);      /* 4: lanes 16, 8 and 4 now stand for k */
    c[0] += __shfl_xor_sync(0xffffffffu, c[0], 8);       /* 2 */
    return c[0] + __shfl_xor_sync(0xffffffffu, c[0], 4); /* 1 */
}

/* Two operations, each rounded. */
template <int DTYPE>
MPISIGN_FN float q_of(float rate, typename Item<DTYPE>::bits g, uint32_t e)
{
    float scaled = rate * widen<DTYPE>(g);
    return scaled + float_of_bits(e);
}

/* q of 8 coordinates; those that do not exist are 0. */
template <int DTYPE>
MPISIGN_FN void load_q(const void *grad, const float *residual, int64_t i, uint32_t present,
                       bool wide, float rate, float q[8])
{
    typedef typename Item<DTYPE>::bits bits;
    const uint32_t *residual_bits = (const uint32_t *)residual;
    if (wide && present == 0xff) {
        bits g[8];
        uint32_t e[8];
        load8_wide((const bits *)grad, i, g);
        load8_wide(residual_bits, i, e);
        UNROLL
        for (int k = 0; k < 8; k++)
            q[k] = q_of<DTYPE>(rate, g[k], e[k]);
    } else {
        UNROLL
        for (int k = 0; k < 8; k++) {
            q[k] = 0.0f;
            if (present >> k & 1)
                q[k] = q_of<DTYPE>(rate, ((const bits *)grad)[i + k], residual_bits[i + k]);
        }
    }
}

MPISIGN_FN float sum_of_sizes(const float q[8])
{
    float size[8];
    UNROLL
    for (int k = 0; k < 8; k++)
        size[k] = is_finite(q[k]) ? float_of_bits(bits_of_float(q[k]) & 0x7fffffffu) : 0.0f;
    return tree_sum256(size);
}

/* A sum that overflows makes all of its block count as not finite: scale 0, no votes. */
MPISIGN_FN float scale_to_keep(float scale)
{
    return is_finite(scale) ? scale : 0.0f;
}

/* Votes on q and leaves e = q - D; where q is not finite, e stays: it is not stored at all.
 * `scale`: not finite where the block's sum overflows. */
MPISIGN_FN uint32_t finish_feedback(const float q[8], float scale, int64_t i, uint32_t present,
                                    bool wide, float *residual, const Call &call)
{
    Ballot b = {0, 0, is_finite(scale) ? 0u : 0xffu};
    uint32_t e[8];
    UNROLL
    for (int k = 0; k < 8; k++) {
        b.negative |= (uint32_t)(q[k] < 0.0f) << k;
        b.zero |= (uint32_t)(q[k] == 0.0f) << k;
        b.nan |= (uint32_t)!is_finite(q[k]) << k;
    }
    Votes v = cast_votes(b, present, i >> 3, call.sign, call.mask, call.zeros, &call.rnd);
    UNROLL
    for (int k = 0; k < 8; k++) {
        float d = v.negative >> k & 1 ? -scale : scale;
        e[k] = bits_of_float(q[k] - (v.votes >> k & 1 ? d : 0.0f));
    }
    store8((uint32_t *)residual, i, present & ~b.nan, wide, e);
    return v.counts;
}

#endif
