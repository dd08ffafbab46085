/* What error feedback corrects, q = rate g + e, and the l1 norms of its blocks.
 *
 * Sums are trees of halves, so that a GPU and any vector width come to the same bits: 256 values are
 * halved down to one, these sums again by 256, until one is left.
 */
#include "floats64.h"

enum { ROW = 256, CHUNK = ROW * ROW, ROWS_ABOVE = 4 };

typedef struct {
    const char *grad;
    int dtype;
    float *residual;
    float rate;
    uint8_t *sign, *mask;
    int zeros;
    const mpisign_random *rnd;
    int64_t ahead; /* coordinates from what is read to what is fetched, or 0 */
} feedback;

enum { AHEAD = 4096 };

/* Memory must not rest while a block is read again from the cache: the sums fetch gradients, the
 * settling fetches residuals, of blocks to come. */
MPISIGN_FN void fetch_ahead(const feedback *f, const void *array, int64_t size, int64_t at,
                            int64_t count)
{
    const char *place = (const char *)array + (at + f->ahead) * size;
    if (f->ahead == 0)
        return;
    for (int64_t i = 0; i < count * size; i += 64)
        PREFETCH_L2(place + i);
}

/* The rest of the halving of a row whose upper half is in the lower one. */
MPISIGN_FN float halve_half(float x[ROW / 2])
{
    for (int i = 0; i < 64; i++)
        x[i] += x[i + 64];
    for (int i = 0; i < 32; i++)
        x[i] += x[i + 32];
    for (int i = 0; i < 16; i++)
        x[i] += x[i + 16];
    for (int i = 0; i < 8; i++)
        x[i] += x[i + 8];
    for (int i = 0; i < 4; i++)
        x[i] += x[i + 4];
    return (x[0] + x[2]) + (x[1] + x[3]);
}

MPISIGN_FN float halve(float x[ROW])
{
    for (int i = 0; i < 128; i++)
        x[i] += x[i + 128];
    return halve_half(x);
}

/* 64 values of q, and of count < 64 of them with zeros behind. */
MPISIGN_FN void corrected64(const feedback *f, int64_t at, int64_t count, float q[64])
{
    const int64_t size = item_size(f->dtype);
    const void *grad = f->grad + at * size;
    const float_at *e = (const float_at *)(f->residual + at);
    uint64_t grad_room[64], residual_room[64];
    float room[64];
    if (count < 64) {
        memset(grad_room, 0, sizeof grad_room);
        memset(residual_room, 0, sizeof residual_room);
        grad = memcpy(grad_room, grad, (size_t)(count * size));
        e = memcpy(residual_room, e, (size_t)count * sizeof *e);
    }
    const float_at *g = as_fp32(f->dtype, grad, room);
    for (int i = 0; i < 64; i++) {
        float step = f->rate * g[i];
        q[i] = step + e[i];
    }
}

/* The sum of |q| over a whole row, its first halving done as q comes out of the registers. */
MPISIGN_FN float row_sum(const feedback *f, int64_t at)
{
    const int64_t size = item_size(f->dtype);
    const float_at *e = (const float_at *)(f->residual + at);
    float room[ROW], x[ROW / 2];
    const float_at *g = (const float_at *)(f->grad + at * size);
    if (f->dtype != MPISIGN_FP32) {
        for (int k = 0; k < ROW; k += 64)
            ISA(widen64)(f->dtype, f->grad + (at + k) * size, room + k);
        g = room;
    }
    for (int i = 0; i < ROW / 2; i++) {
        float low = f->rate * g[i], high = f->rate * g[i + ROW / 2];
        low += e[i];
        high += e[i + ROW / 2];
        x[i] = __builtin_fabsf(low) + __builtin_fabsf(high);
    }
    return halve_half(x);
}

/* The sum of |q| over up to CHUNK coordinates, by halving rows of 256 and the row of their sums.
 * `checked`: what is not finite counts 0; else it shows in the sum. */
MPISIGN_FN float chunk_sum(int checked, const feedback *f, int64_t first, int64_t last)
{
    float sums[ROW];
    int rows = 0;
    for (int64_t at = first; at < last; at += ROW) {
        float x[ROW];
        if (last - at >= ROW) {
            fetch_ahead(f, f->grad, item_size(f->dtype), at, ROW);
            if (!checked && f->ahead) { /* from memory, one stream after the other is faster */
                sums[rows++] = row_sum(f, at);
                continue;
            }
            for (int k = 0; k < 4; k++)
                corrected64(f, at + 64 * k, 64, x + 64 * k);
        } else {
            memset(x, 0, sizeof x);
            for (int64_t here = at; here < last; here += 64)
                corrected64(f, here, last - here, x + here - at);
        }
        for (int i = 0; i < ROW; i++) {
            float a = __builtin_fabsf(x[i]);
            x[i] = !checked || a < __builtin_inff() ? a : 0.0f;
        }
        sums[rows++] = halve(x);
    }
    if (rows == 1)
        return sums[0];
    memset(sums + rows, 0, (size_t)(ROW - rows) * sizeof *sums);
    return halve(sums);
}

static ALONE float ISA(sum_of_chunk)(int checked, const feedback *f, int64_t first, int64_t last)
{
    return checked ? chunk_sum(1, f, first, last) : chunk_sum(0, f, first, last);
}

/* The sum over a block bigger than CHUNK: rows of the sums of rows, until one is left. */
static float ISA(sum_of_block)(int checked, const feedback *f, int64_t first, int64_t last,
                               int threads)
{
    float above[ROWS_ABOVE][ROW], sums[ROW], sum = 0;
    int count[ROWS_ABOVE] = {0};
    for (int64_t at = first; at < last; at += (int64_t)ROW * CHUNK) {
        memset(sums, 0, sizeof sums);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (int k = 0; k < ROW; k++) {
            const int64_t here = at + (int64_t)k * CHUNK;
            const uint64_t floats = plain_floats();
            if (here < last)
                sums[k] = ISA(sum_of_chunk)(checked, f, here,
                                            last - here < CHUNK ? last : here + CHUNK);
            restore_floats(floats);
        }
        sum = halve(sums);
        for (int row = 0; row < ROWS_ABOVE; row++) {
            above[row][count[row]++] = sum;
            if (count[row] < ROW)
                break;
            sum = halve(above[row]);
            count[row] = 0;
        }
    }
    for (int row = 0; row < ROWS_ABOVE; row++) {
        if (count[row] == 0)
            continue;
        memset(above[row] + count[row], 0, (size_t)(ROW - count[row]) * sizeof sum);
        sum = halve(above[row]);
        if (row + 1 < ROWS_ABOVE)
            above[row + 1][count[row + 1]++] = sum;
    }
    return sum;
}
