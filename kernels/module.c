/* mpisign._kernels: the host kernels for Python. Takes addresses; mpisign/planes.py checks them. */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "mpisign_kernels.h"

typedef unsigned long long u64;

static void *address(u64 value)
{
    return (void *)(uintptr_t)value;
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
    u64 data, sign, mask, seed, step, byte_offset;
    unsigned int stream;
    int zeros, threads;
    PyObject *shape, *strides;
    mpisign_array x;
    if (!PyArg_ParseTuple(args, "KiO!O!KKiKKIKi", &data, &x.dtype, &PyTuple_Type, &shape,
                          &PyTuple_Type, &strides, &sign, &mask, &zeros, &seed, &step, &stream,
                          &byte_offset, &threads))
        return NULL;
    x.data = address(data);
    x.ndim = read_dims(shape, x.shape);
    if (x.ndim < 0 || read_dims(strides, x.strides) != x.ndim)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "shape and strides differ");
    mpisign_random rnd = {seed, step, stream, byte_offset};
    mpisign_census census;
    Py_BEGIN_ALLOW_THREADS
    census = mpisign_pack(&x, address(sign), address(mask), zeros, &rnd, threads);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("LL", (long long)census.zeros, (long long)census.nans);
}

static PyObject *py_majority(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, out_sign, out_mask, seed, step, byte_offset;
    long long row_stride, mask_row_stride, rows, length;
    int ties, threads;
    if (!PyArg_ParseTuple(args, "KKLLLLKKiKKKi", &sign, &mask, &row_stride, &mask_row_stride, &rows,
                          &length, &out_sign, &out_mask, &ties, &seed, &step, &byte_offset,
                          &threads))
        return NULL;
    mpisign_stack stack = {address(sign), address(mask), row_stride, mask_row_stride, rows, length};
    mpisign_random rnd = {seed, step, MPISIGN_TIE_STREAM, byte_offset};
    int64_t tied;
    Py_BEGIN_ALLOW_THREADS
    tied = mpisign_majority(&stack, address(out_sign), address(out_mask), ties, &rnd, threads);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(tied);
}

static PyObject *py_unpack(PyObject *self, PyObject *args)
{
    (void)self;
    u64 sign, mask, scale_bits, out;
    long long length;
    int itemsize, threads;
    if (!PyArg_ParseTuple(args, "KKLiKKi", &sign, &mask, &length, &itemsize, &scale_bits, &out,
                          &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    mpisign_unpack(address(sign), address(mask), length, itemsize, scale_bits, address(out),
                   threads);
    Py_END_ALLOW_THREADS
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
    Py_BEGIN_ALLOW_THREADS
    mpisign_encode_counts(address(plane), length, base, digits, address(words), threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_decode_counts(PyObject *self, PyObject *args)
{
    (void)self;
    u64 negatives, votes, voters, base, out_sign, out_mask, seed, step, byte_offset;
    double unscale;
    long long length;
    int digits, ties, threads;
    if (!PyArg_ParseTuple(args, "KKdKKiLKKiKKKi", &negatives, &votes, &unscale, &voters, &base,
                          &digits, &length, &out_sign, &out_mask, &ties, &seed, &step,
                          &byte_offset, &threads))
        return NULL;
    mpisign_counts counts = {address(negatives), address(votes), unscale, voters, base, digits,
                             length};
    mpisign_random rnd = {seed, step, MPISIGN_TIE_STREAM, byte_offset};
    int64_t bad;
    Py_BEGIN_ALLOW_THREADS
    bad = mpisign_decode_counts(&counts, address(out_sign), address(out_mask), ties, &rnd, threads);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(bad);
}

static PyMethodDef methods[] = {
    {"pack", py_pack, METH_VARARGS, "pack(data, dtype, shape, strides, sign, mask, zeros, seed, step, stream, byte_offset, threads) -> (zeros, nans)"},
    {"majority", py_majority, METH_VARARGS, "majority(sign, mask, row_stride, mask_row_stride, rows, length, out_sign, out_mask, ties, seed, step, byte_offset, threads) -> ties"},
    {"unpack", py_unpack, METH_VARARGS, "unpack(sign, mask, length, itemsize, scale_bits, out, threads)"},
    {"encode_counts", py_encode_counts, METH_VARARGS, "encode_counts(plane, length, base, digits, words, threads)"},
    {"decode_counts", py_decode_counts, METH_VARARGS, "decode_counts(negatives, votes, unscale, voters, base, digits, length, out_sign, out_mask, ties, seed, step, byte_offset, threads) -> bad words"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Host kernels of mpisign.", 0, methods, NULL, NULL, NULL, NULL,
};

__attribute__((visibility("default"))) PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModule_Create(&module);
}
