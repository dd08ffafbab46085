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

/* Bits of the coordinates whose 16 random bits are below the whole part of t = 65536 p, which vote,
 * and of those where they are equal, which `sparsign_exact` decides. A NaN may be either. */
MPISIGN_FN uint64_t below64(const float t[64], const uint16_t half[64], uint64_t *equal)
{
#if defined(MPISIGN_AVX512)
    uint64_t below = 0;
    *equal = 0;
    for (int i = 0; i < 64; i += 32) {
        __m512i a = _mm512_cvttps_epu32(_mm512_loadu_ps(t + i)); /* NaN, too big: all ones */
        __m512i b = _mm512_cvttps_epu32(_mm512_loadu_ps(t + i + 16));
        __m512i whole = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtusepi32_epi16(a)),
                                           _mm512_cvtusepi32_epi16(b), 1);
        __m512i h = _mm512_loadu_si512(half + i);
        below |= (uint64_t)_mm512_cmplt_epu16_mask(h, whole) << i;
        *equal |= (uint64_t)_mm512_cmpeq_epu16_mask(h, whole) << i;
    }
    return below;
#else
    uint16_t order[64];
    for (int i = 0; i < 64; i++) {
        uint16_t whole = (uint16_t)(int32_t)(t[i] < 65535.0f ? t[i] : 65535.0f);
        order[i] = half[i] < whole ? 0x8001u : half[i] > whole;
    }
    words64 w = classify64_bf16(order);
    *equal = w.zero;
    return w.sign;
#endif
}

MPISIGN_FN void sparsign64(const float_at *g, float budget, uint64_t valid, int64_t byte, int bytes,
                           uint8_t *sign, uint8_t *mask, const mpisign_random *rnd,
                           const philox_keys *keys, mpisign_census *census)
{
    const uint64_t block = rnd->byte_offset + (uint64_t)byte; /* 8 halves a block, as bits a byte */
    float t[64];
    uint16_t half[64];
    philox_batch(keys, block | MPISIGN_HALVES, (uint8_t *)half);
    for (int i = 0; i < 64; i++) {
        float p = budget * __builtin_fabsf(g[i]);
        t[i] = p * 65536.0f;
    }
    words64 w = classify64_fp32(g);
    uint64_t equal, below = below64(t, half, &equal);
    uint64_t zero = w.zero & valid, nan = w.nan & valid;
    uint64_t votes = below & valid & ~nan;
    for (uint64_t left = equal & valid & ~nan; left; left &= left - 1) {
        int i = __builtin_ctzll(left);
        float p = budget * __builtin_fabsf(g[i]);
        votes |= (uint64_t)ISA(sparsign_exact)(p, half[i], 8 * block + (uint64_t)i, rnd) << i;
    }
    census->zeros += __builtin_popcountll(zero);
    census->nans += __builtin_popcountll(nan);
    store_word(sign + byte, votes & w.sign, bytes);
    store_word(mask + byte, votes, bytes);
}

MPISIGN_FN void pack_sparsign(const mpisign_piece *piece, int64_t first, int64_t last, float budget,
                              uint8_t *sign, uint8_t *mask,
                              const mpisign_random *rnd, mpisign_census *census)
{
    const int dtype = (int)piece->dtype;
    const int64_t size = item_size(dtype);
    const char *data = (const char *)piece->data;
    const philox_keys keys = keys_of(rnd);
    float room[64];
    int64_t at = first;
    for (; at + 64 <= last; at += 64) {
        PREFETCH(data + at * size + 4096);
        sparsign64(as_fp32(dtype, data + at * size, room), budget, ~0ull, piece->byte + at / 8, 8, sign, mask, rnd,
                   &keys, census);
    }
    if (at == last)
        return;
    uint64_t padded[64] = {0};
    memcpy(padded, data + at * size, (size_t)((last - at) * size));
    sparsign64(as_fp32(dtype, padded, room), budget, valid_word(last - at), piece->byte + at / 8,
               (int)((last - at + 7) / 8), sign, mask, rnd, &keys, census);
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
