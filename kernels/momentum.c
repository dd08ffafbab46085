/* Momentum and pack in one pass: signum (Bernstein et al. 2019) and lion (Chen et al. 2023).
 *
 * signum: m = b m + c g; votes on m as stored. parameters b, c = 1 - b.
 * lion:   votes on b1 m + c1 g; m = b2 m + c2 g. parameters b1, c1, b2, c2.
 * Where NaN or infinity comes out, m stays as it was: it would be so for ever.
 */
#include "floats64.h"

/* Writes the new momentum of 64 coordinates over the old; `v` is what is voted on. */
MPISIGN_FN void momentum64(int lion, int m_dtype, const float parameters[4], const float_at *g,
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
    float v[64], room[64];
    int64_t at = first;
    for (; at + 64 <= last; at += 64) {
        const float_at *g = as_fp32(dtype, data + at * size, room);
        momentum64(lion, m_dtype, p, g, momentum + at * m_size, v);
        settle_word(classify64_fp32(v), ~0ull, piece->byte + at / 8, 8, sign, mask, zeros, &random,
                    census);
    }
    if (at == last)
        return;
    const size_t count = (size_t)(last - at);
    uint64_t g[64] = {0}, m[64] = {0};
    memcpy(g, data + at * size, count * (size_t)size);
    memcpy(m, momentum + at * m_size, count * (size_t)m_size);
    momentum64(lion, m_dtype, p, as_fp32(dtype, g, room), m, v);
    memcpy(momentum + at * m_size, m, count * (size_t)m_size);
    settle_word(classify64_fp32(v), valid_word(last - at), piece->byte + at / 8,
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
