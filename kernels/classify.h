/* Floats to bits: the signs of 64 at a time, and which are zeros or NaNs. */
#ifndef MPISIGN_CLASSIFY_H
#define MPISIGN_CLASSIFY_H

#include "lanes.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

/* 64 coordinates, one bit each. */
typedef struct {
    uint64_t sign, zero, nan;
} words64;

#if !defined(MPISIGN_AVX512) && !defined(MPISIGN_AVX2)
/* The top bits of 64 bytes, first byte lowest. */
MPISIGN_FN uint64_t top_bits(const uint8_t *bytes)
{
#if defined(__aarch64__)
    const uint8x16_t weights = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
    uint8x16_t v[4];
    for (int i = 0; i < 4; i++) {
        int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(bytes + 16 * i));
        v[i] = vandq_u8(vreinterpretq_u8_s8(vshrq_n_s8(x, 7)), weights);
    }
    uint8x16_t pairs = vpaddq_u8(vpaddq_u8(v[0], v[1]), vpaddq_u8(v[2], v[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
#else
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t x = 0;
        for (int k = 0; k < 8; k++)
            x |= (uint64_t)bytes[8 * i + k] << (8 * k);
        word |= ((x >> 7 & 0x0101010101010101ull) * 0x0102040810204080ull >> 56) << (8 * i);
    }
    return word;
#endif
}
#endif

/* The classes of 64 floats are told by their bit patterns: no rounding mode, no flush to zero.
 * Zeros and NaNs are rare, so they are told apart only where there is one: both have
 * magnitude - 1 >= infinity as unsigned integers. */
#if defined(MPISIGN_AVX512)
#define DEFINE_CLASSIFY(BITS, PER, UINT, NAME, INFINITY_BITS)                                      \
    MPISIGN_FN words64 classify64_##NAME(const void *data)                                         \
    {                                                                                              \
        const __m512i magnitude = _mm512_set1_epi##BITS((long long)((UINT)~(UINT)0 >> 1));         \
        const __m512i infinity = _mm512_set1_epi##BITS((long long)(INFINITY_BITS));                \
        const __m512i one = _mm512_set1_epi##BITS(1);                                              \
        words64 w = {0, 0, 0};                                                                     \
        uint64_t odd = 0;                                                                          \
        __m512i x[64 / PER];                                                                       \
        for (int i = 0; i < 64 / PER; i++) {                                                       \
            x[i] = _mm512_loadu_si512((const char *)data + 64 * i);                                \
            __m512i a = _mm512_and_si512(x[i], magnitude);                                         \
            odd |= (uint64_t)_mm512_cmp_epu##BITS##_mask(_mm512_sub_epi##BITS(a, one), infinity,   \
                                                         _MM_CMPINT_NLT);                          \
            w.sign |= (uint64_t)_mm512_movepi##BITS##_mask(x[i]) << (PER * i);                     \
        }                                                                                          \
        if (__builtin_expect(odd != 0, 0))                                                         \
            for (int i = 0; i < 64 / PER; i++) {                                                   \
                __m512i a = _mm512_and_si512(x[i], magnitude);                                     \
                w.zero |= (uint64_t)_mm512_testn_epi##BITS##_mask(a, a) << (PER * i);              \
                w.nan |= (uint64_t)_mm512_cmpgt_epu##BITS##_mask(a, infinity) << (PER * i);        \
            }                                                                                      \
        return w;                                                                                  \
    }
DEFINE_CLASSIFY(32, 16, uint32_t, fp32, 0x7f800000u)
DEFINE_CLASSIFY(16, 32, uint16_t, fp16, 0x7c00u)
DEFINE_CLASSIFY(16, 32, uint16_t, bf16, 0x7f80u)
DEFINE_CLASSIFY(64, 8, uint64_t, fp64, 0x7ff0000000000000ull)
#else
#if defined(MPISIGN_AVX2)
MPISIGN_FN uint64_t sign_bits_32(const uint32_t *x)
{
    uint64_t w = 0;
    for (int i = 0; i < 8; i++)
        w |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_loadu_ps((const float *)(x + 8 * i)))
             << (8 * i);
    return w;
}
MPISIGN_FN uint64_t sign_bits_16(const uint16_t *x)
{
    uint64_t w = 0;
    for (int i = 0; i < 2; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(x + 32 * i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(x + 32 * i + 16));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
        w |= (uint64_t)(uint32_t)_mm256_movemask_epi8(both) << (32 * i);
    }
    return w;
}
MPISIGN_FN uint64_t sign_bits_64(const uint64_t *x)
{
    uint64_t w = 0;
    for (int i = 0; i < 16; i++)
        w |= (uint64_t)(uint32_t)_mm256_movemask_pd(_mm256_loadu_pd((const double *)(x + 4 * i)))
             << (4 * i);
    return w;
}
#else
#define DEFINE_SIGN_BITS(BITS)                                                                     \
    MPISIGN_FN uint64_t sign_bits_##BITS(const uint##BITS##_t *x)                                  \
    {                                                                                              \
        uint8_t bytes[64];                                                                         \
        for (int i = 0; i < 64; i++)                                                               \
            bytes[i] = (uint8_t)(x[i] >> (BITS - 8));                                              \
        return top_bits(bytes);                                                                    \
    }
DEFINE_SIGN_BITS(16)
DEFINE_SIGN_BITS(32)
DEFINE_SIGN_BITS(64)
#endif

#define DEFINE_CLASSIFY(BITS, NAME, INFINITY_BITS)                                                 \
    MPISIGN_FN words64 classify64_##NAME(const void *data)                                         \
    {                                                                                              \
        typedef uint##BITS##_t word;                                                               \
        typedef int##BITS##_t signed_word;                                                         \
        const word magnitude = (word)((word)~(word)0 >> 1);                                        \
        word x[64];                                                                                \
        word least = magnitude, most = 0;                                                          \
        memcpy(x, data, sizeof x);                                                                 \
        for (int i = 0; i < 64; i++) {                                                             \
            signed_word a = (signed_word)(x[i] & magnitude);                                       \
            least = (word)(a < (signed_word)least ? a : (signed_word)least);                       \
            most = (word)(a > (signed_word)most ? a : (signed_word)most);                          \
        }                                                                                          \
        words64 w = {sign_bits_##BITS(x), 0, 0};                                                   \
        if (__builtin_expect(least == 0 || most > (word)(INFINITY_BITS), 0)) {                     \
            word zero[64], nan[64];                                                                \
            for (int i = 0; i < 64; i++) {                                                         \
                word a = (word)(x[i] & magnitude);                                                 \
                zero[i] = (word)(a - 1); /* the top bit is set for 0 alone */                      \
                nan[i] = (word)((word)(INFINITY_BITS) - a);                                        \
            }                                                                                      \
            w.zero = sign_bits_##BITS(zero);                                                       \
            w.nan = sign_bits_##BITS(nan);                                                         \
        }                                                                                          \
        return w;                                                                                  \
    }
DEFINE_CLASSIFY(32, fp32, 0x7f800000u)
DEFINE_CLASSIFY(16, fp16, 0x7c00u)
DEFINE_CLASSIFY(16, bf16, 0x7f80u)
DEFINE_CLASSIFY(64, fp64, 0x7ff0000000000000ull)
#endif

MPISIGN_FN words64 classify64(int dtype, const void *data)
{
    switch (dtype) {
    case MPISIGN_FP32: return classify64_fp32(data);
    case MPISIGN_FP16: return classify64_fp16(data);
    case MPISIGN_BF16: return classify64_bf16(data);
    default: return classify64_fp64(data);
    }
}

MPISIGN_FN int item_size(int dtype)
{
    return dtype == MPISIGN_FP64 ? 8 : dtype == MPISIGN_FP32 ? 4 : 2;
}

#endif
