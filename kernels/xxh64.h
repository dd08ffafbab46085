/* XXH64 by Yann Collet: a hash of 64 bits about as fast as memory, not safe against collisions that
   somebody looks for. Source: https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md. */
#include <stdint.h>
#include <string.h>

#define XXH_1 0x9E3779B185EBCA87ULL
#define XXH_2 0xC2B2AE3D27D4EB4FULL
#define XXH_3 0x165667B19E3779F9ULL
#define XXH_4 0x85EBCA77C2B2AE63ULL
#define XXH_5 0x27D4EB2F165667C5ULL

static inline uint64_t xxh_rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static inline uint64_t xxh_round(uint64_t lane, uint64_t word)
{
    return xxh_rotate(lane + word * XXH_2, 31) * XXH_1;
}

static inline uint64_t xxh_read(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

/* Of `n` bytes at any address; little-endian machines alone, as all of the package. */
static uint64_t xxh64(const uint8_t *data, int64_t n, uint64_t seed)
{
    const uint8_t *const end = data + n;
    uint64_t h = seed + XXH_5;
    if (n >= 32) {
        uint64_t lanes[4] = {seed + XXH_1 + XXH_2, seed + XXH_2, seed, seed - XXH_1};
        for (; end - data >= 32; data += 32)
            for (int i = 0; i < 4; i++)
                lanes[i] = xxh_round(lanes[i], xxh_read(data + 8 * i));
        h = xxh_rotate(lanes[0], 1) + xxh_rotate(lanes[1], 7) + xxh_rotate(lanes[2], 12) +
            xxh_rotate(lanes[3], 18);
        for (int i = 0; i < 4; i++)
            h = (h ^ xxh_round(0, lanes[i])) * XXH_1 + XXH_4;
    }
    h += (uint64_t)n;
    for (; end - data >= 8; data += 8)
        h = xxh_rotate(h ^ xxh_round(0, xxh_read(data)), 27) * XXH_1 + XXH_4;
    if (end - data >= 4) {
        uint32_t word;
        memcpy(&word, data, sizeof word);
        h = xxh_rotate(h ^ word * XXH_1, 23) * XXH_2 + XXH_3;
        data += 4;
    }
    for (; data < end; data++)
        h = xxh_rotate(h ^ *data * XXH_5, 11) * XXH_1;
    h = (h ^ h >> 33) * XXH_2;
    h = (h ^ h >> 29) * XXH_3;
    return h ^ h >> 32;
}
