/* What g++ includes before a CUDA file so that it runs on the CPU: every CUDA thread is a fibre.
 *
 * Memory accesses and undefined behaviour are reported to runtime.cpp by what GCC instruments the
 * kernels with (-fsanitize=kernel-address calls functions of ours, so that no sanitizer's own library
 * takes part and the tests stay in their process).
 */
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#define __CUDACC__ 1
#define __device__
#define __global__
#define __shared__ static /* blocks run one after the other */
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {
void barrier();
/* All 32 lanes put a value in and see the values of all. `kind`: lanes must agree what they do. */
const uint32_t *exchange(char kind, uint32_t mask, uint32_t value);

typedef void (*Invoke)(void (*kernel)(), void **arguments);
bool add(const char *name, int threads, void (*kernel)(), Invoke invoke,
         std::initializer_list<size_t> sizes);

template <class... A> struct Call {
    template <size_t... I>
    __attribute__((no_sanitize("kernel-address", "undefined"))) static void
    with(void (*kernel)(A...), void **arguments, std::index_sequence<I...>)
    {
        kernel(*(A *)arguments[I]...);
    }
    static void invoke(void (*kernel)(), void **arguments)
    {
        with((void (*)(A...))kernel, arguments, std::index_sequence_for<A...>());
    }
};

template <class... A> bool add(const char *name, int threads, void (*kernel)(A...))
{
    return add(name, threads, (void (*)())kernel, Call<A...>::invoke, {sizeof(A)...});
}
} // namespace cuda_on_cpu

#define MPISIGN_KERNEL_OF(threads, blocks, name, parameters)                                       \
    extern "C" void name parameters;                                                               \
    static const bool added_##name = cuda_on_cpu::add(#name, threads, name);                       \
    extern "C" void name parameters

static inline void __syncthreads()
{
    cuda_on_cpu::barrier();
}

static inline uint32_t bits_of(uint32_t x)
{
    return x;
}
static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

template <class T> static inline T __shfl_xor_sync(uint32_t mask, T x, int lanes)
{
    const uint32_t *all = cuda_on_cpu::exchange('x', mask, bits_of(x));
    T out;
    memcpy(&out, &all[(threadIdx.x & 31) ^ lanes], 4);
    return out;
}

static inline uint32_t __ballot_sync(uint32_t mask, bool x)
{
    const uint32_t *all = cuda_on_cpu::exchange('b', mask, x);
    uint32_t out = 0;
    for (int lane = 0; lane < 32; lane++)
        out |= (uint32_t)(all[lane] != 0) << lane;
    return out;
}

template <class T> static inline T atomicAdd(T *at, T x)
{
    T old = *at;
    *at = old + x;
    return old;
}

static inline float __uint_as_float(uint32_t x)
{
    float out;
    memcpy(&out, &x, 4);
    return out;
}
static inline uint32_t __float_as_uint(float x)
{
    return bits_of(x);
}
static inline double __longlong_as_double(long long x)
{
    double out;
    memcpy(&out, &x, 8);
    return out;
}
static inline long long __double_as_longlong(double x)
{
    long long out;
    memcpy(&out, &x, 8);
    return out;
}
static inline int __popc(uint32_t x)
{
    return __builtin_popcount(x);
}
static inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}
static inline int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
