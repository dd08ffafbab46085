/* Order statistics of each coordinate across rows: trimmed means, medians, means around the median.
 *
 * A tile of all rows lies in the first-level cache. Sixteen rows are sorted at a time, in registers, as
 * they come from memory; Batcher's odd-even merges (Knuth 5.3.4, exercise 10) join the blocks by a list
 * of comparators, without those that no wanted row depends on. -0.0 and 0.0 are equals; sums begin
 * with 0.0, so that a zero comes out as 0.0.
 */
#include "wide.h"

/* Green's network of 60 for 16, and the best for 8 and 4 (Knuth 5.3.4). */
#define NETWORK_4(C) C(0, 2) C(1, 3) C(0, 1) C(2, 3) C(1, 2)
#define NETWORK_8(C)                                                                               \
    C(0, 2) C(1, 3) C(4, 6) C(5, 7) C(0, 4) C(1, 5) C(2, 6) C(3, 7) C(0, 1) C(2, 3) C(4, 5)        \
    C(6, 7) C(2, 4) C(3, 5) C(1, 4) C(3, 6) C(1, 2) C(3, 4) C(5, 6)
#define NETWORK_16(C)                                                                              \
    C(0, 13) C(1, 12) C(2, 15) C(3, 14) C(4, 8) C(5, 6) C(7, 11) C(9, 10) C(0, 5) C(1, 7) C(2, 9)  \
    C(3, 4) C(6, 13) C(8, 14) C(10, 15) C(11, 12) C(0, 1) C(2, 3) C(4, 5) C(6, 8) C(7, 9)          \
    C(10, 11) C(12, 13) C(14, 15) C(0, 2) C(1, 3) C(4, 10) C(5, 11) C(6, 7) C(8, 9) C(12, 14)      \
    C(13, 15) C(1, 2) C(3, 12) C(4, 6) C(5, 7) C(8, 10) C(9, 11) C(13, 14) C(1, 4) C(2, 6)         \
    C(5, 8) C(7, 10) C(9, 13) C(11, 14) C(2, 4) C(3, 6) C(9, 12) C(11, 13) C(3, 5) C(6, 8)         \
    C(7, 9) C(10, 12) C(3, 4) C(5, 6) C(7, 8) C(9, 10) C(11, 12) C(6, 7) C(8, 9)

enum { SORTED_TOGETHER = 16, WIDEST = 512 };
enum { NEITHER = 0, LOW = 1, HIGH = 2, BOTH = 3 };

typedef struct {
    int32_t low, high;
    int wanted;
} comparator;

#define REAL float
#define VECTOR floats
#define LOAD load_floats
#define STORE store_floats
#define LESS less_fp32
#define MORE more_fp32
#define WIDEN widen
#define TYPED(name) ISA(name##_fp32)
#include "order.inc"
#undef REAL
#undef VECTOR
#undef LOAD
#undef STORE
#undef LESS
#undef MORE
#undef WIDEN
#undef TYPED
#define REAL double
#define VECTOR wide
#define LOAD load_wide
#define STORE store_wide
#define LESS less_fp64
#define MORE more_fp64
#define WIDEN load_wide
#define TYPED(name) ISA(name##_fp64)
#include "order.inc"
#undef REAL
#undef VECTOR
#undef LOAD
#undef STORE
#undef LESS
#undef MORE
#undef WIDEN
#undef TYPED

/* Batcher's comparators that merge sorted blocks of 16, to `list` unless it is NULL; how many. */
static int64_t ISA(merges)(int64_t n, comparator *list)
{
    int64_t found = 0;
    for (int64_t p = SORTED_TOGETHER; p < n; p *= 2)
        for (int64_t k = p; k >= 1; k /= 2)
            for (int64_t j = k % p; j + k < n; j += 2 * k)
                for (int64_t i = j; i < j + k && i + k < n; i++)
                    if (i / (2 * p) == (i + k) / (2 * p)) {
                        if (list)
                            list[found] = (comparator){(int32_t)i, (int32_t)(i + k), BOTH};
                        found++;
                    }
    return found;
}

/* Leaves out comparators on which no row from low to high - 1 depends; how many are left. */
static int64_t ISA(prune)(comparator *list, int64_t found, uint8_t *wanted)
{
    int64_t first = found;
    for (int64_t i = found - 1; i >= 0; i--) {
        const comparator c = list[i];
        const int of_it = (wanted[c.low] ? LOW : 0) | (wanted[c.high] ? HIGH : 0);
        if (of_it == NEITHER)
            continue;
        wanted[c.low] = wanted[c.high] = 1;
        list[--first] = (comparator){c.low, c.high, of_it};
    }
    memmove(list, list + first, (size_t)(found - first) * sizeof *list);
    return found - first;
}

typedef struct {
    int64_t low, high; /* whose mean is wanted; all are sorted if nearest */
    int64_t nearest;   /* how many are wanted, or 0 */
    const comparator *merges;
    int64_t n_merges, width;
} order;

/* Coordinates [at, at + count) of all rows, sorted in `tile`, behind which lies a row of infinities. */
#define DEFINE_SORTED(NAME, REAL, ROW)                                                             \
    MPISIGN_FN void sorted_##NAME(const mpisign_rows *x, const order *o, int64_t at,               \
                                  int64_t count, REAL *tile, uint8_t *finite)                      \
    {                                                                                              \
        const int64_t width = padded(count);                                                       \
        REAL *const none = tile + x->rows * o->width;                                              \
        for (int64_t row = 0; row < x->rows; row += SORTED_TOGETHER) {                             \
            const int64_t left = x->rows - row;                                                    \
            const int rows = left < SORTED_TOGETHER ? (int)left : SORTED_TOGETHER;                 \
            const REAL *p[SORTED_TOGETHER];                                                        \
            for (int r = 0; r < SORTED_TOGETHER; r++)                                              \
                p[r] = none;                                                                       \
            for (int r = 0; r < rows; r++) {                                                       \
                ISA(look_at_row)(x, row + r, at, count, 2 * o->width, finite);                     \
                p[r] = ROW(x, row + r, at, count, tile + (row + r) * width);                       \
            }                                                                                      \
            ISA(sort_rows_##NAME)(p, rows, width, tile + row * width);                             \
        }                                                                                          \
        ISA(merge_##NAME)(o->merges, o->n_merges, width, tile);                                    \
    }

/* A piece of a row of fp64, as row_fp32. */
MPISIGN_FN const double *row_of_fp64(const mpisign_rows *x, int64_t row, int64_t at, int64_t count,
                                     double *room)
{
    if (count % PIECE == 0)
        return (const double *)row_at(x, row, at);
    ISA(row_fp64)(x, row, at, count, room);
    return room;
}
DEFINE_SORTED(fp32, float, ISA(row_fp32))
DEFINE_SORTED(fp64, double, row_of_fp64)

static ALONE void ISA(order_of_tile)(const mpisign_rows *x, const order *o, int64_t at,
                                     int64_t count, void *tile, char *out, uint8_t *finite)
{
    double means[WIDEST];
    const int64_t width = padded(count);
    if (x->dtype == MPISIGN_FP64) {
        sorted_fp64(x, o, at, count, tile, finite);
        if (o->nearest)
            ISA(mean_nearest_fp64)(tile, width, x->rows, o->nearest, means);
        else
            ISA(mean_between_fp64)(tile, width, o->low, o->high, means);
    } else {
        sorted_fp32(x, o, at, count, tile, finite);
        if (o->nearest)
            ISA(mean_nearest_fp32)(tile, width, x->rows, o->nearest, means);
        else
            ISA(mean_between_fp32)(tile, width, o->low, o->high, means);
    }
    ISA(give_back)(means, count, x->dtype, out + at * item_size(x->dtype));
}

static ALONE void ISA(fill_with_infinity)(int fp64, void *row, int64_t width)
{
    for (int64_t i = 0; i < width; i++)
        if (fp64)
            ((double *)row)[i] = __builtin_inf();
        else
            ((float *)row)[i] = __builtin_inff();
}

/* The mean of order statistics low to high - 1 if `nearest` is 0, else of so many values nearest to the
 * median. -1 if there is no memory. */
static int ISA(rows_order)(const mpisign_rows *x, int64_t low, int64_t high, int64_t nearest,
                           char *out, uint8_t *finite, int threads)
{
    const int fp64 = x->dtype == MPISIGN_FP64;
    const int64_t n = x->rows, item = fp64 ? 8 : 4;
    const int64_t fit = TILE_BYTES / (item * n) / PIECE * PIECE;
    const int64_t width = fit < PIECE ? PIECE : fit > WIDEST ? WIDEST : fit;
    const int64_t tiles = (x->length + width - 1) / width, found = ISA(merges)(n, NULL);
    threads = threads < tiles ? threads : tiles ? (int)tiles : 1;
    const int64_t own = (n + 1) * width * item;
    comparator *list = malloc((size_t)found * sizeof *list + (size_t)n);
    char *room = malloc((size_t)(threads * own));
    if (!list || !room) {
        free(list);
        free(room);
        return -1;
    }
    uint8_t *wanted = (uint8_t *)(list + found);
    ISA(merges)(n, list);
    for (int64_t row = 0; row < n; row++)
        wanted[row] = nearest || (row >= low && row < high);
    const order o = {low, high, nearest, list, ISA(prune)(list, found, wanted), width};
    memset(finite, 1, (size_t)n);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        const uint64_t floats_before = plain_floats();
        char *tile = room + t * own;
        ISA(fill_with_infinity)(fp64, tile + n * width * item, width);
        for (int64_t k = tiles * t / threads; k < tiles * (t + 1) / threads; k++) {
            const int64_t at = k * width, left = x->length - at;
            ISA(order_of_tile)(x, &o, at, left < width ? left : width, tile, out, finite);
        }
        restore_floats(floats_before);
    }
    free(room);
    free(list);
    return 0;
}
