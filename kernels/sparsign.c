/* Stochastic ternary pack (sparsign, Magnitude Matters): a coordinate votes with probability
 * min(1, budget |g|). 16 random bits each decide all but one case in 65,536. */
#include "floats64.h"

/* Whether a coordinate votes whose 16 bits are next to its probability: exactly, and rarely. */
static __attribute__((noinline)) int ISA(sparsign_exact)(float p, uint32_t half, uint64_t place,
                                                         const mpisign_random *rnd)
{
    uint32_t words[4];
    float rest;
    int first = sparsign_first(p, half, &rest);
    if (first != SPARSIGN_DRAW_MORE)
        return first == SPARSIGN_YES;
    philox4x32_10(place / 4 | MPISIGN_WORDS, (uint32_t)rnd->step, rnd->stream, rnd->seed, words);
    return sparsign_second(rest, words[place % 4]);
}

/* The classes of 64 floats, and bits of the coordinates whose 16 random bits are below the whole part
 * of t = 65536 p, which vote, and of those where they are equal, which `sparsign_exact` decides. A NaN
 * may be either. */
MPISIGN_FN words64 below64(const float_at *g, float budget, const uint16_t half[64],
                           uint64_t *below, uint64_t *equal)
{
    words64 w = {0, 0, 0};
#if defined(MPISIGN_AVX512)
    const __m512 b = _mm512_set1_ps(budget), all = _mm512_set1_ps(65536.0f);
    uint32_t odd = 0;
    *below = *equal = 0;
    for (int i = 0; i < 64; i += 32) {
        __m512 x = _mm512_loadu_ps(g + i), y = _mm512_loadu_ps(g + i + 16);
        __m512 p = _mm512_mul_ps(_mm512_abs_ps(x), b), q = _mm512_mul_ps(_mm512_abs_ps(y), b);
        /* NaN and what is too big become all ones, and 65535 by saturation. */
        __m512i m = _mm512_cvttps_epu32(_mm512_mul_ps(p, all));
        __m512i n = _mm512_cvttps_epu32(_mm512_mul_ps(q, all));
        __m512i whole = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtusepi32_epi16(m)),
                                           _mm512_cvtusepi32_epi16(n), 1);
        __m512i h = _mm512_loadu_si512(half + i);
        *below |= (uint64_t)_mm512_cmplt_epu16_mask(h, whole) << i;
        *equal |= (uint64_t)_mm512_cmpeq_epu16_mask(h, whole) << i;
        odd |= _mm512_cmple_epu16_mask(_mm512_add_epi16(whole, _mm512_set1_epi16(1)),
                                       _mm512_set1_epi16(1));
        w.sign |= (uint64_t)_mm512_movepi32_mask(_mm512_castps_si512(x)) << i;
        w.sign |= (uint64_t)_mm512_movepi32_mask(_mm512_castps_si512(y)) << (i + 16);
    }
    if (odd) /* only 0 and 65535 can come of zeros and NaNs */
        w = classify64_fp32(g);
#elif defined(MPISIGN_AVX2)
    const __m256 b = _mm256_set1_ps(budget), all = _mm256_set1_ps(65536.0f);
    const __m256 top = _mm256_set1_ps(65535.0f); /* NaN becomes this, too */
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = zero_lanes(), least = magnitude;
    *below = *equal = 0;
    for (int i = 0; i < 64; i += 32) {
        __m256i not_below[2], same[2];
        MPISIGN_UNROLL
        for (int j = 0; j < 2; j++) {
            __m256i t[2];
            MPISIGN_UNROLL
            for (int k = 0; k < 2; k++) {
                const int at = i + 16 * j + 8 * k;
                const __m256 x = _mm256_loadu_ps((const float *)g + at);
                const __m256i a = _mm256_and_si256(_mm256_castps_si256(x), magnitude);
                const __m256 p = _mm256_mul_ps(b, _mm256_castsi256_ps(a));
                t[k] = _mm256_cvttps_epi32(_mm256_min_ps(_mm256_mul_ps(p, all), top));
                least = _mm256_min_epi32(least, a);
                most = _mm256_max_epi32(most, a);
                w.sign |= (uint64_t)(uint32_t)_mm256_movemask_ps(x) << at;
            }
            const __m256i whole = _mm256_permute4x64_epi64(_mm256_packus_epi32(t[0], t[1]), 0xd8);
            const __m256i h = _mm256_loadu_si256((const __m256i *)(half + i + 16 * j));
            same[j] = _mm256_cmpeq_epi16(h, whole);
            not_below[j] = _mm256_cmpeq_epi16(_mm256_max_epu16(h, whole), h);
        }
        const __m256i n = _mm256_permute4x64_epi64(
            _mm256_packs_epi16(not_below[0], not_below[1]), 0xd8);
        const __m256i s = _mm256_permute4x64_epi64(_mm256_packs_epi16(same[0], same[1]), 0xd8);
        *below |= (uint64_t)~(uint32_t)_mm256_movemask_epi8(n) << i;
        *equal |= (uint64_t)(uint32_t)_mm256_movemask_epi8(s) << i;
    }
    const __m256i odd = _mm256_or_si256(
        _mm256_cmpeq_epi32(least, zero_lanes()),
        _mm256_cmpgt_epi32(most, _mm256_set1_epi32(0x7f800000)));
    if (__builtin_expect(!_mm256_testz_si256(odd, odd), 0))
        w = classify64_fp32(g);
#else
    uint16_t order[64];
    for (int i = 0; i < 64; i++) {
        float p = budget * __builtin_fabsf(g[i]), t = p * 65536.0f;
        uint16_t whole = (uint16_t)(int32_t)(t < 65535.0f ? t : 65535.0f);
        order[i] = half[i] < whole ? 0x8001u : half[i] > whole;
    }
    words64 o = classify64_bf16(order);
    *below = o.sign;
    *equal = o.zero;
    w = classify64_fp32(g);
#endif
    return w;
}

MPISIGN_FN void sparsign64(const float_at *g, float budget, const uint16_t half[64],
                           uint64_t valid, int64_t byte, int bytes, uint8_t *sign, uint8_t *mask,
                           const mpisign_random *rnd, mpisign_census *census)
{
    uint64_t below, equal;
    words64 w = below64(g, budget, half, &below, &equal);
    uint64_t zero = w.zero & valid, nan = w.nan & valid;
    uint64_t votes = below & valid & ~nan;
    for (uint64_t left = equal & valid & ~nan; left; left &= left - 1) {
        int i = __builtin_ctzll(left);
        uint64_t place = 8 * (rnd->byte_offset + (uint64_t)byte) + (uint64_t)i;
        float p = budget * __builtin_fabsf(g[i]);
        votes |= (uint64_t)ISA(sparsign_exact)(p, half[i], place, rnd) << i;
    }
    census->zeros += __builtin_popcountll(zero);
    census->nans += __builtin_popcountll(nan);
    store_word(sign + byte, votes & w.sign, bytes);
    store_word(mask + byte, votes, bytes);
}

enum { BATCH_HALVES = RANDOM_BATCH_BYTES / 2 };

/* Coordinates [first, last) of a piece, first a multiple of 64. */
MPISIGN_FN void pack_sparsign(const mpisign_piece *piece, int64_t first, int64_t last, float budget,
                              uint8_t *sign, uint8_t *mask, const mpisign_random *rnd,
                              mpisign_census *census)
{
    const int dtype = (int)piece->dtype;
    const int64_t size = item_size(dtype);
    const char *data = (const char *)piece->data;
    const philox_keys keys = keys_of(rnd);
    uint16_t half[BATCH_HALVES];
    float room[64];
    for (int64_t start = first; start < last; start += BATCH_HALVES) {
        /* A block has 8 halves, and a byte of the planes 8 coordinates. */
        const uint64_t block = rnd->byte_offset + (uint64_t)(piece->byte + start / 8);
        const int64_t end = last - start < BATCH_HALVES ? last : start + BATCH_HALVES;
        int64_t at = start;
        philox_batch(&keys, block | MPISIGN_HALVES, (uint8_t *)half);
        for (; at + 64 <= end; at += 64) {
            PREFETCH(data + at * size + 4096);
            sparsign64(as_fp32(dtype, data + at * size, room), budget, half + (at - start), ~0ull,
                       piece->byte + at / 8, 8, sign, mask, rnd, census);
        }
        if (at == end)
            continue;
        uint64_t padded[64] = {0};
        memcpy(padded, data + at * size, (size_t)((end - at) * size));
        sparsign64(as_fp32(dtype, padded, room), budget, half + (at - start), valid_word(end - at),
                   piece->byte + at / 8, (int)((end - at + 7) / 8), sign, mask, rnd, census);
    }
}

/* parameters: budget. Always two planes; `zeros` does not matter, for zeros never vote. */
static void ISA(pack_words_sparsign)(const mpisign_piece *piece, int64_t first, int64_t last,
                                     const float parameters[4], uint8_t *sign, uint8_t *mask,
                                     int zeros, const mpisign_random *rnd, mpisign_census *census)
{
    const mpisign_random local = *rnd; /* a copy, which no store to the planes can change */
    (void)zeros;
    pack_sparsign(piece, first, last, parameters[0], sign, mask, &local, census);
}
