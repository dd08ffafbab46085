/* An NVTX tool, loaded by NVTX_INJECTION64_PATH as Nsight Systems' is: it writes the ranges that a
 * process opens and closes to the file NVTX_RECORD, "push DOMAIN LABEL" and "pop DOMAIN". The
 * layout is that of nvtx3/nvtxDetail/nvtxTypes.h, version 3. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

typedef struct {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type; /* 1: char *, 2: wchar_t *, 3: what register_string returned */
    const void *message;
} Attributes;

enum { CALLBACKS = 1, CORE2 = 5, PUSH = 4, POP = 5, REGISTER = 10, CREATE = 12 };

typedef void (*Function)(void);
typedef struct {
    size_t size;
    int (*functions)(int module, Function ***table, unsigned *n);
} Exports;

static FILE *out;

static int push(const char *domain, const Attributes *a) {
    const char *form = a->message_type == 2 ? "push %s %ls\n" : "push %s %s\n";
    fprintf(out, form, domain, a->message);
    return 0;
}

static int pop(const char *domain) {
    fprintf(out, "pop %s\n", domain);
    return 0;
}

static const void *register_string(const char *domain, const char *text) {
    (void)domain;
    return strdup(text);
}

static const char *create(const char *name) { return strdup(name); }

int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t)) {
    const Exports *exports = export_table(CALLBACKS);
    Function **table = NULL;
    unsigned n = 0;
    out = fopen(getenv("NVTX_RECORD"), "w");
    if (!exports || !out || !exports->functions(CORE2, &table, &n) || n <= CREATE)
        return 0;
    *table[PUSH] = (Function)push;
    *table[POP] = (Function)pop;
    *table[REGISTER] = (Function)register_string;
    *table[CREATE] = (Function)create;
    return 1;
}
