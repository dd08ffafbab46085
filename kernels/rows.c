/* Rows of floats, one a rank: whether they are finite, and pieces of them as fp32 or fp64.
 *
 * Pieces are padded with zeros to a multiple of 64 coordinates. Finiteness is told by bit patterns:
 * added to the magnitude, a constant carries into the top bit of what is not finite, or of an fp64 too
 * large for its square (2^480 and more).
 */
#include "wide.h"

enum { PIECE = 64 };
#define LARGEST_FP64 0x5df0000000000000ull /* 2^480 */

/* `ahead`: bytes from what is read to what is fetched into the second-level cache, or 0. */
#define DEFINE_ANY_ODD(BITS)                                                                       \
    MPISIGN_FN int any_odd##BITS(const char *data, int64_t count, uint##BITS##_t carry,            \
                                 int64_t ahead)                                                    \
    {                                                                                              \
        typedef uint##BITS##_t word;                                                               \
        typedef word vector __attribute__((vector_size(BLOCK)));                                   \
        enum { LINE_ITEMS = 64 / sizeof(word) };                                                   \
        const word magnitude = (word)((word)~(word)0 >> 1);                                        \
        vector odd = {0};                                                                          \
        word any = 0;                                                                              \
        int64_t i = 0;                                                                             \
        for (; i + LINE_ITEMS <= count; i += LINE_ITEMS) {                                         \
            const char *line = data + i * (int64_t)sizeof(word);                                   \
            if (ahead)                                                                             \
                PREFETCH_L2(line + ahead);                                                         \
            MPISIGN_UNROLL                                                                         \
            for (int k = 0; k < 64; k += BLOCK) {                                                  \
                vector x;                                                                          \
                memcpy(&x, line + k, BLOCK);                                                       \
                odd |= (x & magnitude) + carry;                                                    \
            }                                                                                      \
        }                                                                                          \
        for (; i < count; i++) {                                                                   \
            word x;                                                                                \
            memcpy(&x, data + i * (int64_t)sizeof x, sizeof x);                                    \
            any |= (word)((word)(x & magnitude) + carry);                                          \
        }                                                                                          \
        for (int k = 0; k < (int)(BLOCK / sizeof(word)); k++)                                      \
            any |= odd[k];                                                                         \
        return any >> (BITS - 1);                                                                  \
    }
DEFINE_ANY_ODD(16)
DEFINE_ANY_ODD(32)
DEFINE_ANY_ODD(64)

MPISIGN_FN const char *row_at(const mpisign_rows *x, int64_t row, int64_t at)
{
    return x->data + row * x->stride + at * item_size(x->dtype);
}

/* Clears the row's flag if one of these coordinates is not finite; other threads may clear it too.
 * Reading for the first time what is read tile by tile, it fetches what comes `ahead` of it. */
static void ISA(look_at_row)(const mpisign_rows *x, int64_t row, int64_t at, int64_t count,
                             int64_t ahead, uint8_t *finite)
{
    const char *data = row_at(x, row, at);
    int odd;
    ahead *= item_size(x->dtype);
    switch (x->dtype) {
    case MPISIGN_FP32: odd = any_odd32(data, count, 0x00800000u, ahead); break;
    case MPISIGN_FP16: odd = any_odd16(data, count, 0x0400u, ahead); break;
    case MPISIGN_BF16: odd = any_odd16(data, count, 0x0080u, ahead); break;
    default: odd = any_odd64(data, count, (1ull << 63) - LARGEST_FP64, ahead);
    }
    if (odd)
        __atomic_store_n(finite + row, 0, __ATOMIC_RELAXED);
}

static void ISA(rows_finite)(const mpisign_rows *x, uint8_t *finite, int threads)
{
    enum { STRETCH = 1 << 15 };
    const int64_t stretches = (x->length + STRETCH - 1) / STRETCH;
    memset(finite, 1, (size_t)x->rows);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t k = 0; k < x->rows * stretches; k++) {
        const int64_t at = k % stretches * STRETCH, left = x->length - at;
        ISA(look_at_row)(x, k / stretches, at, left < STRETCH ? left : STRETCH, 0, finite);
    }
}

MPISIGN_FN int64_t padded(int64_t count)
{
    return (count + PIECE - 1) / PIECE * PIECE;
}

/* A piece of a row as fp32, of rows that are not fp64: where it is, if nothing has to be done, or in
 * `room`. */
static const float *ISA(row_fp32)(const mpisign_rows *x, int64_t row, int64_t at, int64_t count,
                                  float *room)
{
    const char *from = row_at(x, row, at);
    const int64_t size = item_size(x->dtype);
    if (x->dtype == MPISIGN_FP32) {
        if (count % PIECE == 0)
            return (const float *)from;
        memcpy(room, from, (size_t)(count * size));
        memset(room + count, 0, (size_t)(padded(count) - count) * sizeof *room);
        return room;
    }
    for (int64_t i = 0; i < count; i += PIECE) {
        uint16_t last[PIECE] = {0};
        const void *piece = from + i * size;
        if (count - i < PIECE)
            piece = memcpy(last, piece, (size_t)((count - i) * size));
        ISA(widen64)(x->dtype, piece, room + i);
    }
    return room;
}

/* A piece of a row as fp64, in `room`. */
static void ISA(row_fp64)(const mpisign_rows *x, int64_t row, int64_t at, int64_t count,
                          double *room)
{
    if (x->dtype == MPISIGN_FP64) {
        memcpy(room, row_at(x, row, at), (size_t)count * sizeof *room);
        memset(room + count, 0, (size_t)(padded(count) - count) * sizeof *room);
        return;
    }
    for (int64_t i = 0; i < count; i += PIECE) {
        float narrow[PIECE];
        const float *from = ISA(row_fp32)(x, row, at + i, count - i < PIECE ? count - i : PIECE,
                                          narrow);
        for (int k = 0; k < PIECE; k += WIDE)
            store_wide(room + i + k, widen(from + k));
    }
}

/* Sums to `dtype`, of as many as exist; `sums` is padded. */
static void ISA(give_back)(const double *sums, int64_t count, int dtype, char *out)
{
    const int64_t size = item_size(dtype);
    if (dtype == MPISIGN_FP64) {
        memcpy(out, sums, (size_t)(count * size));
        return;
    }
    for (int64_t i = 0; i < count; i += PIECE, out += PIECE * size) {
        float narrow[PIECE];
        uint16_t halves[PIECE];
        for (int k = 0; k < PIECE; k++)
            narrow[k] = (float)sums[i + k];
        if (dtype == MPISIGN_FP32 && count - i >= PIECE) {
            memcpy(out, narrow, sizeof narrow);
            continue;
        }
        if (dtype != MPISIGN_FP32)
            ISA(narrow64)(dtype, narrow, halves);
        memcpy(out, dtype == MPISIGN_FP32 ? (void *)narrow : halves,
               (size_t)((count - i < PIECE ? count - i : PIECE) * size));
    }
}
