/* What differs from one instruction set to the next: vectors, bits out of lanes, streaming stores.
 *
 * Included by a unit after its target pragma. The bodies are plain C on top of these.
 */
#ifndef MPISIGN_LANES_H
#define MPISIGN_LANES_H

#include "philox.h"

#define PASTE_TWICE(name, unit) name##_##unit
#define PASTE(name, unit) PASTE_TWICE(name, unit)
#define ISA(name) PASTE(name, MPISIGN_UNIT)
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define PREFETCH_L2(p) __builtin_prefetch((p), 0, 2)

/* 64 coordinates, one bit each. */
typedef struct {
    uint64_t sign, zero, nan;
} words64;

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

/* --- floats to bits ------------------------------------------------------------------------- */

#if !defined(MPISIGN_AVX512) && !defined(MPISIGN_AVX2)
/* The top bits of 64 bytes, first byte lowest. */
MPISIGN_FN uint64_t top_bits(const uint8_t *bytes)
{
#if defined(__aarch64__)
    const uint8x16_t weights = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
    uint8x16_t v[4];
    for (int i = 0; i < 4; i++) {
        int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(bytes + 16 * i));
        v[i] = vandq_u8(vreinterpretq_u8_s8(vshrq_n_s8(x, 7)), weights);
    }
    uint8x16_t pairs = vpaddq_u8(vpaddq_u8(v[0], v[1]), vpaddq_u8(v[2], v[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
#else
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t x = 0;
        for (int k = 0; k < 8; k++)
            x |= (uint64_t)bytes[8 * i + k] << (8 * k);
        word |= ((x >> 7 & 0x0101010101010101ull) * 0x0102040810204080ull >> 56) << (8 * i);
    }
    return word;
#endif
}
#endif

/* The classes of 64 floats are told by their bit patterns: no rounding mode, no flush to zero.
 * Zeros and NaNs are rare, so they are told apart only where there is one: both have
 * magnitude - 1 >= infinity as unsigned integers. */
#if defined(MPISIGN_AVX512)
#define DEFINE_CLASSIFY(BITS, PER, UINT, NAME, INFINITY_BITS)                                      \
    MPISIGN_FN words64 classify64_##NAME(const void *data)                                         \
    {                                                                                              \
        const __m512i magnitude = _mm512_set1_epi##BITS((long long)((UINT)~(UINT)0 >> 1));         \
        const __m512i infinity = _mm512_set1_epi##BITS((long long)(INFINITY_BITS));                \
        const __m512i one = _mm512_set1_epi##BITS(1);                                              \
        words64 w = {0, 0, 0};                                                                     \
        uint64_t odd = 0;                                                                          \
        __m512i x[64 / PER];                                                                       \
        for (int i = 0; i < 64 / PER; i++) {                                                       \
            x[i] = _mm512_loadu_si512((const char *)data + 64 * i);                                \
            __m512i a = _mm512_and_si512(x[i], magnitude);                                         \
            odd |= (uint64_t)_mm512_cmp_epu##BITS##_mask(_mm512_sub_epi##BITS(a, one), infinity,   \
                                                         _MM_CMPINT_NLT);                          \
            w.sign |= (uint64_t)_mm512_movepi##BITS##_mask(x[i]) << (PER * i);                     \
        }                                                                                          \
        if (__builtin_expect(odd != 0, 0))                                                         \
            for (int i = 0; i < 64 / PER; i++) {                                                   \
                __m512i a = _mm512_and_si512(x[i], magnitude);                                     \
                w.zero |= (uint64_t)_mm512_testn_epi##BITS##_mask(a, a) << (PER * i);              \
                w.nan |= (uint64_t)_mm512_cmpgt_epu##BITS##_mask(a, infinity) << (PER * i);        \
            }                                                                                      \
        return w;                                                                                  \
    }
DEFINE_CLASSIFY(32, 16, uint32_t, fp32, 0x7f800000u)
DEFINE_CLASSIFY(16, 32, uint16_t, fp16, 0x7c00u)
DEFINE_CLASSIFY(16, 32, uint16_t, bf16, 0x7f80u)
DEFINE_CLASSIFY(64, 8, uint64_t, fp64, 0x7ff0000000000000ull)
#else
#if defined(MPISIGN_AVX2)
MPISIGN_FN uint64_t sign_bits_32(const uint32_t *x)
{
    uint64_t w = 0;
    for (int i = 0; i < 8; i++)
        w |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_loadu_ps((const float *)(x + 8 * i)))
             << (8 * i);
    return w;
}
MPISIGN_FN uint64_t sign_bits_16(const uint16_t *x)
{
    uint64_t w = 0;
    for (int i = 0; i < 2; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(x + 32 * i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(x + 32 * i + 16));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
        w |= (uint64_t)(uint32_t)_mm256_movemask_epi8(both) << (32 * i);
    }
    return w;
}
MPISIGN_FN uint64_t sign_bits_64(const uint64_t *x)
{
    uint64_t w = 0;
    for (int i = 0; i < 16; i++)
        w |= (uint64_t)(uint32_t)_mm256_movemask_pd(_mm256_loadu_pd((const double *)(x + 4 * i)))
             << (4 * i);
    return w;
}
#else
#define DEFINE_SIGN_BITS(BITS)                                                                     \
    MPISIGN_FN uint64_t sign_bits_##BITS(const uint##BITS##_t *x)                                  \
    {                                                                                              \
        uint8_t bytes[64];                                                                         \
        for (int i = 0; i < 64; i++)                                                               \
            bytes[i] = (uint8_t)(x[i] >> (BITS - 8));                                              \
        return top_bits(bytes);                                                                    \
    }
DEFINE_SIGN_BITS(16)
DEFINE_SIGN_BITS(32)
DEFINE_SIGN_BITS(64)
#endif

#define DEFINE_CLASSIFY(BITS, NAME, INFINITY_BITS)                                                 \
    MPISIGN_FN words64 classify64_##NAME(const void *data)                                         \
    {                                                                                              \
        typedef uint##BITS##_t word;                                                               \
        typedef int##BITS##_t signed_word;                                                         \
        const word magnitude = (word)((word)~(word)0 >> 1);                                        \
        word x[64];                                                                                \
        word least = magnitude, most = 0;                                                          \
        memcpy(x, data, sizeof x);                                                                 \
        for (int i = 0; i < 64; i++) {                                                             \
            signed_word a = (signed_word)(x[i] & magnitude);                                       \
            least = (word)(a < (signed_word)least ? a : (signed_word)least);                       \
            most = (word)(a > (signed_word)most ? a : (signed_word)most);                          \
        }                                                                                          \
        words64 w = {sign_bits_##BITS(x), 0, 0};                                                   \
        if (__builtin_expect(least == 0 || most > (word)(INFINITY_BITS), 0)) {                     \
            word zero[64], nan[64];                                                                \
            for (int i = 0; i < 64; i++) {                                                         \
                word a = (word)(x[i] & magnitude);                                                 \
                zero[i] = (word)(a - 1); /* the top bit is set for 0 alone */                      \
                nan[i] = (word)((word)(INFINITY_BITS) - a);                                        \
            }                                                                                      \
            w.zero = sign_bits_##BITS(zero);                                                       \
            w.nan = sign_bits_##BITS(nan);                                                         \
        }                                                                                          \
        return w;                                                                                  \
    }
DEFINE_CLASSIFY(32, fp32, 0x7f800000u)
DEFINE_CLASSIFY(16, fp16, 0x7c00u)
DEFINE_CLASSIFY(16, bf16, 0x7f80u)
DEFINE_CLASSIFY(64, fp64, 0x7ff0000000000000ull)
#endif

MPISIGN_FN words64 classify64(int dtype, const void *data)
{
    switch (dtype) {
    case MPISIGN_FP32: return classify64_fp32(data);
    case MPISIGN_FP16: return classify64_fp16(data);
    case MPISIGN_BF16: return classify64_bf16(data);
    default: return classify64_fp64(data);
    }
}

MPISIGN_FN int item_size(int dtype)
{
    return dtype == MPISIGN_FP64 ? 8 : dtype == MPISIGN_FP32 ? 4 : 2;
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

/* --- random bits, many at a time ------------------------------------------------------------ */

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
