/* Weighted sums of sign planes: means of scaled signs, and of count planes, in fp32.
 *
 * TOGETHER rows are added at a time while 64 sums stay in registers. Up to so many rows the sums go
 * from there to the output; beyond, a tile of them waits in the first-level cache between groups.
 */
#include "floats64.h"

enum { TILE = 4096, TOGETHER = 4 };

typedef struct {
    const uint8_t *sign, *mask; /* of the first of n rows, at their first coordinate */
    int64_t stride;
    const float *weights; /* of the first of n rows */
    int64_t blocks;
    const float *from; /* the sums so far; one set of 64 for all if `begins` */
    float *to;
    float scale; /* 1 for all but the last group of rows */
    int begins, stream;
} group;

/* to = (from +- w[0] +- ... +- w[n - 1]) scale for 64 coordinates. */
MPISIGN_FN void add_votes64(int masked, int n, const uint8_t *sign, const uint8_t *mask,
                            int64_t stride, const float *w, const float *from, float scale,
                            int stream, float *to)
{
    float sum[64], v[64];
    memcpy(sum, from, sizeof sum);
    MPISIGN_UNROLL
    for (int k = 0; k < n; k++) {
        votes64(masked, sign + k * stride, masked ? mask + k * stride : NULL, w[k], v);
        for (int i = 0; i < 64; i++)
            sum[i] += v[i];
    }
    for (int i = 0; i < 64; i++)
        sum[i] *= scale;
    if (stream)
        for (int i = 0; i < 64; i += 16)
            stream_line((uint8_t *)(to + i), (const uint8_t *)(sum + i));
    else
        memcpy(to, sum, sizeof sum);
}

/* `count` coordinates of n rows. */
MPISIGN_FN void add_group(int masked, int n, const group *g, int64_t count)
{
    const uint8_t *sign = g->sign, *mask = g->mask;
    const int64_t stride = g->stride, step = g->begins ? 0 : 1;
    const float *from = g->from, scale = g->scale;
    float w[TOGETHER], *to = g->to;
    int64_t at = 0;
    for (int k = 0; k < n; k++)
        w[k] = g->weights[k * g->blocks];
    for (; at + 64 <= count; at += 64)
        add_votes64(masked, n, sign + at / 8, masked ? mask + at / 8 : NULL, stride, w,
                    from + at * step, scale, g->stream, to + at);
    if (at == count)
        return;
    const size_t bytes = (size_t)((count - at + 7) / 8);
    uint8_t signs[8 * TOGETHER] = {0}, masks[8 * TOGETHER] = {0};
    float start[64] = {0}, sums[64];
    memcpy(start, from + at * step, (size_t)(count - at) * sizeof *start);
    for (int k = 0; k < n; k++) {
        memcpy(signs + 8 * k, sign + at / 8 + k * stride, bytes);
        if (masked)
            memcpy(masks + 8 * k, mask + at / 8 + k * stride, bytes);
    }
    add_votes64(masked, n, signs, masks, 8, w, start, scale, 0, sums);
    memcpy(to + at, sums, (size_t)(count - at) * sizeof *to);
}

static void ISA(add_rows_of_group)(const group *g, int n, int64_t count)
{
    switch (n + (g->mask ? 16 : 0)) { /* a number that the compiler knows: sums in registers */
    case 4: add_group(0, 4, g, count); break;
    case 2: add_group(0, 2, g, count); break;
    case 1: add_group(0, 1, g, count); break;
    case 16 + 4: add_group(1, 4, g, count); break;
    case 16 + 1: add_group(1, 1, g, count); break;
    default:
        if (g->mask)
            add_group(1, n, g, count);
        else
            add_group(0, n, g, count);
    }
}

/* Coordinates [first, last), all of one block of weights, to `out`. y: room for their sums. */
static ALONE void ISA(sum_rows)(const mpisign_stack *s, const float *weights, int64_t blocks,
                          int64_t first, int64_t last, const float start[64], float scale,
                          float *y, float *out, int stream)
{
    for (int64_t row = 0; row < s->rows; row += TOGETHER) {
        const int64_t left = s->rows - row, at = row * s->row_stride + first / 8;
        const int ends = left <= TOGETHER;
        const group g = {
            .sign = s->sign + at,
            .mask = s->mask ? s->mask + at : NULL,
            .stride = s->row_stride,
            .weights = weights + row * blocks,
            .blocks = blocks,
            .from = row ? y : start,
            .to = ends ? out : y,
            .scale = ends ? scale : 1.0f,
            .begins = row == 0,
            .stream = ends && stream,
        };
        ISA(add_rows_of_group)(&g, ends ? (int)left : TOGETHER, last - first);
    }
}

/* Copies past the cache, in whole lines at their own addresses. */
MPISIGN_FN void stream_floats(const float *y, int64_t count, float *out)
{
    const int64_t head = (int64_t)(-(uintptr_t)out / sizeof *out % 16);
    int64_t i = head < count ? head : count;
    memcpy(out, y, (size_t)i * sizeof *y);
    for (; i + 16 <= count; i += 16)
        stream_line((uint8_t *)(out + i), (const uint8_t *)(y + i));
    memcpy(out + i, y + i, (size_t)(count - i) * sizeof *y);
}

/* weights: (rows, blocks); block: a multiple of 8, or all of the length. */
static void ISA(weighted_sum)(const mpisign_stack *stack, const float *weights, int64_t block,
                              float start, float scale, float *out, int threads)
{
    const int64_t length = stack->length, blocks = length ? (length - 1) / block + 1 : 0;
    const int stream = length * (int64_t)sizeof *out >= STREAM_BYTES && (uintptr_t)out % 4 == 0;
    const int lines = (uintptr_t)out % 64 == 0; /* else they are put together in y */
    const int counts = length && ISA(are_counts)(stack, weights, blocks, start, scale);
    float starts[64];
    for (int i = 0; i < 64; i++)
        starts[i] = start;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && length > 16 * TILE)
    for (int64_t first = 0; first < length; first += TILE) {
        const int64_t last = length - first < TILE ? length : first + TILE;
        const uint64_t floats = plain_floats();
        float y[TILE] __attribute__((aligned(64)));
        for (int64_t at = first; at < last;) {
            const int64_t b = at / block;
            const int64_t end = last - b * block > block ? (b + 1) * block : last;
            float *sums = y + at - first, *to = stream && !lines ? sums : out + at;
            const int past = stream && lines && (uintptr_t)to % 64 == 0;
            if (counts)
                ISA(mean_of_counts)(stack, at, end, start, scale, to, past);
            else
                ISA(sum_rows)(stack, weights + b, blocks, at, end, starts, scale, sums, to,
                              past);
            at = end;
        }
        if (stream && !lines)
            stream_floats(y, last - first, out + first);
        if (stream)
            end_of_stream();
        restore_floats(floats);
    }
}
