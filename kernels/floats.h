/* Floats as bit patterns, and the arithmetic of the fused kernels: the same bits on CPU and GPU.
 *
 * Everything computes in fp32 by single IEEE operations; compile without contraction into
 * multiply-adds (-ffp-contract=off, --fmad=false) and without flushing of subnormals.
 */
#ifndef MPISIGN_FLOATS_H
#define MPISIGN_FLOATS_H

#include "shared.h"

MPISIGN_FN float float_of_bits(uint32_t bits)
{
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float x;
    memcpy(&x, &bits, 4);
    return x;
#endif
}

MPISIGN_FN uint32_t bits_of_float(float x)
{
#ifdef __CUDACC__
    return __float_as_uint(x);
#else
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
#endif
}

MPISIGN_FN float float_of_bf16(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

/* A choice without a branch: around a rounded operation GCC makes one of ?:, and no vector. */
MPISIGN_FN uint32_t choose_bits(int condition, uint32_t yes, uint32_t no)
{
#ifdef __CUDACC__
    return condition ? yes : no;
#else
    uint32_t all = 0u - (uint32_t)condition;
    return (yes & all) | (no & ~all);
#endif
}

/* Exact: the exponent is moved by a multiplication, which also makes subnormals normal. */
MPISIGN_FN float float_of_fp16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    float finite = float_of_bits(magnitude << 13) * 0x1p112f;
    uint32_t special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    return float_of_bits(sign | choose_bits(magnitude >= 0x7c00u, special, bits_of_float(finite)));
}

/* To nearest, ties to even; NaN to the quiet NaN 0x7fc0. */
MPISIGN_FN uint16_t bf16_of_float(float x)
{
    uint32_t bits = bits_of_float(x);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

/* To nearest, ties to even; NaN to the quiet NaN 0x7e00. */
MPISIGN_FN uint16_t fp16_of_float(float x)
{
    uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u, a = bits & 0x7fffffffu;
    /* Below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the low end. */
    uint32_t tiny = bits_of_float(float_of_bits(a) + 0.5f) - 0x3f000000u;
    uint32_t normal = (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13;
    uint32_t h = choose_bits(a < 0x38800000u, tiny, normal);
    h = choose_bits(a >= 0x47800000u, 0x7c00u, h);
    return (uint16_t)(sign | choose_bits(a > 0x7f800000u, 0x7e00u, h));
}

/* b m + (1 - b) g, each product rounded: `c` is 1 - b rounded to fp32. */
MPISIGN_FN float blend(float b, float m, float c, float g)
{
    float x = b * m, y = c * g;
    return x + y;
}

/* What sparsign (Magnitude Matters) does with u < min(1, p), p = budget |g|, in two looks.
 * The first 16 random bits decide all but one case in 65,536, where 24 more are drawn. */
enum { SPARSIGN_NO = 0, SPARSIGN_YES = 1, SPARSIGN_DRAW_MORE = 2 };

MPISIGN_FN int sparsign_first(float p, uint32_t half, float *rest)
{
    float t = p * 65536.0f, h = (float)half;
    *rest = t - h;
    return t >= h + 1.0f ? SPARSIGN_YES : t > h ? SPARSIGN_DRAW_MORE : SPARSIGN_NO;
}

MPISIGN_FN int sparsign_second(float rest, uint32_t word)
{
    return (float)(word >> 8) < rest * 16777216.0f;
}

#endif
