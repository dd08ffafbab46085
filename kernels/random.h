/* Random bits, many blocks of Philox at a time. */
#ifndef MPISIGN_RANDOM_H
#define MPISIGN_RANDOM_H

#include "lanes.h"
#include "philox.h"

/* Blocks made at a time: several chains of dependent multiplications keep a core busy. */
enum { RANDOM_BATCH = 16, RANDOM_BATCH_BYTES = 16 * RANDOM_BATCH };

/* The keys of the ten rounds, worked out once for many batches. */
typedef struct {
    uint64_t k0[10], k1[10];
    uint32_t step, stream;
} philox_keys;

MPISIGN_FN philox_keys keys_of(const mpisign_random *rnd)
{
    philox_keys keys = {.step = (uint32_t)rnd->step, .stream = rnd->stream};
    for (uint32_t i = 0; i < 10; i++) {
        keys.k0[i] = (uint32_t)rnd->seed + i * 0x9E3779B9u;
        keys.k1[i] = (uint32_t)(rnd->seed >> 32) + i * 0xBB67AE85u;
    }
    return keys;
}

enum { BATCH_LANES = RANDOM_BATCH_BYTES / BLOCK };

/* Where all lanes of a batch fit the registers beside sixteen rows. */
#if defined(MPISIGN_AVX512)
#define UNROLL_BATCH MPISIGN_UNROLL
#else
#define UNROLL_BATCH
#endif

/* Blocks with counters c .. c + 15. On x86-64 in 64-bit lanes, whose upper halves are junk: the
 * multiplication reads the lower ones alone. */
MPISIGN_FN void philox_lanes(const philox_keys *keys, uint64_t c, lanes out[BATCH_LANES])
{
#if defined(MPISIGN_AVX512)
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
    __m512i c0[2], c1[2], c2[2], c3[2];
    MPISIGN_UNROLL
    for (int i = 0; i < 2; i++) {
        c0[i] = _mm512_add_epi64(_mm512_set1_epi64((long long)c + 8 * i),
                                 _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
        c1[i] = _mm512_srli_epi64(c0[i], 32);
        c2[i] = _mm512_set1_epi64(keys->step);
        c3[i] = _mm512_set1_epi64(keys->stream);
    }
    MPISIGN_UNROLL
    for (int r = 0; r < 10; r++) {
        const __m512i k0 = _mm512_set1_epi64((long long)keys->k0[r]);
        const __m512i k1 = _mm512_set1_epi64((long long)keys->k1[r]);
        MPISIGN_UNROLL
        for (int i = 0; i < 2; i++) {
            __m512i p0 = _mm512_mul_epu32(c0[i], m0), p1 = _mm512_mul_epu32(c2[i], m1);
            c0[i] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[i], k0, 0x96);
            c2[i] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[i], k1, 0x96);
            c1[i] = p1;
            c3[i] = p0;
        }
    }
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i second = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    MPISIGN_UNROLL
    for (int i = 0; i < 2; i++) {
        __m512i low = _mm512_mask_blend_epi32(0xaaaa, c0[i], _mm512_slli_epi64(c1[i], 32));
        __m512i high = _mm512_mask_blend_epi32(0xaaaa, c2[i], _mm512_slli_epi64(c3[i], 32));
        out[2 * i] = _mm512_permutex2var_epi64(low, first, high);
        out[2 * i + 1] = _mm512_permutex2var_epi64(low, second, high);
    }
#elif defined(MPISIGN_AVX2)
    const __m256i m0 = _mm256_set1_epi64x(0xD2511F53u), m1 = _mm256_set1_epi64x(0xCD9E8D57u);
    for (int half = 0; half < 2; half++, c += 8, out += 4) {
        __m256i c0[2], c1[2], c2[2], c3[2];
        MPISIGN_UNROLL
        for (int i = 0; i < 2; i++) {
            c0[i] = _mm256_add_epi64(_mm256_set1_epi64x((long long)c + 4 * i),
                                     _mm256_set_epi64x(3, 2, 1, 0));
            c1[i] = _mm256_srli_epi64(c0[i], 32);
            c2[i] = _mm256_set1_epi64x(keys->step);
            c3[i] = _mm256_set1_epi64x(keys->stream);
        }
        MPISIGN_UNROLL
        for (int r = 0; r < 10; r++) {
            const __m256i k0 = _mm256_set1_epi64x((long long)keys->k0[r]);
            const __m256i k1 = _mm256_set1_epi64x((long long)keys->k1[r]);
            MPISIGN_UNROLL
            for (int i = 0; i < 2; i++) {
                __m256i p0 = _mm256_mul_epu32(c0[i], m0), p1 = _mm256_mul_epu32(c2[i], m1);
                c0[i] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[i]), k0);
                c2[i] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[i]), k1);
                c1[i] = p1;
                c3[i] = p0;
            }
        }
        MPISIGN_UNROLL
        for (int i = 0; i < 2; i++) {
            __m256i low = _mm256_blend_epi32(c0[i], _mm256_slli_epi64(c1[i], 32), 0xaa);
            __m256i high = _mm256_blend_epi32(c2[i], _mm256_slli_epi64(c3[i], 32), 0xaa);
            __m256i even = _mm256_unpacklo_epi64(low, high);
            __m256i odd = _mm256_unpackhi_epi64(low, high);
            out[2 * i] = _mm256_permute2x128_si256(even, odd, 0x20);
            out[2 * i + 1] = _mm256_permute2x128_si256(even, odd, 0x31);
        }
    }
#else
    uint32_t c0[RANDOM_BATCH], c1[RANDOM_BATCH], c2[RANDOM_BATCH], c3[RANDOM_BATCH];
    for (uint32_t i = 0; i < RANDOM_BATCH; i++) {
        c0[i] = (uint32_t)(c + i);
        c1[i] = (uint32_t)((c + i) >> 32);
        c2[i] = keys->step;
        c3[i] = keys->stream;
    }
    for (int r = 0; r < 10; r++)
        for (int i = 0; i < RANDOM_BATCH; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ (uint32_t)keys->k0[r];
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ (uint32_t)keys->k1[r];
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
        }
    for (int i = 0; i < RANDOM_BATCH; i++) {
        uint8_t block[16];
        store_word(block, c0[i] | (uint64_t)c1[i] << 32, 8);
        store_word(block + 8, c2[i] | (uint64_t)c3[i] << 32, 8);
        out[i] = load_lanes(block);
    }
#endif
}

MPISIGN_FN void philox_batch(const philox_keys *keys, uint64_t c, uint8_t *out)
{
    lanes v[BATCH_LANES];
    philox_lanes(keys, c, v);
    for (int i = 0; i < BATCH_LANES; i++)
        store_lanes(out + i * BLOCK, v[i]);
}

/* Room that random_bytes needs for n bytes. */
#define RANDOM_ROOM(n) ((n) + 16 + RANDOM_BATCH_BYTES)

/* The random bits of bytes [at, at + n) of the planes: a place within `room`, RANDOM_ROOM(n) big. */
MPISIGN_FN const uint8_t *random_bytes(const mpisign_random *rnd, uint64_t at, int64_t n,
                                       uint8_t *room)
{
    const philox_keys keys = keys_of(rnd);
    uint64_t offset = rnd->byte_offset + at;
    int64_t skip = (int64_t)(offset & 15);
    for (int64_t done = 0; done < skip + n; done += RANDOM_BATCH_BYTES)
        philox_batch(&keys, (offset >> 4) + (uint64_t)done / 16, room + done);
    return room + skip;
}

#endif
