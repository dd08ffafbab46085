/* Means of count planes: a byte for each count, and a float of it, where weighted sums would add up
 * planes one by one. */
#include "floats64.h"

enum { MAX_COUNT_PLANES = 8 };

/* Whether weights are 1, 2, 4 ..., so that rows are the bits of a count and all sums whole numbers that
 * fp32 has: the order of the additions does not matter then. */
static int ISA(are_counts)(const mpisign_stack *s, const float *weights, int64_t blocks, float start,
                           float scale)
{
    if (s->mask || blocks != 1 || s->rows > MAX_COUNT_PLANES)
        return 0;
    for (int64_t r = 0; r < s->rows; r++)
        if (weights[r] != (float)(1 << r))
            return 0;
    return start > -0x1p16f && start < 0x1p16f && start == (float)(int)start && scale > 0x1p-30f &&
           scale < 0x1p30f; /* nothing subnormal */
}

/* The counts of 64 coordinates, a byte each. Planes have 8 bytes here. */
MPISIGN_FN void count_bytes64(const uint8_t *plane, int64_t stride, int planes, uint8_t counts[64])
{
#if defined(MPISIGN_AVX512)
    __m512i count = _mm512_setzero_si512();
    for (int k = 0; k < planes; k++)
        count = _mm512_mask_add_epi8(count, load_word(plane + k * stride, 8), count,
                                     _mm512_set1_epi8((char)(1 << k)));
    _mm512_storeu_si512(counts, count);
#elif defined(MPISIGN_AVX2)
    const __m256i byte_of_lane = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                                    0x0303030303030303);
    const __m256i bit_of_lane = _mm256_set1_epi64x((long long)0x8040201008040201);
    for (int half = 0; half < 2; half++) {
        __m256i count = zero_lanes(), bit = _mm256_set1_epi8(1);
        for (int k = 0; k < planes; k++) {
            int32_t word;
            memcpy(&word, plane + k * stride + 4 * half, 4);
            __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of_lane);
            v = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit_of_lane), bit_of_lane);
            count = _mm256_or_si256(count, _mm256_and_si256(v, bit));
            bit = _mm256_add_epi8(bit, bit);
        }
        _mm256_storeu_si256((__m256i *)counts + half, count);
    }
#else
    for (int i = 0; i < 8; i++) {
        uint64_t count = 0;
        for (int k = 0; k < planes; k++) {
            uint64_t bits = plane[k * stride + i] * 0x0101010101010101ull & 0x8040201008040201ull;
            bits = (bits + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
            count |= bits << k;
        }
        store_word(counts + 8 * i, count, 8);
    }
#endif
}

/* to = (half - count) twice: the halves and doubles of `most - 2 count` and its scale are exact, so the
 * product is rounded as theirs. */
MPISIGN_FN void mean64(const uint8_t *plane, int64_t stride, int planes, float half, float twice,
                       int stream, float *to)
{
    uint8_t counts[64] __attribute__((aligned(64)));
    count_bytes64(plane, stride, planes, counts);
#if defined(MPISIGN_AVX2)
    MPISIGN_UNROLL
    for (int i = 0; i < 64; i += 8) {
        const __m256i count = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(counts + i)));
        const __m256 mean = _mm256_mul_ps(
            _mm256_sub_ps(_mm256_set1_ps(half), _mm256_cvtepi32_ps(count)), _mm256_set1_ps(twice));
        if (stream)
            _mm256_stream_ps(to + i, mean);
        else
            _mm256_storeu_ps(to + i, mean);
    }
#else
    float mean[64] __attribute__((aligned(64)));
    for (int i = 0; i < 64; i++)
        mean[i] = (half - (float)(int32_t)counts[i]) * twice;
    if (stream)
        for (int i = 0; i < 64; i += 16)
            stream_line((uint8_t *)(to + i), (const uint8_t *)(mean + i));
    else
        memcpy(to, mean, sizeof mean);
#endif
}

MPISIGN_FN void mean_of_planes(const mpisign_stack *s, int planes, int64_t first, int64_t last,
                               float half, float twice, int stream, float *out)
{
    int64_t at = first;
    for (; at + 64 <= last; at += 64)
        mean64(s->sign + at / 8, s->row_stride, planes, half, twice, stream, out + at - first);
    if (at == last)
        return;
    uint8_t rows[MAX_COUNT_PLANES][8] = {{0}};
    float mean[64];
    for (int k = 0; k < planes; k++)
        memcpy(rows[k], s->sign + k * s->row_stride + at / 8, (size_t)((last - at + 7) / 8));
    mean64(rows[0], 8, planes, half, twice, 0, mean);
    memcpy(out + at - first, mean, (size_t)(last - at) * sizeof *mean);
}

/* Coordinates [first, last) of the mean of counts, to `out`. */
static ALONE void ISA(mean_of_counts)(const mpisign_stack *s, int64_t first, int64_t last,
                                      float start, float scale, float *out, int stream)
{
    const float half = (start + (float)((1 << s->rows) - 1)) * 0.5f, twice = scale + scale;
#define PLANES(n)                                                                                  \
    case n:                                                                                        \
        if (stream)                                                                                \
            mean_of_planes(s, n, first, last, half, twice, 1, out);                                \
        else                                                                                       \
            mean_of_planes(s, n, first, last, half, twice, 0, out);                                \
        return;
    switch (s->rows) { UP_TO_8(PLANES) }
#undef PLANES
}
