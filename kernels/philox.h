/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC11).
 *
 * Counter based, so that any rank, thread or GPU lane can produce any part of a stream. The block
 * with counter (c, step, stream) under key seed is 16 bytes, little-endian; c is 64 bits:
 *   bits    one per coordinate (zeros, ties): byte b of a plane is byte b % 16 of block b / 16
 *   halves  16 per coordinate (sparsign): half i % 8 of block i / 8, with bit 63 of c set
 *   words   32 per coordinate, where the 16 do not decide: word i % 4 of block i / 4, bits 63, 62 set
 */
#ifndef MPISIGN_PHILOX_H
#define MPISIGN_PHILOX_H

#include "shared.h"

#define MPISIGN_HALVES (1ull << 63)
#define MPISIGN_WORDS (3ull << 62)

MPISIGN_FN void philox4x32_10(uint64_t c, uint32_t step, uint32_t stream, uint64_t seed,
                              uint32_t out[4])
{
    uint32_t c0 = (uint32_t)c, c1 = (uint32_t)(c >> 32), c2 = step, c3 = stream;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
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

/* The 64 (8 bytes) random bits for bytes [at, at + 8) of the planes.
 * No array is indexed by what is known only at run time: a GPU would keep it in memory. */
MPISIGN_FN uint64_t mpisign_random_bits64(const mpisign_random *rnd, uint64_t at)
{
    uint64_t offset = rnd->byte_offset + at, low, high, next;
    uint32_t w[4];
    int skip = (int)(offset & 7) * 8, half = (int)(offset >> 3 & 1);
    philox4x32_10(offset >> 4, (uint32_t)rnd->step, rnd->stream, rnd->seed, w);
    low = w[0] | (uint64_t)w[1] << 32;
    high = w[2] | (uint64_t)w[3] << 32;
    if (skip == 0)
        return half ? high : low;
    if (half == 0)
        return low >> skip | high << (64 - skip);
    philox4x32_10((offset >> 4) + 1, (uint32_t)rnd->step, rnd->stream, rnd->seed, w);
    next = w[0] | (uint64_t)w[1] << 32;
    return high >> skip | next << (64 - skip);
}

/* The random byte for byte `at` of the planes. */
MPISIGN_FN uint8_t mpisign_random_byte(const mpisign_random *rnd, uint64_t at)
{
    uint64_t offset = rnd->byte_offset + at;
    uint32_t w[4], low, high;
    philox4x32_10(offset >> 4, (uint32_t)rnd->step, rnd->stream, rnd->seed, w);
    low = offset & 4 ? w[1] : w[0];
    high = offset & 4 ? w[3] : w[2];
    return (uint8_t)((offset & 8 ? high : low) >> (8 * (offset & 3)));
}

#endif
