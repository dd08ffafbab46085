/* Sign planes to floats. */

/* 64 floats as bit patterns from a word of signs and one of votes: scale, -scale or +0.0. */
#if defined(MPISIGN_AVX512)
#define DEFINE_EXPAND(BITS, PER, MASK)                                                             \
    MPISIGN_FN void expand64_##BITS(uint64_t sign, uint64_t votes, uint64_t scale, int all,        \
                                    int stream, void *out)                                         \
    {                                                                                              \
        const __m512i plus = _mm512_set1_epi##BITS((long long)scale);                              \
        const __m512i minus = _mm512_set1_epi##BITS((long long)(scale ^ 1ull << (BITS - 1)));      \
        MPISIGN_UNROLL                                                                             \
        for (int i = 0; i < 64 / PER; i++) {                                                       \
            __m512i v = _mm512_mask_blend_epi##BITS((MASK)(sign >> (PER * i)), plus, minus);       \
            if (!all)                                                                              \
                v = _mm512_maskz_mov_epi##BITS((MASK)(votes >> (PER * i)), v);                     \
            if (stream)                                                                            \
                _mm512_stream_si512((void *)((char *)out + 64 * i), v);                            \
            else                                                                                   \
                _mm512_storeu_si512((char *)out + 64 * i, v);                                      \
        }                                                                                          \
    }
DEFINE_EXPAND(16, 32, __mmask32)
DEFINE_EXPAND(32, 16, __mmask16)
DEFINE_EXPAND(64, 8, __mmask8)
#elif defined(MPISIGN_AVX2)
/* Every lane looks at a bit of its own of the same few, broadcast. */
#define DEFINE_EXPAND(BITS, PER, SET1, BIT_OF_LANE, OF_BITS)                                       \
    MPISIGN_FN void expand64_##BITS(uint64_t sign, uint64_t votes, uint64_t scale, int all,        \
                                    int stream, void *out)                                         \
    {                                                                                              \
        const __m256i plus = SET1(scale), top = SET1(1ull << (BITS - 1)), bit = BIT_OF_LANE;       \
        for (int i = 0; i < 64 / PER; i++, sign >>= PER, votes >>= PER) {                          \
            __m256i minus = _mm256_cmpeq_epi##BITS(_mm256_and_si256(SET1(OF_BITS(sign)), bit),     \
                                                   bit);                                           \
            __m256i v = _mm256_xor_si256(plus, _mm256_and_si256(minus, top));                      \
            if (!all)                                                                              \
                v = _mm256_and_si256(v, _mm256_cmpeq_epi##BITS(                                    \
                                            _mm256_and_si256(SET1(OF_BITS(votes)), bit), bit));    \
            if (stream)                                                                            \
                _mm256_stream_si256((__m256i *)out + i, v);                                        \
            else                                                                                   \
                _mm256_storeu_si256((__m256i *)out + i, v);                                        \
        }                                                                                          \
    }
#define SET1_16(x) _mm256_set1_epi16((short)(x))
#define SET1_32(x) _mm256_set1_epi32((int)(x))
#define SET1_64(x) _mm256_set1_epi64x((long long)(x))
#define BITS_16                                                                                    \
    _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,        \
                      (short)32768)
DEFINE_EXPAND(16, 16, SET1_16, BITS_16, (uint16_t))
DEFINE_EXPAND(32, 8, SET1_32, _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), (uint8_t))
DEFINE_EXPAND(64, 4, SET1_64, _mm256_setr_epi64x(1, 2, 4, 8), (uint8_t))
#else
#define DEFINE_EXPAND(BITS)                                                                        \
    MPISIGN_FN void expand64_##BITS(uint64_t sign, uint64_t votes, uint64_t scale, int all,        \
                                    int stream, void *out)                                         \
    {                                                                                              \
        typedef uint##BITS##_t word;                                                               \
        (void)stream;                                                                              \
        for (int i = 0; i < 64; i += 8) {                                                          \
            const word s = (word)(sign >> i & 0xff), m = (word)(votes >> i & 0xff);                \
            word v[8];                                                                             \
            for (int j = 0; j < 8; j++) {                                                          \
                word vote = (word)((word)scale ^ (word)((word)((s >> j) & 1) << (BITS - 1)));      \
                v[j] = all ? vote : (word)(vote & (word)(0 - (word)((m >> j) & 1)));               \
            }                                                                                      \
            memcpy((word *)out + i, v, sizeof v);                                                  \
        }                                                                                          \
    }
DEFINE_EXPAND(16)
DEFINE_EXPAND(32)
DEFINE_EXPAND(64)
#endif

/* Coordinates [first, last). Streaming stores are aligned: they may begin in the middle of a byte of
 * the planes, so the bits of a word come from two places. */
#define DEFINE_UNPACK(BITS)                                                                        \
    MPISIGN_FN uint64_t some_bits_##BITS(const uint8_t *plane, int64_t at, int64_t count)          \
    {                                                                                              \
        const int shift = (int)(at & 7), bytes = (int)((shift + count + 7) / 8);                   \
        uint64_t word = load_word(plane + at / 8, bytes < 8 ? bytes : 8) >> shift;                 \
        return bytes > 8 ? word | (uint64_t)plane[at / 8 + 8] << (64 - shift) : word;              \
    }                                                                                              \
    MPISIGN_FN void unpack_few_##BITS(const uint8_t *sign, const uint8_t *mask, int64_t at,        \
                                      int64_t count, uint64_t scale, uint##BITS##_t *out)          \
    {                                                                                              \
        uint##BITS##_t v[64];                                                                      \
        expand64_##BITS(some_bits_##BITS(sign, at, count),                                         \
                        mask ? some_bits_##BITS(mask, at, count) : 0, scale, mask == NULL, 0, v);  \
        memcpy(out + at, v, (size_t)count * sizeof *v);                                            \
    }                                                                                              \
    MPISIGN_FN void unpack_words_##BITS(const uint8_t *sign, const uint8_t *mask, int64_t at,      \
                                        int64_t last, uint64_t scale, int stream,                  \
                                        uint##BITS##_t *out)                                       \
    {                                                                                              \
        if (stream) {                                                                              \
            int64_t head = (int64_t)(-(uintptr_t)(out + at) % 64) / (int64_t)sizeof *out;          \
            if (head > 0 && head < last - at) {                                                    \
                unpack_few_##BITS(sign, mask, at, head, scale, out);                               \
                at += head;                                                                        \
            }                                                                                      \
        }                                                                                          \
        for (; at + 64 <= last; at += 64)                                                          \
            expand64_##BITS(some_bits_##BITS(sign, at, 64),                                        \
                            mask ? some_bits_##BITS(mask, at, 64) : 0, scale, mask == NULL,        \
                            stream, out + at);                                                     \
        if (at < last)                                                                             \
            unpack_few_##BITS(sign, mask, at, last - at, scale, out);                              \
    }                                                                                              \
    static void ISA(unpack_slice_##BITS)(const uint8_t *sign, const uint8_t *mask, int64_t first,  \
                                         int64_t last, uint64_t scale, int stream, void *out)      \
    {                                                                                              \
        if (mask && stream)                                                                        \
            unpack_words_##BITS(sign, mask, first, last, scale, 1, out);                           \
        else if (mask)                                                                             \
            unpack_words_##BITS(sign, mask, first, last, scale, 0, out);                           \
        else if (stream)                                                                           \
            unpack_words_##BITS(sign, NULL, first, last, scale, 1, out);                           \
        else                                                                                       \
            unpack_words_##BITS(sign, NULL, first, last, scale, 0, out);                           \
    }
DEFINE_UNPACK(16)
DEFINE_UNPACK(32)
DEFINE_UNPACK(64)

/* Rounded to odd, so that the next rounding, to fewer bits, is as if it were the only one. */
MPISIGN_FN float odd_float(double x)
{
    float f = (float)x;
    uint32_t bits = bits_of_float(f);
    if ((double)f == x || f != f || bits << 1 == 0xff000000u)
        return f;
    if ((f < 0 ? -(double)f : (double)f) > (x < 0 ? -x : x))
        bits--;
    return float_of_bits(bits | 1);
}

/* The bit pattern of `scale` in `dtype`, to nearest, ties to even. */
MPISIGN_FN uint64_t scale_bits(int dtype, double scale)
{
    uint64_t bits;
    memcpy(&bits, &scale, 8);
    switch (dtype) {
    case MPISIGN_FP64: return bits;
    case MPISIGN_FP32: return bits_of_float((float)scale);
    case MPISIGN_FP16: return fp16_of_float(odd_float(scale));
    default: return bf16_of_float(odd_float(scale));
    }
}

enum { UNPACK_SLICE = 1 << 17 };

static void ISA(unpack_slice)(const uint8_t *sign, const uint8_t *mask, int64_t at, int64_t length,
                              int size, uint64_t bits, void *out)
{
    const int64_t last = at + UNPACK_SLICE < length ? at + UNPACK_SLICE : length;
    const int stream = length * size >= STREAM_BYTES && (uintptr_t)out % (size_t)size == 0;
    if (size == 2)
        ISA(unpack_slice_16)(sign, mask, at, last, bits, stream, out);
    else if (size == 4)
        ISA(unpack_slice_32)(sign, mask, at, last, bits, stream, out);
    else
        ISA(unpack_slice_64)(sign, mask, at, last, bits, stream, out);
    if (stream)
        end_of_stream();
}

static void ISA(unpack)(const uint8_t *sign, const uint8_t *mask, int64_t length, int dtype,
                        double scale, void *out, int threads)
{
    const int size = item_size(dtype);
    const uint64_t bits = scale_bits(dtype, scale);
    if (threads == 1 || length <= 2 * UNPACK_SLICE) {
        for (int64_t at = 0; at < length; at += UNPACK_SLICE)
            ISA(unpack_slice)(sign, mask, at, length, size, bits, out);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < length; at += UNPACK_SLICE)
        ISA(unpack_slice)(sign, mask, at, length, size, bits, out);
}
