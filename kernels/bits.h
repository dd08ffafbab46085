/* Bits one behind the other, lowest first: out of words, into bytes, and back. */
#ifndef MPISIGN_BITS_H
#define MPISIGN_BITS_H

#include "lanes.h"

/* The bits of `word` where `mask` has ones, side by side; and back. */
MPISIGN_FN uint64_t gather_bits(uint64_t word, uint64_t mask)
{
#if defined(MPISIGN_AVX512) || defined(MPISIGN_AVX2)
    return _pext_u64(word, mask);
#else
    uint64_t out = 0;
    for (int n = 0; mask; mask &= mask - 1)
        out |= (word >> __builtin_ctzll(mask) & 1) << n++;
    return out;
#endif
}

MPISIGN_FN uint64_t scatter_bits(uint64_t bits, uint64_t mask)
{
#if defined(MPISIGN_AVX512) || defined(MPISIGN_AVX2)
    return _pdep_u64(bits, mask);
#else
    uint64_t out = 0;
    for (; mask; mask &= mask - 1, bits >>= 1)
        out |= (bits & 1) << __builtin_ctzll(mask);
    return out;
#endif
}

typedef struct {
    uint8_t *at;
    uint64_t bits; /* those of the byte at `at` that are there already */
    int held;      /* how many: 0 to 7 */
} bit_writer;

/* The n <= 56 low bits of a value that has no others; stores 8 bytes. */
MPISIGN_FN void put_bits(bit_writer *w, uint64_t value, int n)
{
    w->bits |= value << w->held;
    w->held += n;
    store_word(w->at, w->bits, 8);
    w->at += w->held / 8;
    w->bits >>= w->held & ~7;
    w->held &= 7;
}

typedef struct {
    const uint8_t *data;
    int64_t size, at;
    uint64_t bits; /* the next ones; behind the end of the data zeros */
    int held;      /* how many of them count */
} bit_reader;

/* From here on 56 bits or more are held. */
MPISIGN_FN void read_more(bit_reader *r)
{
    const int64_t left = r->size - r->at;
    if (left >= 8)
        r->bits |= load_word(r->data + r->at, 8) << r->held;
    else if (left > 0)
        r->bits |= load_word(r->data + r->at, (int)left) << r->held;
    r->at += (63 - r->held) / 8;
    r->held |= 56;
}

MPISIGN_FN uint64_t take_bits(bit_reader *r, int n)
{
    const uint64_t bits = r->bits & ((1ull << n) - 1);
    r->bits >>= n;
    r->held -= n;
    return bits;
}

MPISIGN_FN int64_t bits_taken(const bit_reader *r)
{
    return 8 * r->at - r->held;
}

#endif
