/* mpisign._kernels: the host kernels for Python. Takes addresses; mpisign/planes/ checks them. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "host.h"
#include "xxh64.h"

#include <stdlib.h>

typedef unsigned long long u64;

static const mpisign_kernels *kernels = &mpisign_portable;

static void *address(u64 value)
{
    return (void *)(uintptr_t)value;
}

/* --- instruction sets ------------------------------------------------------------------------ */

static const mpisign_kernels *const units[] = {
#if defined(MPISIGN_X86_UNITS)
    &mpisign_avx512,
    &mpisign_avx2,
#endif
    &mpisign_portable,
};
enum { UNITS = sizeof units / sizeof *units };

static int runs_here(const mpisign_kernels *unit)
{
#if defined(MPISIGN_X86_UNITS)
    if (unit == &mpisign_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (unit == &mpisign_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") &&
               __builtin_cpu_supports("bmi2");
#endif
    return unit == &mpisign_portable;
}

/* Takes the unit of that name, or the best for NULL; -1 if there is none. */
static int take_unit(const char *argument, const char *name)
{
    for (int i = 0; i < UNITS; i++)
        if (runs_here(units[i]) && (!name || strcmp(name, units[i]->name) == 0)) {
            kernels = units[i];
            return 0;
        }
    PyErr_Format(PyExc_ValueError,
                 "%s must be%s 'portable' on this processor, got '%s'", argument,
#if defined(MPISIGN_X86_UNITS)
                 runs_here(&mpisign_avx512) ? " 'avx512', 'avx2' or"
                 : runs_here(&mpisign_avx2) ? " 'avx2' or"
                                            :
#endif
                                            "",
                 name);
    return -1;
}

static PyObject *py_isa(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    return PyUnicode_FromString(kernels->name);
}

static PyObject *py_isas(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    PyObject *names = PyList_New(0), *tuple;
    for (int i = 0; names && i < UNITS; i++) {
        PyObject *name = runs_here(units[i]) ? PyUnicode_FromString(units[i]->name) : NULL;
        if (name && PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    tuple = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return tuple;
}

static PyObject *py_use_isa(PyObject *self, PyObject *args)
{
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(args, "s", &name) || take_unit("use_isa: name", name) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* --- memory ---------------------------------------------------------------------------------- */

static PyObject *py_address(PyObject *self, PyObject *array)
{
    (void)self;
    Py_buffer buffer;
    if (PyObject_GetBuffer(array, &buffer, PyBUF_STRIDED_RO) < 0)
        return NULL;
    const u64 start = (u64)(uintptr_t)buffer.buf;
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(start);
}

static PyObject *py_contiguous(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *array;
    int writable;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "Op", &array, &writable) ||
        PyObject_GetBuffer(array, &buffer, writable ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE
                                                    : PyBUF_C_CONTIGUOUS) < 0)
        return NULL;
    const u64 start = (u64)(uintptr_t)buffer.buf;
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(start);
}

/* --- kernels --------------------------------------------------------------------------------- */

/* A few thousand coordinates take less time than giving up the interpreter's lock and waiting. */
enum { SMALL = 1 << 16 };
#define RUN(work, call)                                                                            \
    do {                                                                                           \
        if ((work) < SMALL) {                                                                      \
            call;                                                                                  \
        } else {                                                                                   \
            Py_BEGIN_ALLOW_THREADS                                                                 \
            call;                                                                                  \
            Py_END_ALLOW_THREADS                                                                   \
        }                                                                                          \
    } while (0)

/* --- hashes ---------------------------------------------------------------------------------- */

static PyObject *py_hash_bytes(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, seed;
    long long n;
    if (!PyArg_ParseTuple(args, "KLK", &data, &n, &seed))
        return NULL;
    RUN(n, seed = xxh64(address(data), n, seed));
    return PyLong_FromUnsignedLongLong(seed);
}

/* Rows of an address and a number of bytes, one after the other. */
static uint64_t hash_pieces(const int64_t (*rows)[2], int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        seed = xxh64(address((u64)rows[i][0]), rows[i][1], seed);
    return seed;
}

static PyObject *py_hash_pieces(PyObject *self, PyObject *args)
{
    (void)self;
    u64 table, seed;
    long long n;
    if (!PyArg_ParseTuple(args, "KLK", &table, &n, &seed))
        return NULL;
    const int64_t (*rows)[2] = address(table);
    int64_t work = 0;
    for (int64_t i = 0; i < n; i++)
        work += rows[i][1];
    RUN(work, seed = hash_pieces(rows, n, seed));
    return PyLong_FromUnsignedLongLong(seed);
}

#define RANDOM "(KKIK)"
#define INTO_RANDOM(r) &(r).seed, &(r).step, &(r).stream, &(r).byte_offset

static PyObject *census_tuple(mpisign_census census)
{
    return Py_BuildValue("LL", (long long)census.zeros, (long long)census.nans);
}

static int read_dims(PyObject *tuple, int64_t *out)
{
    Py_ssize_t n = PyTuple_Size(tuple);
    if (n < 0)
        return -1;
    if (n > MPISIGN_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "more than %d dimensions", MPISIGN_MAX_DIMS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
        if (out[i] == -1 && PyErr_Occurred())
            return -1;
    }
    return (int)n;
}

static PyObject *py_pack(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, sign, mask;
    int zeros, threads;
    PyObject *shape, *strides;
    mpisign_array x;
    mpisign_random rnd;
    mpisign_census census;
    if (!PyArg_ParseTuple(args, "KiO!O!KKi" RANDOM "i", &data, &x.dtype, &PyTuple_Type, &shape,
                          &PyTuple_Type, &strides, &sign, &mask, &zeros, INTO_RANDOM(rnd),
                          &threads))
        return NULL;
    x.data = address(data);
    x.ndim = read_dims(shape, x.shape);
    if (x.ndim < 0 || read_dims(strides, x.strides) != x.ndim)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "shape and strides differ");
    Py_BEGIN_ALLOW_THREADS
    census = kernels->pack(&x, address(sign), address(mask), zeros, &rnd, threads);
    Py_END_ALLOW_THREADS
    return census_tuple(census);
}

static PyObject *py_pack_pieces(PyObject *self, PyObject *args)
{
    (void)self;
    int rule, zeros, threads;
    float parameters[4];
    const char *bytes;
    Py_ssize_t n_bytes;
    u64 sign, mask;
    mpisign_random rnd;
    mpisign_census census;
    int64_t work = 0;
    if (!PyArg_ParseTuple(args, "i(ffff)y#KKi" RANDOM "i", &rule, &parameters[0], &parameters[1],
                          &parameters[2], &parameters[3], &bytes, &n_bytes, &sign, &mask, &zeros,
                          INTO_RANDOM(rnd), &threads))
        return NULL;
    const Py_ssize_t n = n_bytes / (Py_ssize_t)(6 * sizeof(int64_t));
    mpisign_piece few[8], *pieces = n <= 8 ? few : malloc((size_t)n * sizeof *pieces);
    if (!pieces)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        int64_t row[6];
        memcpy(row, bytes + i * (Py_ssize_t)sizeof row, sizeof row);
        pieces[i] = (mpisign_piece){address((u64)row[0]), row[1], row[2], row[3],
                                    address((u64)row[4]), row[5]};
        work += row[1];
    }
    RUN(work, census = kernels->pack_pieces(rule, parameters, pieces, n, address(sign),
                                            address(mask), zeros, &rnd, threads));
    if (pieces != few)
        free(pieces);
    return census_tuple(census);
}

/* Planes that lie apart: rows of a, b, address of the sign plane, of the mask plane or 0. They hold
   bytes [a, b) of the planes of one contiguous array of `length` coordinates. */
typedef struct {
    const int64_t (*rows)[4];
    long long n, length;
    int dtype, threads;
    char *data;
} planes_apart;

static int64_t work_of(const planes_apart *p)
{
    int64_t bytes = 0;
    for (long long i = 0; i < p->n; i++)
        bytes += p->rows[i][1] - p->rows[i][0];
    return 8 * bytes;
}

/* The coordinates of row i, and where they lie in the array. */
static int64_t coordinates(const planes_apart *p, long long i, char **data)
{
    static const int64_t item_size[] = {4, 2, 2, 8};
    const int64_t first = 8 * p->rows[i][0], end = 8 * p->rows[i][1];
    *data = p->data + first * item_size[p->dtype];
    return (end < p->length ? end : p->length) - first;
}

static int64_t pack_apart(const planes_apart *p, int zeros, mpisign_random rnd)
{
    int64_t nans = 0;
    for (long long i = 0; i < p->n; i++) {
        char *data;
        const int64_t length = coordinates(p, i, &data);
        const mpisign_piece piece = {data, length, p->dtype, 0, NULL, 0};
        rnd.byte_offset = (uint64_t)p->rows[i][0];
        if (length > 0)
            nans += kernels->pack_pieces(MPISIGN_SIGN, NULL, &piece, 1,
                                         address((u64)p->rows[i][2]), address((u64)p->rows[i][3]),
                                         zeros, &rnd, p->threads).nans;
    }
    return nans;
}

static void unpack_apart(const planes_apart *p)
{
    for (long long i = 0; i < p->n; i++) {
        char *data;
        const int64_t length = coordinates(p, i, &data);
        if (length > 0)
            kernels->unpack(address((u64)p->rows[i][2]), address((u64)p->rows[i][3]), length,
                            p->dtype, 1.0, data, p->threads);
    }
}

static PyObject *py_pack_planes(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, rows;
    int zeros;
    planes_apart p;
    mpisign_random rnd;
    int64_t nans;
    if (!PyArg_ParseTuple(args, "KiLKLi" RANDOM "i", &data, &p.dtype, &p.length, &rows, &p.n,
                          &zeros, INTO_RANDOM(rnd), &p.threads))
        return NULL;
    p.data = address(data), p.rows = address(rows);
    RUN(work_of(&p), nans = pack_apart(&p, zeros, rnd));
    return PyLong_FromLongLong(nans);
}

static PyObject *py_unpack_planes(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, rows;
    planes_apart p;
    if (!PyArg_ParseTuple(args, "KLiKLi", &rows, &p.n, &p.dtype, &data, &p.length, &p.threads))
        return NULL;
    p.data = address(data), p.rows = address(rows);
    RUN(work_of(&p), unpack_apart(&p));
    Py_RETURN_NONE;
}

static PyObject *py_error_feedback(PyObject *self, PyObject *args)
{
    (void)self;
    u64 grad, residual, sign, mask, scales;
    int dtype, zeros, threads;
    long long length, block;
    float rate;
    mpisign_random rnd;
    mpisign_census census;
    if (!PyArg_ParseTuple(args, "KiKLfLKKKi" RANDOM "i", &grad, &dtype, &residual, &length, &rate,
                          &block, &sign, &mask, &scales, &zeros, INTO_RANDOM(rnd), &threads))
        return NULL;
    RUN(length, census = kernels->error_feedback(address(grad), dtype, address(residual), length,
                                                 rate, block, address(sign), address(mask),
                                                 address(scales), zeros, &rnd, threads));
    return census_tuple(census);
}

static PyObject *py_majority(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, weights, out_sign, out_mask;
    long long row_stride, rows, length, group;
    int ties, threads;
    int64_t tied;
    mpisign_random rnd;
    if (!PyArg_ParseTuple(args, "KKLLLKLKKi" RANDOM "i", &sign, &mask, &row_stride, &rows, &length,
                          &weights, &group, &out_sign, &out_mask, &ties, INTO_RANDOM(rnd),
                          &threads))
        return NULL;
    const mpisign_stack stack = {address(sign), address(mask), row_stride, rows, length,
                                 address(weights)};
    RUN(rows * length / 8, tied = kernels->majority(&stack, group, address(out_sign),
                                                    address(out_mask), ties, &rnd, threads));
    return PyLong_FromLongLong(tied);
}

/* One line of counts for each thread, on cache lines of its own, added up to the first. */
static PyObject *py_group_distances(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask;
    long long row_stride, rows, length, group;
    int threads;
    if (!PyArg_ParseTuple(args, "KKLLLLi", &sign, &mask, &row_stride, &rows, &length, &group,
                          &threads))
        return NULL;
    const mpisign_stack stack = {address(sign), address(mask), row_stride, rows, length, NULL};
    const size_t stride = ((size_t)rows + 15) / 8 * 8;
    int64_t *counts = calloc((size_t)threads * stride, sizeof *counts);
    if (!counts)
        return PyErr_NoMemory();
    RUN(rows * length / 8, kernels->group_distances(&stack, group, counts, (int64_t)stride,
                                                    threads));
    for (int t = 1; t < threads; t++)
        for (int64_t r = 0; r < rows; r++)
            counts[r] += counts[(size_t)t * stride + (size_t)r];
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)counts,
                                                (Py_ssize_t)rows * (Py_ssize_t)sizeof *counts);
    free(counts);
    return bytes;
}

static PyObject *py_tally(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, weights, negatives, positives;
    long long row_stride, rows, length, plane_stride;
    int planes, threads;
    if (!PyArg_ParseTuple(args, "KKLLLKiKKLi", &sign, &mask, &row_stride, &rows, &length, &weights,
                          &planes, &negatives, &positives, &plane_stride, &threads))
        return NULL;
    const mpisign_stack stack = {address(sign), address(mask), row_stride, rows, length,
                                 address(weights)};
    RUN(rows * length / 8, kernels->tally(&stack, planes, address(negatives), address(positives),
                                          plane_stride, threads));
    Py_RETURN_NONE;
}

static PyObject *py_weighted_sum(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, weights, out;
    long long row_stride, rows, length, block;
    float start, scale;
    int threads;
    if (!PyArg_ParseTuple(args, "KKLLLKLffKi", &sign, &mask, &row_stride, &rows, &length, &weights,
                          &block, &start, &scale, &out, &threads))
        return NULL;
    const mpisign_stack stack = {address(sign), address(mask), row_stride, rows, length, NULL};
    RUN(rows * length / 8, kernels->weighted_sum(&stack, address(weights), block, start, scale,
                                                 address(out), threads));
    Py_RETURN_NONE;
}

static PyObject *py_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, out;
    long long length;
    int dtype, threads;
    double scale;
    if (!PyArg_ParseTuple(args, "KKLidKi", &sign, &mask, &length, &dtype, &scale, &out, &threads))
        return NULL;
    RUN(length, kernels->unpack(address(sign), address(mask), length, dtype, scale, address(out),
                                threads));
    Py_RETURN_NONE;
}

static PyObject *py_unpack_add(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, out;
    long long length;
    int dtype, threads;
    double scale;
    if (!PyArg_ParseTuple(args, "KKLidKi", &sign, &mask, &length, &dtype, &scale, &out, &threads))
        return NULL;
    RUN(length, kernels->unpack_add(address(sign), address(mask), length, dtype, scale,
                                    address(out), threads));
    Py_RETURN_NONE;
}

static PyObject *py_update(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, parameter;
    long long length;
    int dtype, threads;
    double rate, weight_decay;
    if (!PyArg_ParseTuple(args, "KKLiddKi", &sign, &mask, &length, &dtype, &rate, &weight_decay,
                          &parameter, &threads))
        return NULL;
    RUN(length, kernels->update(address(sign), address(mask), length, dtype, rate, weight_decay,
                                address(parameter), threads));
    Py_RETURN_NONE;
}

static PyObject *py_encode_counts(PyObject *self, PyObject *args)
{
    (void)self;
    u64 plane, base, words;
    long long length;
    int digits, threads;
    if (!PyArg_ParseTuple(args, "KLKiKi", &plane, &length, &base, &digits, &words, &threads))
        return NULL;
    RUN(length, kernels->encode_counts(address(plane), length, base, digits, address(words),
                                       threads));
    Py_RETURN_NONE;
}

static PyObject *py_decode_counts(PyObject *self, PyObject *args)
{
    (void)self;
    u64 negatives, votes, voters, base, out_sign, out_mask;
    double unscale;
    long long length;
    int digits, ties, threads;
    mpisign_random rnd;
    if (!PyArg_ParseTuple(args, "KKdKKiLKKi" RANDOM "i", &negatives, &votes, &unscale, &voters,
                          &base, &digits, &length, &out_sign, &out_mask, &ties, INTO_RANDOM(rnd),
                          &threads))
        return NULL;
    const mpisign_counts counts = {address(negatives), address(votes), unscale, voters, base,
                                   digits, length};
    int64_t bad;
    RUN(length, bad = kernels->decode_counts(&counts, address(out_sign), address(out_mask), ties,
                                             &rnd, threads));
    return PyLong_FromLongLong(bad);
}

static PyObject *py_encode_sparse(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, out;
    long long length;
    int64_t bytes;
    if (!PyArg_ParseTuple(args, "KKLK", &sign, &mask, &length, &out))
        return NULL;
    RUN(length, bytes = kernels->encode_sparse(address(sign), address(mask), length, address(out)));
    return PyLong_FromLongLong(bytes);
}

static PyObject *py_decode_sparse(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, sign, mask;
    long long size, length;
    int64_t wrong;
    if (!PyArg_ParseTuple(args, "KLLKK", &data, &size, &length, &sign, &mask))
        return NULL;
    RUN(length, wrong = kernels->decode_sparse(address(data), size, length, address(sign),
                                               address(mask)));
    return PyLong_FromLongLong(wrong);
}

#define ROWS "(KLLLi)"
#define INTO_ROWS(x, data) &(data), &(x).stride, &(x).rows, &(x).length, &(x).dtype

static PyObject *none_or_no_memory(int status)
{
    if (status < 0)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_rows_finite(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, finite;
    mpisign_rows x;
    int threads;
    if (!PyArg_ParseTuple(args, ROWS "Ki", INTO_ROWS(x, data), &finite, &threads))
        return NULL;
    x.data = address(data);
    RUN(x.rows * x.length, kernels->rows_finite(&x, address(finite), threads));
    Py_RETURN_NONE;
}

static PyObject *py_rows_distances(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, out, finite;
    mpisign_rows x;
    int norms, threads, status;
    if (!PyArg_ParseTuple(args, ROWS "iKKi", INTO_ROWS(x, data), &norms, &out, &finite, &threads))
        return NULL;
    x.data = address(data);
    RUN(x.rows * x.length,
        status = kernels->rows_distances(&x, norms, address(out), address(finite), threads));
    return none_or_no_memory(status);
}

static PyObject *py_rows_mix(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, ends, columns, values, used, out, finite;
    long long rows;
    mpisign_rows x;
    int threads, status;
    if (!PyArg_ParseTuple(args, ROWS "(LKKKK)KKi", INTO_ROWS(x, data), &rows, &ends, &columns,
                          &values, &used, &out, &finite, &threads))
        return NULL;
    x.data = address(data);
    const mpisign_mixture m = {rows, address(ends), address(columns), address(values),
                               address(used)};
    RUN(x.rows * x.length,
        status = kernels->rows_mix(&x, &m, address(out), address(finite), threads));
    return none_or_no_memory(status);
}

static PyObject *py_rows_order(PyObject *self, PyObject *args)
{
    (void)self;
    u64 data, out, finite;
    long long low, high, nearest;
    mpisign_rows x;
    int threads, status;
    if (!PyArg_ParseTuple(args, ROWS "LLLKKi", INTO_ROWS(x, data), &low, &high, &nearest, &out,
                          &finite, &threads))
        return NULL;
    x.data = address(data);
    RUN(x.rows * x.length, status = kernels->rows_order(&x, low, high, nearest, address(out),
                                                        address(finite), threads));
    return none_or_no_memory(status);
}

/* What each takes is in mpisign/_kernels.pyi. */
static PyMethodDef methods[] = {
    {"isa", py_isa, METH_NOARGS, "The instruction set in use."},
    {"isas", py_isas, METH_NOARGS, "The instruction sets of this processor, best first."},
    {"use_isa", py_use_isa, METH_VARARGS, "Takes another of them."},
    {"address", py_address, METH_O, "Where an array's memory begins; its owner must stay alive."},
    {"contiguous", py_contiguous, METH_VARARGS, "The address of a C-contiguous array."},
    {"hash_bytes", py_hash_bytes, METH_VARARGS, "XXH64 of memory."},
    {"hash_pieces", py_hash_pieces, METH_VARARGS, "XXH64 of pieces of memory, one after the other."},
    {"pack", py_pack, METH_VARARGS, "One array of any strides to planes."},
    {"pack_pieces", py_pack_pieces, METH_VARARGS, "Many contiguous arrays to planes, by a rule."},
    {"pack_planes", py_pack_planes, METH_VARARGS, "One contiguous array to planes that lie apart."},
    {"unpack_planes", py_unpack_planes, METH_VARARGS, "Planes that lie apart to one array."},
    {"error_feedback", py_error_feedback, METH_VARARGS, "Scaled signs; the rest stays behind."},
    {"majority", py_majority, METH_VARARGS, "The majority of each coordinate."},
    {"group_distances", py_group_distances, METH_VARARGS, "How far rows are from their group."},
    {"tally", py_tally, METH_VARARGS, "Count planes."},
    {"weighted_sum", py_weighted_sum, METH_VARARGS, "Weighted sum of signs, fp32."},
    {"unpack", py_unpack, METH_VARARGS, "Planes to floats."},
    {"unpack_add", py_unpack_add, METH_VARARGS, "Adds planes to floats."},
    {"update", py_update, METH_VARARGS, "A step along the votes, with weight decay."},
    {"encode_counts", py_encode_counts, METH_VARARGS, "A plane to counters in float64 words."},
    {"decode_counts", py_decode_counts, METH_VARARGS, "Summed counters to their majority."},
    {"encode_sparse", py_encode_sparse, METH_VARARGS, "Sparse planes to a short message."},
    {"decode_sparse", py_decode_sparse, METH_VARARGS, "A message from anywhere to planes."},
    {"rows_finite", py_rows_finite, METH_VARARGS, "Which rows of floats are finite."},
    {"rows_distances", py_rows_distances, METH_VARARGS, "Squared distances or norms of rows."},
    {"rows_mix", py_rows_mix, METH_VARARGS, "Weighted sums of rows of floats."},
    {"rows_order", py_rows_order, METH_VARARGS, "Means of order statistics of each column."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Host kernels of mpisign.", 0, methods, NULL, NULL, NULL, NULL,
};

__attribute__((visibility("default"))) PyMODINIT_FUNC PyInit__kernels(void)
{
    const char *name = getenv("MPISIGN_ISA");
    if (take_unit("MPISIGN_ISA", name && *name ? name : NULL) < 0)
        return NULL;
    return PyModule_Create(&module);
}
