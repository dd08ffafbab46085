/* Vote counters in float64 words, so that a plain summing allreduce can carry a vote.
 *
 * A word holds `digits` counters as digits of base `base` > number of voters: sums never carry from
 * one digit into the next, and base^digits <= 2^50 keeps every sum exact in a float64, also after
 * the rounding of a pre- and a postscale.
 */
#include <math.h>

static void ISA(encode_counts)(const uint8_t *plane, int64_t length, uint64_t base, int digits,
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

enum { WORDS = 128, MAX_DIGITS = 50 }; /* words decoded at a time: flags stay in the first level */

/* The integers behind received words, 0 for words that are none; returns how many are none. */
static int64_t ISA(integers_of)(const double *words, int64_t count, double unscale,
                                          double limit, double *out)
{
    int64_t bad = 0;
    for (int64_t w = 0; w < count; w++) {
        double x = words[w] * unscale, n = nearbyint(x);
        int is_none = !(n >= 0 && n < limit) || fabs(x - n) > 0.375;
        out[w] = is_none ? 0 : n;
        bad += is_none;
    }
    for (int64_t w = count; w < WORDS; w++)
        out[w] = 0;
    return bad;
}

/* n = n / base, digit = n % base, for integers n < 2^51: no division, and the same on any CPU. */
static void ISA(next_digits)(double *n, double base, double *digit)
{
    const double inverse = 1.0 / base, round = 0x1.8p52;
    for (int w = 0; w < WORDS; w++) {
        double q = (n[w] * inverse - 0.5 + round) - round; /* the quotient, or one off */
        double r = n[w] - q * base;
        double low = r < 0 ? 1 : 0, high = r >= base ? 1 : 0;
        n[w] = q - low + high;
        digit[w] = r + base * low - base * high;
    }
}

static void ISA(compare)(const double *negative, const double *cast, uint8_t *minus,
                                   uint8_t *tie)
{
    for (int w = 0; w < WORDS; w++) {
        minus[w] = 2 * negative[w] > cast[w];
        tie[w] = 2 * negative[w] == cast[w];
    }
}

/* Eight 0/1 bytes to eight bits, first byte lowest. */
static uint8_t collapse(const uint8_t *flags)
{
    unsigned bits = 0;
    for (int i = 0; i < 8; i++)
        bits |= (unsigned)flags[i] << i;
    return (uint8_t)bits;
}

/* WORDS words from word `first` on, or what is left: whole bytes, since WORDS is a multiple of 8. */
static int64_t ISA(decode_words)(const mpisign_counts *c, int64_t first, double limit, uint8_t *out_sign,
                            uint8_t *out_mask, int ties, const mpisign_random *rnd)
{
    const int64_t from = first * c->digits, left = c->length - from;
    const int64_t count = left < (int64_t)WORDS * c->digits ? left : (int64_t)WORDS * c->digits;
    const int64_t words = (count + c->digits - 1) / c->digits, bytes = (count + 7) / 8;
    double negatives[WORDS], votes[WORDS], negative[WORDS], cast[WORDS];
    uint8_t minus[WORDS * MAX_DIGITS], tie[WORDS * MAX_DIGITS], room[RANDOM_ROOM(WORDS * MAX_DIGITS / 8)];
    const uint8_t *random = room;
    uint8_t minus_of[WORDS], tie_of[WORDS];
    int64_t bad = ISA(integers_of)(c->negatives + first, words, c->unscale, limit, negatives);
    if (c->votes)
        bad += ISA(integers_of)(c->votes + first, words, c->unscale, limit, votes);
    for (int w = 0; w < WORDS; w++)
        cast[w] = (double)c->voters;
    for (int j = 0; j < c->digits; j++) {
        ISA(next_digits)(negatives, (double)c->base, negative);
        if (c->votes)
            ISA(next_digits)(votes, (double)c->base, cast);
        ISA(compare)(negative, cast, minus_of, tie_of);
        for (int64_t w = 0; w < words; w++) {
            minus[w * c->digits + j] = minus_of[w];
            tie[w * c->digits + j] = tie_of[w];
        }
    }
    memset(minus + count, 0, (size_t)(8 * bytes - count));
    memset(tie + count, 0, (size_t)(8 * bytes - count));
    if (ties == MPISIGN_TIES_RANDOM && (c->votes || c->voters % 2 == 0))
        random = random_bytes(rnd, (uint64_t)(from / 8), bytes, room);
    else
        memset(room, 0, (size_t)bytes);
    for (int64_t b = 0; b < bytes; b++) {
        uint8_t tied = collapse(tie + 8 * b), valid = 0xff;
        if (8 * b + 8 > count)
            valid = (uint8_t)(0xff >> (8 * b + 8 - count));
        out_sign[from / 8 + b] = collapse(minus + 8 * b) | (tied & random[b]);
        if (out_mask)
            out_mask[from / 8 + b] = ties == MPISIGN_TIES_ZERO ? valid & (uint8_t)~tied : valid;
    }
    return bad;
}

static int64_t ISA(decode_counts)(const mpisign_counts *counts, uint8_t *out_sign,
                                  uint8_t *out_mask, int ties, const mpisign_random *rnd, int threads)
{
    const int64_t n_words = (counts->length + counts->digits - 1) / counts->digits;
    double limit = 1;
    int64_t bad = 0;
    for (int k = 0; k < counts->digits; k++)
        limit *= (double)counts->base;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : bad)                  \
    if (threads > 1 && n_words > 16 * WORDS)
    for (int64_t at = 0; at < n_words; at += WORDS)
        bad += ISA(decode_words)(counts, at, limit, out_sign, out_mask, ties, rnd);
    return bad;
}
