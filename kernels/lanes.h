/* What differs from one instruction set to the next: vectors, bits out of lanes, streaming stores.
 *
 * Included by a unit after its target pragma. The bodies are plain C on top of these.
 */
#ifndef MPISIGN_LANES_H
#define MPISIGN_LANES_H

#include "shared.h"

#define PASTE_TWICE(name, unit) name##_##unit
#define PASTE(name, unit) PASTE_TWICE(name, unit)
#define ISA(name) PASTE(name, MPISIGN_UNIT)
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

#define PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define PREFETCH_L2(p) __builtin_prefetch((p), 0, 2)

/* --- bit planes, a vector at a time --------------------------------------------------------- */

#if defined(MPISIGN_AVX512)
enum { BLOCK = 64 };
typedef __m512i lanes;
MPISIGN_FN lanes load_lanes(const uint8_t *p) { return _mm512_loadu_si512(p); }
MPISIGN_FN void store_lanes(uint8_t *p, lanes v) { _mm512_storeu_si512(p, v); }
MPISIGN_FN void stream_lanes(uint8_t *p, lanes v) { _mm512_stream_si512((void *)p, v); }
#define FULL_ADD(carry, sum, a, b, c)                                                              \
    do {                                                                                           \
        lanes a_ = (a), b_ = (b), c_ = (c);                                                        \
        (carry) = _mm512_ternarylogic_epi64(a_, b_, c_, 0xe8); /* majority */                      \
        (sum) = _mm512_ternarylogic_epi64(a_, b_, c_, 0x96);   /* parity */                        \
    } while (0)
#elif defined(MPISIGN_AVX2)
enum { BLOCK = 32 };
typedef __m256i lanes;
MPISIGN_FN lanes load_lanes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
MPISIGN_FN void store_lanes(uint8_t *p, lanes v) { _mm256_storeu_si256((__m256i *)p, v); }
MPISIGN_FN void stream_lanes(uint8_t *p, lanes v) { _mm256_stream_si256((__m256i *)p, v); }
#else
enum { BLOCK = 16 };
typedef uint64_t lanes __attribute__((vector_size(16)));
MPISIGN_FN lanes load_lanes(const uint8_t *p)
{
    lanes v;
    memcpy(&v, p, BLOCK);
    return v;
}
MPISIGN_FN void store_lanes(uint8_t *p, lanes v) { memcpy(p, &v, BLOCK); }
MPISIGN_FN void stream_lanes(uint8_t *p, lanes v) { memcpy(p, &v, BLOCK); }
#endif

MPISIGN_FN lanes zero_lanes(void) { return (lanes){0}; }

/* A cache line past the cache. */
MPISIGN_FN void stream_line(uint8_t *out, const uint8_t *line)
{
    for (int i = 0; i < 64; i += BLOCK)
        stream_lanes(out + i, load_lanes(line + i));
}

/* Bits set in each 64-bit part of a block, for sums that are added up once at the end. */
typedef lanes lane_sums;
MPISIGN_FN lane_sums count_lanes(lanes v)
{
#if defined(MPISIGN_AVX512)
    const __m512i bits_of = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_shuffle_epi8(bits_of, _mm512_and_si512(v, nibble));
    __m512i high = _mm512_shuffle_epi8(bits_of,
                                       _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble));
    return _mm512_sad_epu8(_mm512_add_epi8(low, high), zero_lanes());
#elif defined(MPISIGN_AVX2)
    const __m256i bits_of = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i low = _mm256_shuffle_epi8(bits_of, _mm256_and_si256(v, nibble));
    __m256i high = _mm256_shuffle_epi8(bits_of,
                                       _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
    return _mm256_sad_epu8(_mm256_add_epi8(low, high), zero_lanes());
#else
    return (lanes){(uint64_t)__builtin_popcountll(v[0]), (uint64_t)__builtin_popcountll(v[1])};
#endif
}

MPISIGN_FN lane_sums add_sums(lane_sums a, lane_sums b)
{
#if defined(MPISIGN_AVX512)
    return _mm512_add_epi64(a, b);
#elif defined(MPISIGN_AVX2)
    return _mm256_add_epi64(a, b);
#else
    return a + b;
#endif
}

MPISIGN_FN int64_t total_of(lane_sums sums)
{
    uint64_t w[BLOCK / 8];
    int64_t total = 0;
    memcpy(w, &sums, BLOCK);
    for (int i = 0; i < BLOCK / 8; i++)
        total += (int64_t)w[i];
    return total;
}

#define LANES lanes
#include "adders.h"

/* Stores that leave the cache alone must be done before another thread reads: once a slice. */
MPISIGN_FN void end_of_stream(void)
{
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

/* Above this many bytes an output would only push other data out of the cache. */
enum { STREAM_BYTES = 4 << 20 };

/* --- the float environment ------------------------------------------------------------------- */

/* Rounding to nearest, subnormals kept: a process that flushes them has set this for some of its threads
 * only, and a result must not depend on who computes it. What is computed in between is in functions
 * that are not inlined, for the compiler knows nothing of this. */
#define ALONE __attribute__((noinline))
MPISIGN_FN uint64_t plain_floats(void)
{
#if defined(__x86_64__)
    const uint64_t before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    return before;
#elif defined(__aarch64__)
    const uint64_t plain = 0;
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(plain) : "memory");
    return before;
#else
    return 0;
#endif
}

MPISIGN_FN void restore_floats(uint64_t before)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
#else
    (void)before;
#endif
}

/* --- words of planes ------------------------------------------------------------------------ */

MPISIGN_FN uint64_t load_word(const uint8_t *plane, int bytes)
{
    uint64_t word = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (bytes == 8) {
        memcpy(&word, plane, 8);
        return word;
    }
#endif
    for (int i = 0; i < bytes; i++)
        word |= (uint64_t)plane[i] << (8 * i);
    return word;
}

MPISIGN_FN void store_word(uint8_t *plane, uint64_t word, int bytes)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (bytes == 8) {
        memcpy(plane, &word, 8);
        return;
    }
#endif
    for (int i = 0; i < bytes; i++)
        plane[i] = (uint8_t)(word >> (8 * i));
}

/* The coordinates of a word that exist, `count` of them, 1 to 64. */
MPISIGN_FN uint64_t valid_word(int64_t count)
{
    return ~0ull >> (64 - count);
}

#endif
