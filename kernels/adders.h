/* Bit-sliced counting: every bit lane of a block has its own counter, kept as count planes.
 *
 * The arithmetic needs only &, |, ^ and ~ of an unsigned block type LANES, so the same header serves
 * a 64-byte vector on the CPU and a 32-bit word of a GPU lane. Define LANES before including it, and
 * FULL_ADD where the instruction set has a better one.
 */
#ifndef MPISIGN_ADDERS_H
#define MPISIGN_ADDERS_H

#include "shared.h"

/* a + b + c = 2 carry + sum, lane by lane. */
#ifndef FULL_ADD
#define FULL_ADD(carry, sum, a, b, c)                                                              \
    do {                                                                                           \
        LANES a_ = (a), b_ = (b), c_ = (c);                                                        \
        LANES u_ = a_ ^ b_;                                                                        \
        (carry) = (a_ & b_) | (u_ & c_);                                                           \
        (sum) = u_ ^ c_;                                                                           \
    } while (0)
#endif

#ifdef __CUDACC__
#define MPISIGN_UNROLL _Pragma("unroll")
#else
#define MPISIGN_UNROLL _Pragma("GCC unroll 16")
#endif

enum { MPISIGN_MAX_ROWS_AT_ONCE = 16 };

/* counter += carry << from. The counter must have room: planes >= bit length of the last count. */
MPISIGN_FN void ripple(LANES *counter, int from, int planes, LANES carry)
{
    for (int k = from; k < planes; k++) {
        LANES t = counter[k] & carry;
        counter[k] ^= carry;
        carry = t;
    }
}

/* counter += rows[0] + ... + rows[n - 1], n a power of two up to 16 that the compiler knows: at each
 * level the counter's bit takes in two rows at a time, and hands a carry up. The counter has log2(n)
 * planes; returned is the carry out of them, worth n (Harley and Seal). */
MPISIGN_FN LANES add_rows(LANES *counter, const LANES *rows, int n)
{
    LANES level[MPISIGN_MAX_ROWS_AT_ONCE];
    MPISIGN_UNROLL
    for (int i = 0; i < n; i++)
        level[i] = rows[i];
    MPISIGN_UNROLL
    for (int k = 0; k < 4; k++) {
        if (n >> k < 2)
            break;
        LANES sum = counter[k];
        MPISIGN_UNROLL
        for (int i = 0; i < n >> k; i += 2)
            FULL_ADD(level[i / 2], sum, sum, level[i], level[i + 1]);
        counter[k] = sum;
    }
    return level[0];
}

/* counter = rows[0] + ... + rows[n - 1], n up to 16 that the compiler knows: bit length of n planes. */
MPISIGN_FN void count_rows(LANES *counter, const LANES *rows, int n)
{
    LANES level[MPISIGN_MAX_ROWS_AT_ONCE];
    MPISIGN_UNROLL
    for (int i = 0; i < n; i++)
        level[i] = rows[i];
    MPISIGN_UNROLL
    for (int k = 0; k < 5; k++) { /* at level k there are n >> k rows left */
        const int width = n >> k;
        if (width == 0)
            break;
        LANES sum = level[0];
        MPISIGN_UNROLL
        for (int i = 1; i + 1 < width; i += 2)
            FULL_ADD(level[i / 2], sum, sum, level[i], level[i + 1]);
        if (width % 2 == 0) {
            LANES last = level[width - 1];
            level[width / 2 - 1] = sum & last;
            sum ^= last;
        }
        counter[k] = sum;
    }
}

/* more: count > threshold; equal: count == threshold. */
MPISIGN_FN void compare_constant(const LANES *counter, int planes, unsigned threshold, LANES *more,
                                 LANES *equal)
{
    LANES gt = counter[0] ^ counter[0], eq = ~gt;
    for (int k = planes - 1; k >= 0; k--) {
        if (k < 32 && threshold >> k & 1) {
            eq &= counter[k];
        } else {
            gt |= eq & counter[k];
            eq &= ~counter[k];
        }
    }
    *more = gt;
    *equal = eq;
}

/* more: a > b; equal: a == b. */
MPISIGN_FN void compare_counters(const LANES *a, const LANES *b, int planes, LANES *more,
                                 LANES *equal)
{
    LANES gt = a[0] ^ a[0], eq = ~gt;
    for (int k = planes - 1; k >= 0; k--) {
        gt |= eq & a[k] & ~b[k];
        eq &= ~(a[k] ^ b[k]);
    }
    *more = gt;
    *equal = eq;
}

#endif
