/* Majority of a stack of sign planes: bit-sliced counters that never leave registers. */
#include "mpisign_kernels.h"
#include "philox.h"

typedef uint64_t block64 __attribute__((vector_size(64), aligned(8)));
#define LANES block64
#include "adders.h"

enum { BLOCK = 64, MAX_PLANES = 32 };

static inline __attribute__((always_inline)) block64 load(const uint8_t *p, int64_t bytes)
{
    block64 v = {0};
    memcpy(&v, p, (size_t)bytes);
    return v;
}

static inline __attribute__((always_inline)) block64 ballot(const mpisign_stack *s, int64_t row,
                                                            int64_t at, int64_t bytes, int what)
{
    if (what == 0 && !s->mask)
        return load(s->sign + row * s->row_stride + at, bytes);
    block64 sign = load(s->sign + row * s->row_stride + at, bytes);
    block64 mask = load(s->mask + row * s->mask_row_stride + at, bytes);
    return what == 0 ? sign & mask : ~sign & mask;
}

/* what: 0 counts negative votes, 1 positive ones (masked stacks only). */
static inline __attribute__((always_inline)) void count(const mpisign_stack *s, int64_t at,
                                                        int64_t bytes, int what, int planes,
                                                        block64 *counter)
{
    int64_t row = 0;
    for (int k = 0; k < planes; k++)
        counter[k] = (block64){0};
    for (; row + 8 <= s->rows; row += 8) {
        block64 rows[8];
        for (int i = 0; i < 8; i++)
            rows[i] = ballot(s, row + i, at, bytes, what);
        add8(counter, planes, rows);
    }
    for (; row < s->rows; row++)
        ripple(counter, 0, planes, ballot(s, row, at, bytes, what));
}

static inline __attribute__((always_inline)) int64_t settle_block(const mpisign_stack *s, int64_t at,
                                                                  int64_t bytes, int planes,
                                                                  uint8_t *out_sign,
                                                                  uint8_t *out_mask, int ties,
                                                                  const mpisign_random *rnd)
{
    block64 negative[MAX_PLANES], more, tie, valid = ~(block64){0};
    count(s, at, bytes, 0, planes, negative);
    if (s->mask) {
        block64 positive[MAX_PLANES];
        count(s, at, bytes, 1, planes, positive);
        compare_counters(negative, positive, planes, &more, &tie);
    } else {
        compare_constant(negative, planes, (unsigned)(s->rows / 2), &more, &tie);
        if (s->rows & 1)
            tie = (block64){0};
    }
    if (s->length - 8 * at < 8 * BLOCK) { /* padding bits stay 0 */
        uint8_t keep[BLOCK] = {0};
        for (int64_t i = 0, left = s->length - 8 * at; left > 0; i++, left -= 8)
            keep[i] = left >= 8 ? 0xff : (uint8_t)(0xff >> (8 - left));
        memcpy(&valid, keep, BLOCK);
    }
    more &= valid;
    tie &= valid;
    int64_t tied = 0;
    for (int i = 0; i < 8; i++)
        tied += __builtin_popcountll(tie[i]);
    if (tied && ties == MPISIGN_TIES_RANDOM) {
        uint8_t bytes64[BLOCK];
        block64 random;
        mpisign_random_bytes(rnd, (uint64_t)at, BLOCK, bytes64);
        memcpy(&random, bytes64, BLOCK);
        more |= tie & random;
    }
    memcpy(out_sign + at, &more, (size_t)bytes);
    if (out_mask) {
        block64 votes = ties == MPISIGN_TIES_ZERO ? valid & ~tie : valid;
        memcpy(out_mask + at, &votes, (size_t)bytes);
    }
    return tied;
}

MPISIGN_CLONES static int64_t majority_bytes(const mpisign_stack *s, int64_t first, int64_t last,
                                             int planes, uint8_t *out_sign, uint8_t *out_mask,
                                             int ties, const mpisign_random *rnd)
{
    int64_t tied = 0, at = first;
    for (; at + BLOCK <= last; at += BLOCK)
        tied += settle_block(s, at, BLOCK, planes, out_sign, out_mask, ties, rnd);
    if (at < last)
        tied += settle_block(s, at, last - at, planes, out_sign, out_mask, ties, rnd);
    return tied;
}

int64_t mpisign_majority(const mpisign_stack *stack, uint8_t *out_sign, uint8_t *out_mask, int ties,
                         const mpisign_random *rnd, int threads)
{
    const int64_t bytes = (stack->length + 7) / 8, slice = 1 << 15;
    int64_t tied = 0;
    int planes = 4; /* add8 carries into plane 3 */
    while (stack->rows >> planes)
        planes++;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : tied)                 \
    if (threads > 1 && bytes > 2 * slice)
    for (int64_t at = 0; at < bytes; at += slice) {
        int64_t last = at + slice < bytes ? at + slice : bytes;
        tied += majority_bytes(stack, at, last, planes, out_sign, out_mask, ties, rnd);
    }
    return tied;
}
