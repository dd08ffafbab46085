/* Vote counters in float64 words, so that a plain summing allreduce can carry a vote.
 *
 * A word holds `digits` counters as digits of base `base` > number of voters: sums never carry from
 * one digit into the next, and base^digits <= 2^50 keeps every sum exact in a float64, also after
 * the rounding of a pre- and a postscale.
 */
#include <math.h>

#include "mpisign_kernels.h"
#include "philox.h"

void mpisign_encode_counts(const uint8_t *plane, int64_t length, uint64_t base, int digits,
                           double *words, int threads)
{
    const int64_t n_words = (length + digits - 1) / digits;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && n_words > 1 << 14)
    for (int64_t w = 0; w < n_words; w++) {
        int64_t first = w * digits, last = first + digits < length ? first + digits : length;
        uint64_t value = 0;
        for (int64_t i = last - 1; i >= first; i--)
            value = value * base + ((plane[i >> 3] >> (i & 7)) & 1);
        words[w] = (double)value;
    }
}

/* The integer behind a received word, or UINT64_MAX if there is none. */
static inline uint64_t integer_of(double word, double unscale, uint64_t limit)
{
    double x = word * unscale, n = nearbyint(x);
    if (!(n >= 0 && n < (double)limit) || fabs(x - n) > 0.375)
        return UINT64_MAX;
    return (uint64_t)n;
}

/* n / base for n < 2^50 without an integer division. */
static inline uint64_t divide(uint64_t n, uint64_t base, double inverse, uint64_t *remainder)
{
    uint64_t q = (uint64_t)((double)n * inverse);
    int64_t r = (int64_t)(n - q * base);
    if (r < 0) {
        q--;
        r += (int64_t)base;
    } else if (r >= (int64_t)base) {
        q++;
        r -= (int64_t)base;
    }
    *remainder = (uint64_t)r;
    return q;
}

/* Coordinates [first, last) with first a multiple of 8, into whole bytes. */
static int64_t decode_range(const mpisign_counts *c, int64_t first, int64_t last, uint64_t limit,
                            uint8_t *out_sign, uint8_t *out_mask, int ties,
                            const mpisign_random *rnd)
{
    const double inverse = 1.0 / (double)c->base;
    int64_t bad = 0, left = 0;
    uint64_t negatives = 0, votes = 0, skip;
    uint8_t random[16];
    for (int64_t i = first; i < last; i += 8) {
        uint8_t sign = 0, mask = 0;
        if ((i - first) % 128 == 0)
            mpisign_random_bytes(rnd, (uint64_t)(i / 8), 16, random);
        for (int j = 0; j < 8 && i + j < last; j++) {
            if (left == 0) {
                int64_t w = (i + j) / c->digits, into = (i + j) % c->digits;
                negatives = integer_of(c->negatives[w], c->unscale, limit);
                votes = c->votes ? integer_of(c->votes[w], c->unscale, limit) : 0;
                if (negatives == UINT64_MAX || votes == UINT64_MAX) {
                    bad++;
                    negatives = votes = 0;
                }
                for (int64_t k = 0; k < into; k++) {
                    negatives = divide(negatives, c->base, inverse, &skip);
                    votes = divide(votes, c->base, inverse, &skip);
                }
                left = c->digits - into;
            }
            uint64_t negative, cast = c->voters;
            negatives = divide(negatives, c->base, inverse, &negative);
            if (c->votes)
                votes = divide(votes, c->base, inverse, &cast);
            left--;
            int tie = 2 * negative == cast;
            int minus = 2 * negative > cast;
            if (tie && ties == MPISIGN_TIES_RANDOM)
                minus = (random[(i - first) / 8 % 16] >> j) & 1;
            sign |= (uint8_t)(minus << j);
            mask |= (uint8_t)((!tie || ties != MPISIGN_TIES_ZERO) << j);
        }
        out_sign[i / 8] = sign;
        if (out_mask)
            out_mask[i / 8] = mask;
    }
    return bad;
}

int64_t mpisign_decode_counts(const mpisign_counts *counts, uint8_t *out_sign, uint8_t *out_mask,
                              int ties, const mpisign_random *rnd, int threads)
{
    const int64_t slice = 1 << 15;
    uint64_t limit = 1;
    int64_t bad = 0;
    for (int k = 0; k < counts->digits; k++)
        limit *= counts->base;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : bad)                  \
    if (threads > 1 && counts->length > 2 * slice)
    for (int64_t at = 0; at < counts->length; at += slice) {
        int64_t last = at + slice < counts->length ? at + slice : counts->length;
        bad += decode_range(counts, at, last, limit, out_sign, out_mask, ties, rnd);
    }
    return bad;
}
