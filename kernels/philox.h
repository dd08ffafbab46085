/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC11).
 *
 * Counter based, so that any rank, thread or GPU lane can produce any byte of the stream: byte b is
 * byte b % 16 of the block with counter (b / 16, step, stream) under key seed, little-endian.
 */
#ifndef MPISIGN_PHILOX_H
#define MPISIGN_PHILOX_H

#include "mpisign_kernels.h"

static inline void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Bytes [at, at + n) of the stream, counted from rnd->byte_offset. */
static inline void mpisign_random_bytes(const mpisign_random *rnd, uint64_t at, size_t n,
                                        uint8_t *out)
{
    uint64_t offset = rnd->byte_offset + at;
    const uint32_t key[2] = {(uint32_t)rnd->seed, (uint32_t)(rnd->seed >> 32)};
    while (n > 0) {
        uint64_t block = offset >> 4;
        size_t skip = offset & 15, take = 16 - skip;
        if (take > n)
            take = n;
        const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)rnd->step,
                                     rnd->stream};
        uint32_t words[4];
        uint8_t bytes[16];
        philox4x32_10(counter, key, words);
        for (int i = 0; i < 16; i++)
            bytes[i] = (uint8_t)(words[i >> 2] >> (8 * (i & 3)));
        memcpy(out, bytes + skip, take);
        out += take;
        offset += take;
        n -= take;
    }
}

#endif
