/* One array to a sign plane, and a mask plane if `mask` is not 0; census int64 (2,): zeros, NaNs.
 *
 * Reads each item once in loads of 16 bytes; a block owns 8,192 coordinates.
 */
#include "gpu_rules.h"

#define PACK(name, DTYPE)                                                                          \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const void *data, int64_t length, uint8_t *sign, uint8_t *mask, int64_t zeros, \
                    uint64_t seed, uint64_t step, uint64_t stream, uint64_t byte_offset,           \
                    unsigned long long *census))                                                   \
    {                                                                                              \
        Piece piece = {data, length, DTYPE, 0, 0, 0, 0, 0};                                        \
        Call call = {0, 0, 0, 0, sign, mask, zeros, {seed, step, (uint32_t)stream, byte_offset}};  \
        add_census(pack_block<SIGN>(piece, blockIdx.x, call), census);        \
    }

PACK(pack_fp32, MPISIGN_FP32)
PACK(pack_fp16, MPISIGN_FP16)
PACK(pack_bf16, MPISIGN_BF16)
PACK(pack_fp64, MPISIGN_FP64)

/* An array of any strides (bytes), which Python has merged into as few dimensions as it can. */
enum { MAX_DIMS = 32 };

struct Layout {
    int64_t ndim;
    int64_t shape[MAX_DIMS];
    int64_t strides[MAX_DIMS];
};

/* Where coordinate i lies. Nearly always both fit 32 bits, where a division costs a fourth. */
MPISIGN_FN int64_t offset_of(const Layout &layout, int64_t i)
{
    int64_t offset = 0;
    for (int k = (int)layout.ndim - 1; k > 0; k--) {
        int64_t extent = layout.shape[k], rest;
        if ((uint64_t)(i | extent) >> 32) {
            rest = i / extent;
        } else {
            rest = (int64_t)((uint32_t)i / (uint32_t)extent);
        }
        offset += (i - rest * extent) * layout.strides[k];
        i = rest;
    }
    return offset + i * layout.strides[0];
}

/* One item after the other: the divisions are what takes the time, and code for 8 is no faster. */
template <int DTYPE>
MPISIGN_FN Ballot gather(const char *data, const Layout &layout, int64_t i, uint32_t present)
{
    Ballot all = {0, 0, 0};
    ROLLED
    for (int k = 0; k < 8; k++) {
        if (!(present >> k & 1))
            break;
        typename Item<DTYPE>::bits x[8] = {};
        x[0] = *(const typename Item<DTYPE>::bits *)(data + offset_of(layout, i + k));
        Ballot one = ballot_of_bits<DTYPE>(x);
        all.negative |= (one.negative & 1) << k;
        all.zero |= (one.zero & 1) << k;
        all.nan |= (one.nan & 1) << k;
    }
    return all;
}

#define PACK_STRIDED(name, DTYPE)                                                                  \
    MPISIGN_KERNEL(THREADS, name,                                                                  \
                   (const char *data, Layout layout, int64_t length, uint8_t *sign, uint8_t *mask, \
                    int64_t zeros, uint64_t seed, uint64_t step, uint64_t stream,                  \
                    uint64_t byte_offset, unsigned long long *census))                             \
    {                                                                                              \
        int64_t i = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x);                             \
        mpisign_random rnd = {seed, step, (uint32_t)stream, byte_offset};                          \
        uint32_t present = present8(i, length);                                                    \
        Ballot ballot = gather<DTYPE>(data, layout, i, present);                                   \
        Votes votes = cast_votes(ballot, present, i >> 3, sign, mask, zeros, &rnd);                \
        add_census(votes.counts, census);                                                          \
    }

PACK_STRIDED(pack_strided_fp32, MPISIGN_FP32)
PACK_STRIDED(pack_strided_fp16, MPISIGN_FP16)
PACK_STRIDED(pack_strided_bf16, MPISIGN_BF16)
PACK_STRIDED(pack_strided_fp64, MPISIGN_FP64)
