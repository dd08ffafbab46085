/* 64 coordinates as fp32 in a local array, whatever they are in memory, and back.
 *
 * Plain loops of constant length, which GCC turns into vectors for each unit. Memory may be at any
 * address.
 */
#ifndef MPISIGN_FLOATS64_H
#define MPISIGN_FLOATS64_H

#include "floats.h"

typedef float float_at __attribute__((aligned(1), may_alias));
typedef double double_at __attribute__((aligned(1), may_alias));
typedef uint16_t half_at __attribute__((aligned(1), may_alias));

/* 64 floats of any type as fp32: where they are if they are, else in `room`. No loop is compiled for
 * each type: a call for 64 costs little, and compilation much. */
static __attribute__((noinline)) const float_at *ISA(widen64)(int dtype, const void *data,
                                                              float room[64])
{
    if (dtype == MPISIGN_FP64) {
        for (int i = 0; i < 64; i++)
            room[i] = (float)((const double_at *)data)[i];
    } else if (dtype == MPISIGN_BF16) {
        for (int i = 0; i < 64; i++)
            room[i] = float_of_bf16(((const half_at *)data)[i]);
    } else {
#if defined(MPISIGN_AVX512) /* conversions as those of floats.h but for NaN's other bits */
        for (int i = 0; i < 64; i += 16)
            _mm512_storeu_ps(room + i, _mm512_cvtph_ps(_mm256_loadu_si256(
                                           (const __m256i *)((const char *)data + 2 * i))));
#elif defined(MPISIGN_AVX2)
        for (int i = 0; i < 64; i += 8)
            _mm256_storeu_ps(room + i, _mm256_cvtph_ps(_mm_loadu_si128(
                                           (const __m128i *)((const char *)data + 2 * i))));
#else
        for (int i = 0; i < 64; i++)
            room[i] = float_of_fp16(((const half_at *)data)[i]);
#endif
    }
    return room;
}

MPISIGN_FN const float_at *as_fp32(int dtype, const void *data, float room[64])
{
    return dtype == MPISIGN_FP32 ? (const float_at *)data : ISA(widen64)(dtype, data, room);
}

/* To fp16 or bf16. */
static __attribute__((noinline)) void ISA(narrow64)(int dtype, const float x[64], void *data)
{
    half_at *out = (half_at *)data;
    if (dtype == MPISIGN_BF16) {
        for (int i = 0; i < 64; i++)
            out[i] = bf16_of_float(x[i]);
        return;
    }
#if defined(MPISIGN_AVX512)
    for (int i = 0; i < 64; i += 16)
        _mm256_storeu_si256((__m256i *)(out + i),
                            _mm512_cvtps_ph(_mm512_loadu_ps(x + i),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(MPISIGN_AVX2)
    for (int i = 0; i < 64; i += 8)
        _mm_storeu_si128((__m128i *)(out + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < 64; i++)
        out[i] = fp16_of_float(x[i]);
#endif
}

/* Bit i of a word becomes the top bit of lane i. SSE2 has no shift for each lane: it tests bits. */
#define FROM4(from, step) from, (from) + (step), (from) + 2 * (step), (from) + 3 * (step)
#define TIMES4(one) (one), (one) << 1, (one) << 2, (one) << 3
#if defined(__AVX2__) || defined(MPISIGN_AVX512) || defined(MPISIGN_AVX2) || defined(__aarch64__)
static const uint32_t lane_shift[32] = {FROM4(31, -1), FROM4(27, -1), FROM4(23, -1), FROM4(19, -1),
                                        FROM4(15, -1), FROM4(11, -1), FROM4(7, -1),  FROM4(3, -1)};
#define TOP_BIT(word, i) ((word) << lane_shift[i] & 0x80000000u)
#define WHOLE_LANE(word, i) ((uint32_t)((int32_t)((word) << lane_shift[i]) >> 31))
#else
static const uint32_t lane_bit[32] = {
    TIMES4(1u),       TIMES4(1u << 4),  TIMES4(1u << 8),  TIMES4(1u << 12),
    TIMES4(1u << 16), TIMES4(1u << 20), TIMES4(1u << 24), TIMES4(1u << 28)};
#define TOP_BIT(word, i) (((word)&lane_bit[i]) == lane_bit[i] ? 0x80000000u : 0)
#define WHOLE_LANE(word, i) (((word)&lane_bit[i]) == lane_bit[i] ? 0xffffffffu : 0)
#endif

/* 64 votes of weight w: w, -w where the sign plane has a bit; if `masked`, -0.0 where the mask has
 * none, for y + -0.0 is y. Both planes have 8 bytes here. */
MPISIGN_FN void votes64(int masked, const uint8_t *sign, const uint8_t *mask, float w,
                        float out[64])
{
#if defined(MPISIGN_AVX512)
    const __m512 plus = _mm512_set1_ps(w), minus = _mm512_set1_ps(-w), none = _mm512_set1_ps(-0.0f);
    for (int i = 0; i < 4; i++) {
        __mmask16 s, m;
        memcpy(&s, sign + 2 * i, 2);
        __m512 v = _mm512_mask_blend_ps(s, plus, minus);
        if (masked) {
            memcpy(&m, mask + 2 * i, 2);
            v = _mm512_mask_blend_ps(m, none, v);
        }
        _mm512_storeu_ps(out + 16 * i, v);
    }
#else
    const uint32_t weight = bits_of_float(w);
    const uint64_t votes = masked ? load_word(mask, 8) : ~0ull;
    const uint64_t minus = load_word(sign, 8) | ~votes;
    for (int half = 0; half < 2; half++) {
        const uint32_t s = (uint32_t)(minus >> (32 * half)), v = (uint32_t)(votes >> (32 * half));
        for (int i = 0; i < 32; i++) {
            uint32_t magnitude = masked ? weight & WHOLE_LANE(v, i) : weight;
            out[32 * half + i] = float_of_bits(magnitude ^ TOP_BIT(s, i));
        }
    }
#endif
}

#endif
