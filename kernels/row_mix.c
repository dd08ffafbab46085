/* Weighted sums of rows, in fp64 and in the order of the rows; coefficients of 0 are not there, and
 * coefficients that are all equal multiply the sum.
 *
 * Rows that are needed once or twice are added up where they are; others, from a tile of them as fp64
 * in the first-level cache.
 */
#include "wide.h"

enum { MIX_TOGETHER = 8, MIX_STRETCH = 256, MIX_DIRECT = 2 };

/* One sum of rows, of those that are at `data` + row * `stride`, of which the bytes `ahead` are fetched. */
typedef struct {
    const char *data;
    int64_t stride;
    const int64_t *columns;
    const double *values;
    int64_t n, ahead;
    int weighted; /* else all values are the same */
} mixed;

/* sums = w[0] p[0] + ... (sums += where it does not begin), for k rows from number j on. */
MPISIGN_FN void add_weighted(int fp64, int weighted, int k, const mixed *m, int64_t j,
                             int64_t count, double *sums)
{
    enum { MOST_PARTS = 16 / WIDE };
    const int line = fp64 ? 8 : 16, parts = line / WIDE, begins = j == 0;
    const int64_t ahead = m->ahead;
    const char *p[MIX_TOGETHER];
    double w[MIX_TOGETHER];
    int64_t i = 0;
    for (int r = 0; r < k; r++) {
        p[r] = m->data + m->columns[j + r] * m->stride;
        w[r] = m->values[j + r];
    }
    for (; i + line <= count; i += line) {
        wide s[MOST_PARTS];
        MPISIGN_UNROLL
        for (int part = 0; part < parts; part++)
            s[part] = begins ? (wide){0} : load_wide(sums + i + part * WIDE);
        MPISIGN_UNROLL
        for (int r = 0; r < k; r++) {
            const char *from = p[r] + i * (fp64 ? 8 : 4);
            PREFETCH_L2(from + ahead);
            MPISIGN_UNROLL
            for (int part = 0; part < parts; part++) {
                wide x = fp64 ? load_wide((const double *)from + part * WIDE)
                              : widen((const float *)from + part * WIDE);
                x = weighted ? x * w[r] : x;
                s[part] = begins && r == 0 ? x : s[part] + x;
            }
        }
        MPISIGN_UNROLL
        for (int part = 0; part < parts; part++)
            store_wide(sums + i + part * WIDE, s[part]);
    }
    for (; i < count; i++) {
        double s = begins ? 0 : sums[i];
        for (int r = 0; r < k; r++) {
            double x;
            if (fp64) {
                memcpy(&x, p[r] + 8 * i, sizeof x);
            } else {
                float narrow;
                memcpy(&narrow, p[r] + 4 * i, sizeof narrow);
                x = (double)narrow;
            }
            x = weighted ? x * w[r] : x;
            s = begins && r == 0 ? x : s + x;
        }
        sums[i] = s;
    }
}

MPISIGN_FN void add_all(int fp64, int weighted, const mixed *m, int64_t count, double *sums)
{
    int64_t j = 0;
    for (; j + 8 <= m->n; j += 8)
        add_weighted(fp64, weighted, 8, m, j, count, sums);
    for (; j + 2 <= m->n; j += 2)
        add_weighted(fp64, weighted, 2, m, j, count, sums);
    if (j < m->n)
        add_weighted(fp64, weighted, 1, m, j, count, sums);
}

static void ISA(mix_row)(int fp64, const mixed *m, int64_t count, double *sums)
{
    if (m->n == 0)
        memset(sums, 0, (size_t)count * sizeof *sums);
    if (fp64 && m->weighted)
        add_all(1, 1, m, count, sums);
    else if (fp64)
        add_all(1, 0, m, count, sums);
    else if (m->weighted)
        add_all(0, 1, m, count, sums);
    else
        add_all(0, 0, m, count, sums);
    if (m->n && !m->weighted)
        for (int64_t i = 0; i < count; i++)
            sums[i] *= m->values[0];
}

MPISIGN_FN int are_equal(const double *values, int64_t n)
{
    for (int64_t i = 1; i < n; i++)
        if (values[i] != values[0])
            return 0;
    return 1;
}

static ALONE void ISA(mix_stretch)(const mpisign_rows *x, const mpisign_mixture *m, int direct,
                                   int64_t at, int64_t count, double *tile, int64_t width,
                                   char *out, uint8_t *finite)
{
    const int64_t size = item_size(x->dtype), ahead = 2 * width;
    /* A sum of fp32 that is finite tells that all its terms were. */
    const int look_later = direct && x->dtype == MPISIGN_FP32;
    double sums[MIX_STRETCH];
    for (int64_t row = 0; row < x->rows && !look_later; row++) {
        if (!m->used[row])
            continue;
        ISA(look_at_row)(x, row, at, count, ahead, finite);
        if (!direct)
            ISA(row_fp64)(x, row, at, count, tile + row * width);
    }
    for (int64_t row = 0; row < m->rows; row++) {
        const int64_t first = row ? m->ends[row - 1] : 0, n = m->ends[row] - first;
        mixed one = {(const char *)tile, width * 8, m->columns + first, m->values + first, n, 0,
                     !are_equal(m->values + first, n)};
        if (direct) {
            one.data = row_at(x, 0, at);
            one.stride = x->stride;
            one.ahead = look_later ? ahead * size : 0;
        }
        ISA(mix_row)(!direct || x->dtype == MPISIGN_FP64, &one, count, sums);
        if (look_later && any_odd64((const char *)sums, count, 0x0010000000000000u, 0))
            for (int64_t i = 0; i < n; i++)
                ISA(look_at_row)(x, one.columns[i], at, count, 0, finite);
        for (int64_t i = count; i < padded(count); i++)
            sums[i] = 0;
        ISA(give_back)(sums, count, x->dtype, out + (row * x->length + at) * size);
    }
}

/* out: (m->rows, length); flags of rows that are not used stay 1. -1 if there is no memory. */
static int ISA(rows_mix)(const mpisign_rows *x, const mpisign_mixture *m, char *out,
                         uint8_t *finite, int threads)
{
    int64_t used = 0;
    for (int64_t row = 0; row < x->rows; row++)
        used += m->used[row];
    const int direct = (m->rows == 0 || m->ends[m->rows - 1] <= MIX_DIRECT * used) &&
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
