/* Squared distances among rows and the origin, by direct differences in fp64.
 *
 * A tile of all rows, as fp64, stays in the first-level cache while all pairs are gone through. Each
 * pair has eight sums, coordinate i in sum i mod 8, for each of up to 64 chunks whose size depends on
 * the length alone; they are added up in the order of the chunks. So neither threads nor vectors change
 * a bit.
 */
#include "wide.h"

enum { CHUNKS = 64, CHUNK_LEAST = 8192, SUMS = 8, TOGETHER_ROWS = 4, TILE_BYTES = 24 << 10, NORMS_AHEAD = 2048 };
enum { SUM_PARTS = SUMS / WIDE };
#define LARGEST_SQUARE 0x1p960 /* LARGEST_FP64 squared */

/* sums[j] += (a - b[j])^2 for k rows b, `width` apart. */
MPISIGN_FN void add_squares(int k, const double *a, const double *b, int64_t width, int64_t count,
                            double *sums)
{
    wide s[TOGETHER_ROWS][SUM_PARTS];
    MPISIGN_UNROLL
    for (int j = 0; j < k; j++)
        MPISIGN_UNROLL
        for (int p = 0; p < SUM_PARTS; p++)
            s[j][p] = load_wide(sums + SUMS * j + WIDE * p);
    for (int64_t i = 0; i < count; i += SUMS)
        MPISIGN_UNROLL
        for (int p = 0; p < SUM_PARTS; p++) {
            const wide x = load_wide(a + i + WIDE * p);
            MPISIGN_UNROLL
            for (int j = 0; j < k; j++) {
                const wide apart = x - load_wide(b + j * width + i + WIDE * p);
                s[j][p] += apart * apart;
            }
        }
    MPISIGN_UNROLL
    for (int j = 0; j < k; j++)
        MPISIGN_UNROLL
        for (int p = 0; p < SUM_PARTS; p++)
            store_wide(sums + SUMS * j + WIDE * p, s[j][p]);
}

/* The same from the origin, of k rows where they are: fp32 or fp64, `count` a multiple of 8. The bytes
 * `ahead` are fetched. */
MPISIGN_FN void add_norms(int fp64, int k, const char *data, int64_t stride, int64_t count,
                          int64_t ahead, double *sums)
{
    const int64_t size = fp64 ? 8 : 4;
    wide s[TOGETHER_ROWS][SUM_PARTS];
    MPISIGN_UNROLL
    for (int j = 0; j < k; j++)
        MPISIGN_UNROLL
        for (int p = 0; p < SUM_PARTS; p++)
            s[j][p] = load_wide(sums + SUMS * j + WIDE * p);
    for (int64_t i = 0; i < count; i += SUMS)
        MPISIGN_UNROLL
        for (int j = 0; j < k; j++) {
            const char *from = data + j * stride + i * size;
            if (ahead)
                PREFETCH_L2(from + ahead);
            MPISIGN_UNROLL
            for (int p = 0; p < SUM_PARTS; p++) {
                const wide x = fp64 ? load_wide((const double *)from + WIDE * p)
                                    : widen((const float *)from + WIDE * p);
                s[j][p] += x * x;
            }
        }
    MPISIGN_UNROLL
    for (int j = 0; j < k; j++)
        MPISIGN_UNROLL
        for (int p = 0; p < SUM_PARTS; p++)
            store_wide(sums + SUMS * j + WIDE * p, s[j][p]);
}

/* As above for any number of rows b. */
MPISIGN_FN void add_all_squares(const double *a, const double *b, int64_t rows, int64_t width,
                                int64_t count, double *sums)
{
    for (; rows >= TOGETHER_ROWS; rows -= TOGETHER_ROWS) {
        add_squares(TOGETHER_ROWS, a, b, width, count, sums);
        b += TOGETHER_ROWS * width;
        sums += TOGETHER_ROWS * SUMS;
    }
    switch (rows) {
    case 3: add_squares(3, a, b, width, count, sums); break;
    case 2: add_squares(2, a, b, width, count, sums); break;
    case 1: add_squares(1, a, b, width, count, sums); break;
    default: break;
    }
}

typedef struct {
    int64_t pairs, width; /* of a tile */
    int norms;            /* distances to the origin alone */
} pairwise;

MPISIGN_FN double sum_of_eight(const double *s)
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* Squared norms of coordinates [first, last) of fp32 or fp64, without a tile. */
static ALONE void ISA(norms_of_chunk)(const mpisign_rows *x, int64_t first, int64_t last,
                                      double *out, uint8_t *finite)
{
    const int64_t whole = (last - first) / SUMS * SUMS, rest = last - first - whole;
    for (int64_t row = 0; row < x->rows;) {
        double sums[TOGETHER_ROWS * SUMS] = {0};
        const char *data = row_at(x, row, first);
        const int k = x->rows - row >= TOGETHER_ROWS ? TOGETHER_ROWS : 1;
        if (x->dtype == MPISIGN_FP64) {
            if (k > 1)
                add_norms(1, TOGETHER_ROWS, data, x->stride, whole, NORMS_AHEAD, sums);
            else
                add_norms(1, 1, data, x->stride, whole, NORMS_AHEAD, sums);
        } else if (k > 1) {
            add_norms(0, TOGETHER_ROWS, data, x->stride, whole, NORMS_AHEAD, sums);
        } else {
            add_norms(0, 1, data, x->stride, whole, NORMS_AHEAD, sums);
        }
        for (int j = 0; j < k; j++, row++) {
            double last_few[PIECE];
            if (rest) {
                ISA(row_fp64)(x, row, first + whole, rest, last_few);
                add_norms(1, 1, (const char *)last_few, 0, SUMS, 0, sums + SUMS * j);
            }
            out[row] = sum_of_eight(sums + SUMS * j);
            if (!(out[row] < LARGEST_SQUARE)) /* NaN, infinity or a value from 2^480 on */
                ISA(look_at_row)(x, row, first, last - first, 0, finite);
        }
    }
}

/* Coordinates [first, last): one sum a pair, (0, 1) (0, 2) ... (n - 1, n), row n being the origin. */
static ALONE void ISA(distances_of_chunk)(const mpisign_rows *x, const pairwise *k, int64_t first,
                                          int64_t last, double *tile, double *sums, double *out,
                                          uint8_t *finite)
{
    const int64_t n = x->rows;
    double *origin = tile + n * k->width;
    memset(sums, 0, (size_t)(k->pairs * SUMS) * sizeof *sums);
    memset(origin, 0, (size_t)k->width * sizeof *origin);
    for (int64_t at = first; at < last; at += k->width) {
        const int64_t count = last - at < k->width ? last - at : k->width;
        const int64_t whole = (count + SUMS - 1) / SUMS * SUMS;
        for (int64_t row = 0; row < n; row++) {
            ISA(look_at_row)(x, row, at, count, 2 * k->width, finite);
            ISA(row_fp64)(x, row, at, count, tile + row * k->width);
        }
        if (k->norms)
            add_all_squares(origin, tile, n, k->width, whole, sums);
        else
            for (int64_t row = 0, pair = 0; row < n; pair += n - row++)
                add_all_squares(tile + row * k->width, tile + (row + 1) * k->width, n - row,
                                k->width, whole, sums + pair * SUMS);
    }
    for (int64_t pair = 0; pair < k->pairs; pair++)
        out[pair] = sum_of_eight(sums + pair * SUMS);
}

static ALONE void ISA(sum_of_chunks)(const double *sums, int64_t chunks, int64_t pairs, double *out)
{
    memset(out, 0, (size_t)pairs * sizeof *out);
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t pair = 0; pair < pairs; pair++)
            out[pair] += sums[c * pairs + pair];
}

/* out: one value a pair, or n squared norms; -1 if there is no memory. */
static int ISA(rows_distances)(const mpisign_rows *x, int norms, double *out, uint8_t *finite,
                               int threads)
{
    const int64_t n = x->rows, fit = TILE_BYTES / (8 * (n + 1)) / PIECE * PIECE;
    const pairwise k = {norms ? n : n * (n + 1) / 2, fit < PIECE ? PIECE : fit > 512 ? 512 : fit,
                         norms};
    int64_t chunk = padded((x->length + CHUNKS - 1) / CHUNKS);
    chunk = chunk < CHUNK_LEAST ? CHUNK_LEAST : chunk;
    const int64_t chunks = (x->length + chunk - 1) / chunk;
    threads = threads < chunks ? threads : chunks ? (int)chunks : 1;
    const int64_t tile = (n + 1) * k.width, own = tile + k.pairs * SUMS;
    double *room = malloc((size_t)(threads * own + chunks * k.pairs) * sizeof *room + 1);
    if (!room)
        return -1;
    double *parts = room + threads * own;
    memset(finite, 1, (size_t)n);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        const uint64_t floats_before = plain_floats();
        for (int64_t c = t; c < chunks; c += threads) {
            const int64_t first = c * chunk, left = x->length - first;
            const int64_t last = left < chunk ? x->length : first + chunk;
            double *sums = parts + c * k.pairs;
            if (norms && (x->dtype == MPISIGN_FP32 || x->dtype == MPISIGN_FP64))
                ISA(norms_of_chunk)(x, first, last, sums, finite);
            else
                ISA(distances_of_chunk)(x, &k, first, last, room + t * own, room + t * own + tile,
                                        sums, finite);
        }
        restore_floats(floats_before);
    }
    const uint64_t floats_before = plain_floats();
    ISA(sum_of_chunks)(parts, chunks, k.pairs, out);
    restore_floats(floats_before);
    free(room);
    return 0;
}
