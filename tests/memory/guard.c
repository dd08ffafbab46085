/* NumPy's buffers, each against the end of its own pages: one byte past it is a page that nobody may
 * touch. Bytes before the buffer hold a pattern that is looked at when it is freed.
 *
 * AddressSanitizer sees what the compiler wrote; this also sees vector intrinsics (streaming and
 * masked stores) and assembly. For scripts/check-memory.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

enum { PATTERN = 0xA5 };

typedef struct {
    size_t mapped, size; /* bytes: of everything, of the buffer */
} header;

static size_t page;

/* Layout: a page with the header, the buffer's pages (it ends where they end), a forbidden page. */
static void *guarded_malloc(void *ctx, size_t size)
{
    (void)ctx;
    const size_t pages = (size + page - 1) / page * page, mapped = pages + 2 * page;
    char *all = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return NULL;
    mprotect(all + page + pages, page, PROT_NONE);
    *(header *)all = (header){mapped, size};
    memset(all + page, PATTERN, pages - size);
    return all + page + pages - size;
}

/* The buffer starts in the first page after the header's. */
static header *header_of(const void *buffer)
{
    return (header *)((uintptr_t)buffer / page * page - page);
}

static void guarded_free(void *ctx, void *buffer, size_t size)
{
    (void)ctx;
    if (!buffer)
        return;
    header *h = header_of(buffer);
    const char *all = (const char *)h;
    if (h->size != size) {
        fprintf(stderr, "guard: a buffer of %zu bytes is freed as one of %zu\n", h->size, size);
        abort();
    }
    for (const char *p = all + page; p < (char *)buffer; p++) {
        if ((unsigned char)*p != PATTERN) {
            fprintf(stderr, "guard: %zd bytes before a buffer of %zu bytes were written\n",
                    (char *)buffer - p, size);
            abort();
        }
    }
    munmap(h, h->mapped);
}

static void *guarded_calloc(void *ctx, size_t count, size_t each)
{
    return guarded_malloc(ctx, count * each); /* fresh pages are zero */
}

static void *guarded_realloc(void *ctx, void *buffer, size_t size)
{
    void *fresh = guarded_malloc(ctx, size);
    if (buffer && fresh) {
        const size_t before = header_of(buffer)->size;
        memcpy(fresh, buffer, before < size ? before : size);
        guarded_free(ctx, buffer, before);
    }
    return fresh;
}

static PyDataMem_Handler handler = {
    "guard", 1, {NULL, guarded_malloc, guarded_calloc, guarded_realloc, guarded_free}};

static PyObject *start(PyObject *self, PyObject *ignored)
{
    (void)self, (void)ignored;
    PyObject *capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    PyObject *before = capsule ? PyDataMem_SetHandler(capsule) : NULL;
    Py_XDECREF(capsule);
    Py_XDECREF(before);
    if (!before)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"start", start, METH_NOARGS, "Guard all arrays made from now on."},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "guard", "", 0, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_guard(void)
{
    page = (size_t)sysconf(_SC_PAGESIZE);
    import_array();
    return PyModule_Create(&module);
}
