/* What memory can do, for `mpisign bench kernels`: the fastest read, write and copy known here.
 *
 * A module of its own (mpisign.bench._limits): it measures the kernels and is none of them.
 * Addresses and sizes are multiples of 64 bytes.
 */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif

#if X86 && defined(__GLIBC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

enum { LINE = 64, PLACES = 4 };
typedef uint64_t line __attribute__((vector_size(LINE)));

/* Reads everything, from its beginning on or, faster on some processors, at `places` at once; the
 * result only keeps the compiler from leaving it out. Each vector is one register of the target: of
 * longer ones GCC keeps the sums in memory. */
#define DEFINE_READS(NAME, TARGET, BYTES)                                                          \
    typedef uint64_t vector_##NAME __attribute__((vector_size(BYTES), may_alias));                 \
    TARGET static inline __attribute__((always_inline)) uint64_t read_at_##NAME(                   \
        const char *from, int64_t bytes, int places)                                               \
    {                                                                                              \
        typedef vector_##NAME vector;                                                              \
        const int64_t part = bytes / places / (2 * LINE) * (2 * LINE);                             \
        enum { N = LINE / BYTES > 4 ? 4 : LINE / BYTES };                                          \
        vector sum[N] = {{0}};                                                                     \
        for (int64_t at = 0; at < part; at += 2 * LINE)                                            \
            for (int p = 0; p < places; p++)                                                       \
                for (int i = 0; i < 2 * LINE / BYTES; i++)                                         \
                    sum[i % N] |= *(const vector *)(from + p * part + at + i * BYTES);             \
        for (int64_t at = places * part; at < bytes; at += BYTES)                                  \
            sum[0] |= *(const vector *)(from + at);                                                \
        for (int i = 1; i < N; i++)                                                                \
            sum[0] |= sum[i];                                                                      \
        uint64_t any = 0;                                                                          \
        for (int i = 0; i < BYTES / 8; i++)                                                        \
            any |= sum[0][i];                                                                      \
        return any;                                                                                \
    }                                                                                              \
    TARGET static uint64_t read_##NAME(const char *from, int64_t bytes, int places)                \
    {                                                                                              \
        return places == 1 ? read_at_##NAME(from, bytes, 1) : read_at_##NAME(from, bytes, PLACES); \
    }

DEFINE_READS(plain, , 16)
#if X86
DEFINE_READS(avx2, __attribute__((target("avx2"))), 32)
DEFINE_READS(avx512, __attribute__((target("avx512f"))), 64)
#endif

static uint64_t read_lines(const char *from, int64_t bytes, int places)
{
#if X86
    if (__builtin_cpu_supports("avx512f"))
        return read_avx512(from, bytes, places);
    if (__builtin_cpu_supports("avx2"))
        return read_avx2(from, bytes, places);
#endif
    return read_plain(from, bytes, places);
}

CLONES static void write_lines(char *to, int64_t bytes)
{
    const line v = {1, 2, 3, 4, 5, 6, 7, 8};
    for (int64_t at = 0; at < bytes; at += LINE)
        *(volatile line *)(to + at) = v; /* volatile: stays a loop of stores, no call of memset */
}

#if X86
#define DEFINE_STREAMS(NAME, TARGET, VECTOR, VALUE, LOAD, STREAM)                                  \
    __attribute__((target(TARGET))) static void stream_##NAME(char *to, const char *from,          \
                                                              int64_t bytes)                       \
    {                                                                                              \
        enum { N = LINE / sizeof(VECTOR) };                                                        \
        const VECTOR value = VALUE;                                                                \
        for (int64_t at = 0; at < bytes; at += LINE)                                               \
            for (unsigned i = 0; i < N; i++)                                                       \
                STREAM((VECTOR *)(to + at) + i, from ? LOAD((VECTOR *)(from + at) + i) : value);   \
        _mm_sfence();                                                                              \
    }

DEFINE_STREAMS(avx512, "avx512f", __m512i, _mm512_set1_epi32(12345), _mm512_load_si512,
               _mm512_stream_si512)
DEFINE_STREAMS(avx2, "avx2", __m256i, _mm256_set1_epi32(12345), _mm256_load_si256,
               _mm256_stream_si256)
DEFINE_STREAMS(sse2, "sse2", __m128i, _mm_set1_epi32(12345), _mm_load_si128, _mm_stream_si128)

/* Stores past the caches; `from` NULL: writes a constant, not 0, which some memory stores faster. */
static void stream(char *to, const char *from, int64_t bytes)
{
    if (__builtin_cpu_supports("avx512f"))
        stream_avx512(to, from, bytes);
    else if (__builtin_cpu_supports("avx2"))
        stream_avx2(to, from, bytes);
    else
        stream_sse2(to, from, bytes);
}
#else
static void stream(char *to, const char *from, int64_t bytes)
{
    if (from)
        memcpy(to, from, (size_t)bytes);
    else
        memset(to, 57, (size_t)bytes);
}
#endif

static PyObject *move(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long to, from;
    long long bytes;
    int streaming, threads;
    if (!PyArg_ParseTuple(args, "KKLii", &to, &from, &bytes, &streaming, &threads))
        return NULL;
    if ((to | from | (unsigned long long)bytes) % LINE || bytes < 0 || threads < 1)
        return PyErr_Format(PyExc_ValueError, "addresses and bytes must be multiples of %d", LINE);
    char *dst = (char *)(uintptr_t)to;
    const char *src = (const char *)(uintptr_t)from;
    uint64_t any = 0;
    Py_BEGIN_ALLOW_THREADS
    const int64_t part = (bytes / threads + LINE - 1) / LINE * LINE;
#pragma omp parallel for num_threads(threads) reduction(| : any) if (threads > 1)
    for (int i = 0; i < threads; i++) {
        const int64_t first = i * part < bytes ? i * part : bytes;
        const int64_t n = bytes - first < part ? bytes - first : part;
        if (!dst)
            any |= read_lines(src + first, n, streaming ? PLACES : 1);
        else if (streaming)
            stream(dst + first, src ? src + first : NULL, n);
        else if (src)
            memcpy(dst + first, src + first, (size_t)n);
        else
            write_lines(dst + first, n);
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(any != 0);
}

static PyMethodDef methods[] = {
    {"move", move, METH_VARARGS,
     "move(to, from, bytes, streaming, threads): reads if `to` is 0 (at several places at once if "
     "`streaming`), writes if `from` is 0, else copies"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_limits", "What memory can do.", 0, methods, NULL, NULL, NULL, NULL,
};

__attribute__((visibility("default"))) PyMODINIT_FUNC PyInit__limits(void)
{
    return PyModule_Create(&module);
}
