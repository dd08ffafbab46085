/* Many arrays into one plane by one launch, under any rule of gpu_rules.h.
 *
 * The table of pieces lies in device memory. A block finds its piece there: 32 lanes look at 32
 * candidates at a time, so that 1,024 pieces take two loads one after the other and not ten.
 */
#include "gpu_rules.h"

/* The last piece whose first block is at or before `block`. */
MPISIGN_FN int64_t find_piece(const Piece *pieces, int64_t n, int64_t block)
{
    int64_t low = 0, high = n, lane = threadIdx.x & 31;
    while (high - low > 1) {
        int64_t stride = (high - low + 31) / 32, at = low + lane * stride;
        bool before = at < high && pieces[at].block <= block;
        int64_t last = __popc(__ballot_sync(0xffffffffu, before)) - 1;
        low += last * stride;
        high = high < low + stride ? high : low + stride;
    }
    return low;
}

#define PIECES(name, RULE)                                                                         \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const Piece *pieces, int64_t n, float a, float b, float c, float d,            \
                    uint8_t *sign, uint8_t *mask, int64_t zeros, uint64_t seed, uint64_t step,     \
                    uint64_t stream, uint64_t byte_offset, unsigned long long *census))            \
    {                                                                                              \
        Piece piece = pieces[find_piece(pieces, n, blockIdx.x)];                                   \
        Call call = {a, b, c, d, sign, mask, zeros, {seed, step, (uint32_t)stream, byte_offset}};  \
        add_census(pack_block<RULE>(piece, (int64_t)blockIdx.x - piece.block, call), census);      \
    }

PIECES(pieces_sign, SIGN)
PIECES(pieces_signum, SIGNUM)
PIECES(pieces_lion, LION)
PIECES(pieces_sparsign, SPARSIGN)

/* Tables and weights come as arguments of launches: those are copied when the launch is queued, so
 * that no host memory has to stay as it is until the device gets to it, and nothing waits. */
struct Rows {
    int64_t row[8 * 62];
};

MPISIGN_KERNEL(THREADS, store_table, (int64_t *table, int64_t count, Rows rows))
{
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        table[i] = rows.row[i];
}
