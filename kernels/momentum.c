/* Momentum and pack in one pass: signum (Bernstein et al. 2019) and lion (Chen et al. 2023).
 *
 * signum: m = b m + c g; votes on m as stored. parameters b, c = 1 - b.
 * lion:   votes on b1 m + c1 g; m = b2 m + c2 g. parameters b1, c1, b2, c2.
 * Where NaN or infinity comes out, m stays as it was: it would be so for ever.
 */
#include "floats64.h"

/* Any values: writes the new momentum of 64 coordinates over the old; `v` is what is voted on. */
MPISIGN_FN void any_momentum64(int lion, int m_dtype, const float parameters[4], const float_at *g,
                           void *momentum, float v[64])
{
    const float b1 = parameters[0], c1 = parameters[1];
    const float b2 = lion ? parameters[2] : b1, c2 = lion ? parameters[3] : c1;
    /* From here on a magnitude is infinite, or becomes so in bf16. */
    const uint32_t most = m_dtype == MPISIGN_BF16 ? 0x7f7f8000u : 0x7f800000u;
    float m[64];
    uint32_t stored[64];
    if (m_dtype == MPISIGN_FP32)
        memcpy(m, momentum, sizeof m);
    else
        for (int i = 0; i < 64; i++)
            m[i] = float_of_bf16(((half_at *)momentum)[i]);
    for (int i = 0; i < 64; i++) {
        float new = blend(b2, m[i], c2, g[i]);
        uint32_t bits = bits_of_float(new);
        if (m_dtype == MPISIGN_BF16) /* bf16_of_float, but a NaN is dealt with below */
            bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
        float voted = lion ? blend(b1, m[i], c1, g[i]) : float_of_bits(bits);
        int nan = lion ? (new != new) | (voted != voted) : new != new;
        int keep = (bits_of_float(new) & 0x7fffffffu) >= most; /* NaN too */
        v[i] = nan ? __builtin_nanf("") : voted;
        stored[i] = (lion ? nan | keep : keep) ? bits_of_float(m[i]) : bits;
    }
    if (m_dtype == MPISIGN_FP32)
        memcpy(momentum, stored, sizeof stored);
    else
        for (int i = 0; i < 64; i++)
            ((half_at *)momentum)[i] = (uint16_t)(stored[i] >> 16);
}

/* As any_momentum64 where all that comes out is finite, and every vote not 0; else returns 0 and writes
 * nothing. `signs`: those of the votes. */
#if defined(MPISIGN_AVX2)
MPISIGN_FN int quick_momentum64(int lion, int m_dtype, const float parameters[4], const float_at *g,
                                void *momentum, uint64_t *signs)
{
    const int bf16 = m_dtype == MPISIGN_BF16;
    const __m256 b1 = _mm256_set1_ps(parameters[0]), c1 = _mm256_set1_ps(parameters[1]);
    const __m256 b2 = _mm256_set1_ps(parameters[lion ? 2 : 0]);
    const __m256 c2 = _mm256_set1_ps(parameters[lion ? 3 : 1]);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256i of_stored = _mm256_set1_epi32(bf16 ? 0x7fff0000 : 0x7fffffff);
    __m256i largest = zero_lanes(), most = zero_lanes(), least = magnitude, stored[8];
    *signs = 0;
    MPISIGN_UNROLL
    for (int i = 0; i < 8; i++) {
        const __m128i *half = (const __m128i *)momentum + i;
        const __m256 m = bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(
                                    _mm256_cvtepu16_epi32(_mm_loadu_si128(half)), 16))
                              : _mm256_loadu_ps((const float *)momentum + 8 * i);
        const __m256 x = _mm256_loadu_ps((const float *)g + 8 * i);
        const __m256 new = _mm256_add_ps(_mm256_mul_ps(b2, m), _mm256_mul_ps(c2, x));
        __m256i bits = _mm256_castps_si256(new), vote, of_vote;
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
        if (bf16) { /* as bf16_of_float; the lower half is junk */
            const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
            bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        }
        vote = bits;
        of_vote = _mm256_and_si256(bits, of_stored);
        if (lion) {
            vote = _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(b1, m), _mm256_mul_ps(c1, x)));
            of_vote = _mm256_and_si256(vote, magnitude);
            most = _mm256_max_epi32(most, of_vote);
        }
        least = _mm256_min_epi32(least, of_vote);
        *signs |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(vote)) << (8 * i);
        stored[i] = bf16 ? _mm256_srli_epi32(bits, 16) : bits;
    }
    /* From here on a magnitude is infinite, or becomes so in bf16. */
    const __m256i infinite = _mm256_set1_epi32(bf16 ? 0x7f7f7fff : 0x7f7fffff);
    const __m256i nan = _mm256_set1_epi32(0x7f800000);
    __m256i odd = _mm256_or_si256(_mm256_cmpgt_epi32(largest, infinite),
                                  _mm256_cmpeq_epi32(least, zero_lanes()));
    odd = _mm256_or_si256(odd, _mm256_cmpgt_epi32(most, nan));
    if (__builtin_expect(!_mm256_testz_si256(odd, odd), 0))
        return 0;
    MPISIGN_UNROLL
    for (int i = 0; i < 8; i++) {
        __m256i *to = (__m256i *)momentum + i;
        if (!bf16)
            _mm256_storeu_si256(to, stored[i]);
        else if (i < 4) /* packs the halves of a vector by themselves */
            _mm256_storeu_si256(to, _mm256_permute4x64_epi64(
                                        _mm256_packus_epi32(stored[2 * i], stored[2 * i + 1]),
                                        0xd8));
    }
    return 1;
}
#else
MPISIGN_FN int quick_momentum64(int lion, int m_dtype, const float parameters[4], const float_at *g,
                                void *momentum, uint64_t *signs)
{
    (void)lion, (void)m_dtype, (void)parameters, (void)g, (void)momentum, (void)signs;
    return 0;
}
#endif

/* Writes the new momentum of 64 coordinates over the old; the classes of what is voted on. */
MPISIGN_FN words64 momentum64(int lion, int m_dtype, const float parameters[4], const float_at *g,
                              void *momentum)
{
    words64 w = {0, 0, 0};
    float v[64];
    if (quick_momentum64(lion, m_dtype, parameters, g, momentum, &w.sign))
        return w;
    any_momentum64(lion, m_dtype, parameters, g, momentum, v);
    return classify64_fp32(v);
}

/* Coordinates [first, last) of a piece, first a multiple of 64. */
MPISIGN_FN void pack_momentum(int lion, int m_dtype, const mpisign_piece *piece, int64_t first,
                              int64_t last, const float parameters[4], uint8_t *sign,
                              uint8_t *mask, int zeros, const mpisign_random *rnd,
                              mpisign_census *census)
{
    const int dtype = (int)piece->dtype;
    const int64_t size = item_size(dtype), m_size = item_size(m_dtype);
    const char *data = (const char *)piece->data;
    char *momentum = (char *)piece->momentum;
    const float p[4] = {parameters[0], parameters[1], parameters[2], parameters[3]};
    random_words random = {.rnd = rnd, .first = 1, .last = 0};
    float room[64];
    int64_t at = first;
    for (; at + 64 <= last; at += 64) {
        const float_at *g = as_fp32(dtype, data + at * size, room);
        settle_word(momentum64(lion, m_dtype, p, g, momentum + at * m_size), ~0ull, piece->byte + at / 8, 8, sign, mask, zeros, &random,
                    census);
    }
    if (at == last)
        return;
    const size_t count = (size_t)(last - at);
    uint64_t g[64] = {0}, m[64] = {0};
    memcpy(g, data + at * size, count * (size_t)size);
    memcpy(m, momentum + at * m_size, count * (size_t)m_size);
    const words64 w = momentum64(lion, m_dtype, p, as_fp32(dtype, g, room), m);
    memcpy(momentum + at * m_size, m, count * (size_t)m_size);
    settle_word(w, valid_word(last - at), piece->byte + at / 8,
                (int)((last - at + 7) / 8), sign, mask, zeros, &random, census);
}

#define DEFINE_MOMENTUM(NAME, LION)                                                                \
    static void ISA(pack_words_##NAME)(                                                            \
        const mpisign_piece *piece, int64_t first, int64_t last, const float parameters[4],        \
        uint8_t *sign, uint8_t *mask, int zeros, const mpisign_random *rnd,                        \
        mpisign_census *census)                                                                    \
    {                                                                                              \
        if (piece->momentum_dtype == MPISIGN_BF16)                                                 \
            pack_momentum(LION, MPISIGN_BF16, piece, first, last, parameters, sign, mask, zeros,   \
                          rnd, census);                                                            \
        else                                                                                       \
            pack_momentum(LION, MPISIGN_FP32, piece, first, last, parameters, sign, mask, zeros,   \
                          rnd, census);                                                            \
    }

DEFINE_MOMENTUM(signum, 0)
DEFINE_MOMENTUM(lion, 1)
