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

/* How a thread gets at bytes [byte, byte + 4 W) of a row. */
enum Reach {
    WIDE,     /* one aligned load */
    SHIFTED,  /* words put together from aligned ones, a word beyond on either side: odd addresses */
    BYTE_WISE /* near the ends of a row; bytes past its end read as 0 */
};

template <int W> MPISIGN_FN Reach reach_of(const Stack &stack, int64_t byte)
{
    if (stack.aligned && byte + 4 * W <= stack.bytes)
        return WIDE;
    return byte >= 4 && byte + 4 * W + 4 <= stack.bytes ? SHIFTED : BYTE_WISE;
}

template <int REACH, int W>
MPISIGN_FN void load_words(const uint8_t *row, int64_t byte, int64_t bytes, uint32_t out[W])
{
    const uint8_t *at = row + byte;
    if constexpr (REACH == WIDE) {
        Words<W> words = *(const Words<W> *)at;
        UNROLL
        for (int k = 0; k < W; k++)
            out[k] = words.w[k];
    } else if constexpr (REACH == SHIFTED) {
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
        /* A shift register, so that a short loop does and indices into `out` stay constants. */
        ROLLED
        for (int j = 0; j < 4 * W; j++) {
            UNROLL
            for (int k = 0; k < W - 1; k++)
                out[k] = __funnelshift_r(out[k], out[k + 1], 8);
            uint32_t next = byte + j < bytes ? at[j] : 0;
            out[W - 1] = out[W - 1] >> 8 | next << 24;
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
template <int P> MPISIGN_FN void add_votes(uint32_t counter[P], const uint32_t *rows)
{
    if constexpr (P >= 4)
        ripple(counter, 3, P, add_rows(counter, rows, 8));
    else
        count_rows(counter, rows, (1 << P) - 1);
}

/* Rows [row, row + N) that are before `last`, else 0. */
template <int REACH, int N, int W, bool MASKED>
MPISIGN_FN void load_rows(const Stack &stack, int64_t row, int64_t last, int64_t byte,
                          uint32_t s[N][W], uint32_t m[N][W])
{
    UNROLL
    for (int j = 0; j < N; j++) {
        if (row + j < last) {
            int64_t at = (row + j) * stack.row_stride;
            load_words<REACH, W>(stack.sign + at, byte, stack.bytes, s[j]);
            if constexpr (MASKED)
                load_words<REACH, W>(stack.mask + at, byte, stack.bytes, m[j]);
        }
    }
}

/* The way is chosen once for N rows: no branch lies between their loads. */
template <int N, int W, bool MASKED>
MPISIGN_FN void load_rows(const Stack &stack, Reach reach, int64_t row, int64_t last, int64_t byte,
                          uint32_t s[N][W], uint32_t m[N][W])
{
    UNROLL
    for (int j = 0; j < N; j++) {
        UNROLL
        for (int k = 0; k < W; k++)
            s[j][k] = m[j][k] = 0;
    }
    if (reach == WIDE)
        load_rows<WIDE, N, W, MASKED>(stack, row, last, byte, s, m);
    else if (reach == SHIFTED)
        load_rows<SHIFTED, N, W, MASKED>(stack, row, last, byte, s, m);
    else
        load_rows<BYTE_WISE, N, W, MASKED>(stack, row, last, byte, s, m);
}

/* Adds rows [first, last) to the counters of negative votes, and of positive ones if masked. Below 4
 * planes the counters must be empty. */
template <int P, int W, bool MASKED>
MPISIGN_FN void count_votes(const Stack &stack, int64_t first, int64_t last, int64_t byte,
                            uint32_t negative[W][P], uint32_t positive[W][P])
{
    constexpr int at_once = P >= 4 ? 8 : (1 << P) - 1;
    const Reach reach = reach_of<W>(stack, byte);
    ROLLED
    for (int64_t row = first; row < last; row += at_once) {
        uint32_t s[at_once][W], m[at_once][W];
        load_rows<at_once, W, MASKED>(stack, reach, row, last, byte, s, m);
        UNROLL
        for (int k = 0; k < W; k++) {
            uint32_t minus[at_once], plus[at_once];
            UNROLL
            for (int j = 0; j < at_once; j++) {
                minus[j] = MASKED ? s[j][k] & m[j][k] : s[j][k];
                plus[j] = m[j][k] & ~s[j][k];
            }
            add_votes<P>(negative[k], minus);
            if constexpr (MASKED)
                add_votes<P>(positive[k], plus);
        }
    }
}

/* Both counters += weight in the lanes of their votes: ripples of full adders, one a count plane. */
template <int P, bool MASKED>
MPISIGN_FN void add_weight(uint32_t negative[P], uint32_t positive[P], uint32_t minus, uint32_t plus,
                           uint32_t weight)
{
    uint32_t carry = 0, carry_plus = 0;
    UNROLL
    for (int k = 0; k < P; k++) {
        uint32_t bit = 0u - (weight >> k & 1u);
        FULL_ADD(carry, negative[k], negative[k], minus & bit, carry);
        if constexpr (MASKED)
            FULL_ADD(carry_plus, positive[k], positive[k], plus & bit, carry_plus);
    }
}

/* `weights` 0: 1 each. */
template <int P, bool MASKED>
MPISIGN_FN void count_weighted(const Stack &stack, const uint32_t *weights, int64_t byte,
                               uint32_t negative[P], uint32_t positive[P])
{
    constexpr int at_once = 4;
    const Reach reach = reach_of<1>(stack, byte);
    ROLLED
    for (int64_t row = 0; row < stack.rows; row += at_once) {
        uint32_t s[at_once][1], m[at_once][1], weight[at_once];
        load_rows<at_once, 1, MASKED>(stack, reach, row, stack.rows, byte, s, m);
        UNROLL
        for (int j = 0; j < at_once; j++)
            weight[j] = row + j >= stack.rows ? 0 : weights ? weights[row + j] : 1;
        UNROLL
        for (int j = 0; j < at_once; j++) {
            uint32_t minus = MASKED ? s[j][0] & m[j][0] : s[j][0], plus = m[j][0] & ~s[j][0];
            add_weight<P, MASKED>(negative, positive, minus, plus, weight[j]);
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
    if (!weights)
        return (uint32_t)rows;
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
