/* Weighted sums of rows, in fp64 and in the order of the rows; coefficients of 0 are not there.
 *
 * One or two sums are added up from the rows where they are; more, from a tile of the rows that are
 * needed, as fp64 in the first-level cache.
 */
#include "wide.h"

enum { MIX_TOGETHER = 8, MIX_STRETCH = 1024, MIX_DIRECT = 2 };

/* sums = a[0] p[0] + ... (sums += where it does not begin), for k rows. */
MPISIGN_FN void add_weighted(int fp64, int k, const char *const *p, const double *a, int begins,
                             int64_t count, double *sums)
{
    int64_t i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        wide s = begins ? (wide){0} : load_wide(sums + i);
        MPISIGN_UNROLL
        for (int j = 0; j < k; j++) {
            const wide x = fp64 ? load_wide((const double *)p[j] + i)
                                : widen((const float *)p[j] + i);
            const wide t = x * a[j];
            s = begins && j == 0 ? t : s + t;
        }
        store_wide(sums + i, s);
    }
    for (; i < count; i++) {
        double s = begins ? 0 : sums[i];
        for (int j = 0; j < k; j++) {
            double x;
            if (fp64) {
                memcpy(&x, p[j] + 8 * i, sizeof x);
            } else {
                float narrow;
                memcpy(&narrow, p[j] + 4 * i, sizeof narrow);
                x = (double)narrow;
            }
            const double t = x * a[j];
            s = begins && j == 0 ? t : s + t;
        }
        sums[i] = s;
    }
}

MPISIGN_FN void add_some(int fp64, int k, const char *const *p, const double *a, int begins,
                         int64_t count, double *sums)
{
    switch (k) {
    case 8: add_weighted(fp64, 8, p, a, begins, count, sums); break;
    case 4: add_weighted(fp64, 4, p, a, begins, count, sums); break;
    case 2: add_weighted(fp64, 2, p, a, begins, count, sums); break;
    default: add_weighted(fp64, 1, p, a, begins, count, sums); break;
    }
}

/* One sum of `count` coordinates; row r of the sources is at `data` + r * stride. */
static void ISA(mix_row)(int fp64, const char *data, int64_t stride, const mpisign_mixture *m,
                         int64_t row, int64_t count, double *sums)
{
    const int64_t first = row ? m->ends[row - 1] : 0, last = m->ends[row];
    if (first == last)
        memset(sums, 0, (size_t)count * sizeof *sums);
    for (int64_t j = first; j < last;) {
        const char *p[MIX_TOGETHER];
        const int64_t left = last - j;
        const int k = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int i = 0; i < k; i++)
            p[i] = data + m->columns[j + i] * stride;
        if (fp64)
            add_some(1, k, p, m->values + j, j == first, count, sums);
        else
            add_some(0, k, p, m->values + j, j == first, count, sums);
        j += k;
    }
}

static ALONE void ISA(mix_stretch)(const mpisign_rows *x, const mpisign_mixture *m, int direct,
                                   int64_t at, int64_t count, double *tile, int64_t width,
                                   char *out, uint8_t *finite)
{
    const int64_t size = item_size(x->dtype);
    double sums[MIX_STRETCH];
    for (int64_t row = 0; row < x->rows; row++) {
        if (!m->used[row])
            continue;
        if (!direct)
            ISA(row_fp64)(x, row, at, count, tile + row * width);
        ISA(look_at_row)(x, row, at, count, finite);
        if (at + count < x->length)
            fetch_row(x, row, at + count, width);
    }
    for (int64_t row = 0; row < m->rows; row++) {
        if (direct)
            ISA(mix_row)(x->dtype == MPISIGN_FP64, row_at(x, 0, at), x->stride, m, row, count,
                         sums);
        else
            ISA(mix_row)(1, (const char *)tile, width * 8, m, row, count, sums);
        for (int64_t i = count; i < padded(count); i++)
            sums[i] = 0;
        ISA(give_back)(sums, count, x->dtype, out + (row * x->length + at) * size);
    }
}

/* out: (m->rows, length); flags of rows that are not used stay 1. -1 if there is no memory. */
static int ISA(rows_mix)(const mpisign_rows *x, const mpisign_mixture *m, char *out,
                         uint8_t *finite, int threads)
{
    const int direct = m->rows <= MIX_DIRECT &&
                       (x->dtype == MPISIGN_FP32 || x->dtype == MPISIGN_FP64);
    const int64_t fit = x->rows ? TILE_BYTES / (8 * x->rows) / PIECE * PIECE : PIECE;
    const int64_t width = direct ? MIX_STRETCH
                          : fit < PIECE ? PIECE
                          : fit > MIX_STRETCH ? MIX_STRETCH : fit;
    const int64_t stretches = (x->length + width - 1) / width, own = direct ? 0 : x->rows * width;
    threads = threads < stretches ? threads : stretches ? (int)stretches : 1;
    double *room = malloc((size_t)(threads * own) * sizeof *room + 1);
    if (!room)
        return -1;
    memset(finite, 1, (size_t)x->rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        const uint64_t floats_before = plain_floats();
        for (int64_t k = stretches * t / threads; k < stretches * (t + 1) / threads; k++) {
            const int64_t at = k * width, left = x->length - at;
            ISA(mix_stretch)(x, m, direct, at, left < width ? left : width, room + t * own, width,
                             out, finite);
        }
        restore_floats(floats_before);
    }
    free(room);
    return 0;
}
