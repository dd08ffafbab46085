/* Weighted sums of sign planes: means of scaled signs, and of count planes, in fp32.
 *
 * A tile of sums stays in the first-level cache while the rows pass, TOGETHER at a time, so that a
 * row is read in runs of whole cache lines.
 */
#include "floats64.h"

enum { SUM_TILE = 4096, TOGETHER = 8 };

/* Adds n rows to 64 sums: of the mask, if there is one, and if `masked` of the bits of `valid`. */
MPISIGN_FN void add_votes64(int masked, const uint8_t *sign, const uint8_t *mask, int64_t stride,
                            const float *w, int n, int bytes, uint64_t valid, float *y)
{
    float sum[64], v[64];
    memcpy(sum, y, sizeof sum);
    MPISIGN_UNROLL
    for (int k = 0; k < n; k++) {
        uint64_t votes = mask ? load_word(mask + k * stride, bytes) & valid : valid;
        votes64(masked, load_word(sign + k * stride, bytes), votes, w[k], v);
        for (int i = 0; i < 64; i++)
            sum[i] += v[i];
    }
    memcpy(y, sum, sizeof sum);
}

/* Coordinates [first, last) of n rows. */
MPISIGN_FN void add_words(const mpisign_stack *s, const float *weights, int64_t blocks,
                             int64_t row, int n, int64_t first, int64_t last, float *y)
{
    const uint8_t *sign = s->sign + row * s->row_stride, *mask = s->mask;
    const int64_t stride = s->row_stride;
    float w[TOGETHER];
    int64_t at = first;
    for (int k = 0; k < n; k++)
        w[k] = weights[(row + k) * blocks];
    if (mask)
        for (mask += row * stride; at + 64 <= last; at += 64)
            add_votes64(1, sign + at / 8, mask + at / 8, stride, w, n, 8, ~0ull, y + at - first);
    else
        for (; at + 64 <= last; at += 64)
            add_votes64(0, sign + at / 8, NULL, stride, w, n, 8, ~0ull, y + at - first);
    if (at < last)
        add_votes64(1, sign + at / 8, mask ? mask + at / 8 : NULL, stride, w, n,
                    (int)((last - at + 7) / 8), valid_word(last - at), y + at - first);
}

/* Coordinates [first, last), all of one block of weights; y: their sums, room for 64 more. */
static void ISA(add_tile)(const mpisign_stack *s, const float *weights, int64_t blocks,
                          int64_t first, int64_t last, float *y)
{
    for (int64_t row = 0; row < s->rows; row += TOGETHER) {
        const int n = s->rows - row < TOGETHER ? (int)(s->rows - row) : TOGETHER;
        switch (n) { /* a number that the compiler knows keeps the sums in registers */
        case 8: add_words(s, weights, blocks, row, 8, first, last, y); break;
        case 4: add_words(s, weights, blocks, row, 4, first, last, y); break;
        case 2: add_words(s, weights, blocks, row, 2, first, last, y); break;
        case 1: add_words(s, weights, blocks, row, 1, first, last, y); break;
        default: add_words(s, weights, blocks, row, n, first, last, y);
        }
    }
}

/* out = y scale, past the cache where `stream`: whole lines only, at their own addresses. */
MPISIGN_FN void store_scaled(const float *y, float scale, int64_t count, float *out, int stream)
{
    int64_t i = 0, head = stream ? (int64_t)(-(uintptr_t)out / sizeof *out % 16) : count;
    for (; i < head && i < count; i++)
        ((float_at *)out)[i] = y[i] * scale;
    for (; i + 16 <= count; i += 16) {
        float line[16];
        for (int k = 0; k < 16; k++)
            line[k] = y[i + k] * scale;
        stream_lanes((uint8_t *)(out + i), load_lanes((const uint8_t *)line));
    }
    for (; i < count; i++)
        ((float_at *)out)[i] = y[i] * scale;
}

/* weights: (rows, blocks); block: a multiple of 8, or all of the length. */
static void ISA(weighted_sum)(const mpisign_stack *stack, const float *weights, int64_t block,
                              float start, float scale, float *out, int threads)
{
    const int64_t length = stack->length, blocks = length ? (length - 1) / block + 1 : 0;
    const int stream = length * (int64_t)sizeof *out >= STREAM_BYTES && (uintptr_t)out % 4 == 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && length > 16 * SUM_TILE)
    for (int64_t first = 0; first < length; first += SUM_TILE) {
        const int64_t last = length - first < SUM_TILE ? length : first + SUM_TILE;
        float y[SUM_TILE + 64];
        for (int i = 0; i < SUM_TILE; i++)
            y[i] = start;
        for (int64_t at = first; at < last;) {
            const int64_t b = at / block;
            const int64_t end = last - b * block > block ? (b + 1) * block : last;
            ISA(add_tile)(stack, weights + b, blocks, at, end, y + at - first);
            at = end;
        }
        store_scaled(y, scale, last - first, out + first, stream);
        if (stream)
            end_of_stream();
    }
}
