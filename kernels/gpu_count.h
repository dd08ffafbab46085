/* Counting the rows of a stack: the count planes of 32 W coordinates in one thread's registers.
 *
 * P, the number of count planes, is a constant of each kernel, so that counters are registers and
 * nothing spills; the adders are those of the CPU (adders.h).
 */
#ifndef MPISIGN_GPU_COUNT_H
#define MPISIGN_GPU_COUNT_H

#include "gpu.h"

#define LANES uint32_t
#include "adders.h"

struct Stack {
    const uint8_t *sign, *mask;
    int64_t row_stride, rows, bytes; /* bytes of a row that hold coordinates */
    bool aligned;                    /* every row starts at a multiple of 16 */
};

MPISIGN_FN Stack make_stack(const uint8_t *sign, const uint8_t *mask, int64_t row_stride,
                            int64_t rows, int64_t length)
{
    bool aligned = is_aligned(sign) && is_aligned(mask) && (row_stride & 15) == 0;
    return {sign, mask, row_stride, rows, (length + 7) / 8, aligned};
}

/* Bytes [byte, byte + 4 W) of a row; those past its end read as 0.
 * At odd addresses, words are put together from aligned ones, away from the row's ends. */
template <int W>
MPISIGN_FN void load_words(const uint8_t *row, int64_t byte, int64_t bytes, bool aligned,
                           uint32_t out[W])
{
    const uint8_t *at = row + byte;
    if (aligned && byte + 4 * W <= bytes) {
        Words<W> words = *(const Words<W> *)at;
        UNROLL
        for (int k = 0; k < W; k++)
            out[k] = words.w[k];
    } else if (byte >= 4 && byte + 4 * W + 4 <= bytes) {
        const uint32_t skip = (uint32_t)((uint64_t)at & 3);
        const uint32_t *from = (const uint32_t *)(at - skip);
        uint32_t low = from[0];
        UNROLL
        for (int k = 0; k < W; k++) {
            uint32_t high = from[k + 1];
            out[k] = __funnelshift_r(low, high, 8 * skip);
            low = high;
        }
    } else {
        UNROLL
        for (int k = 0; k < W; k++) {
            out[k] = 0;
            UNROLL
            for (int j = 0; j < 4; j++)
                if (byte + 4 * k + j < bytes)
                    out[k] |= (uint32_t)at[4 * k + j] << 8 * j;
        }
    }
}

template <int W>
MPISIGN_FN void store_words(uint8_t *plane, int64_t byte, int64_t bytes, const uint32_t in[W])
{
    uint8_t *at = plane + byte;
    if (is_aligned(plane) && byte + 4 * W <= bytes) {
        Words<W> words;
        UNROLL
        for (int k = 0; k < W; k++)
            words.w[k] = in[k];
        *(Words<W> *)at = words;
    } else {
        UNROLL
        for (int j = 0; j < 4 * W; j++)
            if (byte + j < bytes)
                at[j] = (uint8_t)(in[j / 4] >> 8 * (j & 3));
    }
}

/* counter += 8 rows (3 planes: 7, 2 planes: 3, 1 plane: 1, the counter being empty). */
template <int P> MPISIGN_FN void add_votes(uint32_t counter[P], const uint32_t rows[8])
{
    if constexpr (P >= 4)
        add8(counter, P, rows);
    else
        count_rows(counter, rows, (1 << P) - 1);
}

/* Adds rows [first, last) to the counters of negative votes, and of positive ones if masked.
 * WHOLE: every row is aligned and has all 4 W bytes, so that no branch lies between the loads. */
template <int P, int W, bool MASKED, bool WHOLE>
MPISIGN_FN void count_votes(const Stack &stack, int64_t first, int64_t last, int64_t byte,
                            uint32_t negative[W][P], uint32_t positive[W][P])
{
    constexpr int at_once = P >= 4 ? 8 : (1 << P) - 1;
    for (int64_t row = first; row < last; row += at_once) {
        uint32_t s[8][W], m[8][W];
        UNROLL
        for (int j = 0; j < 8; j++) {
            UNROLL
            for (int k = 0; k < W; k++)
                s[j][k] = m[j][k] = 0;
            if (j >= at_once || row + j >= last)
                continue;
            int64_t at = (row + j) * stack.row_stride;
            if constexpr (WHOLE) {
                Words<W> words = *(const Words<W> *)(stack.sign + at + byte);
                UNROLL
                for (int k = 0; k < W; k++)
                    s[j][k] = words.w[k];
                if constexpr (MASKED) {
                    words = *(const Words<W> *)(stack.mask + at + byte);
                    UNROLL
                    for (int k = 0; k < W; k++)
                        m[j][k] = words.w[k];
                }
            } else {
                load_words<W>(stack.sign + at, byte, stack.bytes, stack.aligned, s[j]);
                if constexpr (MASKED)
                    load_words<W>(stack.mask + at, byte, stack.bytes, stack.aligned, m[j]);
            }
        }
        UNROLL
        for (int k = 0; k < W; k++) {
            uint32_t minus[8], plus[8];
            UNROLL
            for (int j = 0; j < 8; j++) {
                minus[j] = MASKED ? s[j][k] & m[j][k] : s[j][k];
                plus[j] = m[j][k] & ~s[j][k];
            }
            add_votes<P>(negative[k], minus);
            if constexpr (MASKED)
                add_votes<P>(positive[k], plus);
        }
    }
}

/* counter += weight in the lanes of `votes`: a ripple of full adders, one for each count plane. */
template <int P> MPISIGN_FN void add_weight(uint32_t counter[P], uint32_t votes, uint32_t weight)
{
    uint32_t carry = 0;
    UNROLL
    for (int k = 0; k < P; k++) {
        uint32_t bit = votes & (0u - (weight >> k & 1u));
        FULL_ADD(carry, counter[k], counter[k], bit, carry);
    }
}

template <int P, bool MASKED>
MPISIGN_FN void count_weighted(const Stack &stack, const uint32_t *weights, int64_t byte,
                               uint32_t negative[P], uint32_t positive[P])
{
    for (int64_t row = 0; row < stack.rows; row += 4) {
        uint32_t s[4], m[4], weight[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            s[j] = m[j] = weight[j] = 0;
            if (row + j < stack.rows) {
                int64_t at = (row + j) * stack.row_stride;
                load_words<1>(stack.sign + at, byte, stack.bytes, stack.aligned, &s[j]);
                if constexpr (MASKED)
                    load_words<1>(stack.mask + at, byte, stack.bytes, stack.aligned, &m[j]);
                weight[j] = weights[row + j];
            }
        }
        UNROLL
        for (int j = 0; j < 4; j++) {
            add_weight<P>(negative, MASKED ? s[j] & m[j] : s[j], weight[j]);
            if constexpr (MASKED)
                add_weight<P>(positive, m[j] & ~s[j], weight[j]);
        }
    }
}

template <int P, int W> MPISIGN_FN void clear(uint32_t counter[W][P])
{
    UNROLL
    for (int k = 0; k < W; k++) {
        UNROLL
        for (int j = 0; j < P; j++)
            counter[k][j] = 0;
    }
}

/* The sum of the weights, which a block adds up for itself: the host never reads them. */
MPISIGN_FN uint32_t total_weight(const uint32_t *weights, int64_t rows)
{
    __shared__ uint32_t total;
    if (threadIdx.x == 0)
        total = 0;
    __syncthreads();
    uint32_t sum = 0;
    for (int64_t row = threadIdx.x; row < rows; row += THREADS)
        sum += weights[row];
    if (sum)
        atomicAdd(&total, sum);
    __syncthreads();
    return total;
}

/* Which of the 32 coordinates of word k of a thread's bytes exist. */
MPISIGN_FN uint32_t present32(int64_t byte, int k, int64_t length)
{
    int64_t left = length - 8 * (byte + 4 * k);
    return left >= 32 ? ~0u : left <= 0 ? 0u : (1u << (int)left) - 1u;
}

#endif
