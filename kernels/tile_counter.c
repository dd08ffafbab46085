/* The bit-sliced counters of a tile, to which rows are added eight at a time.
 *
 * Memory follows eight streams at full speed, few processors more. So a tile takes a long piece of eight
 * rows, while the pieces after them are fetched. A batch of eight leaves one carry, worth eight. It waits
 * at its plane until a second one comes; both and the plane are a full addition (Harley and Seal), so
 * the number of planes hardly costs anything.
 */

enum { MANY_ROWS = 256, TILES_AT_MOST = 128 << 10, TILE_LEAST = 2048 };

/* Bit k of `begun`: plane k was written, before that all of it is bit k of `start`; of `waits`: a carry
 * waits there. */
typedef struct {
    uint8_t *plane, *waiting; /* `stride` bytes each */
    int64_t stride;
    int planes;
    uint64_t start, begun, waits;
} counter;

/* As many planes as are counted with, of `bytes`: a thread's stack may be small. */
#define COUNTER(name, n, start, bytes)                                                             \
    const int64_t name##_stride = whole_lines(bytes) + LINE;                                       \
    uint8_t name##_room[2 * (n) * name##_stride] __attribute__((aligned(LINE)));                   \
    counter name = {name##_room, name##_room + (n) * name##_stride, name##_stride, (n),            \
                    (start), 0, 0}

/* Bytes of a row at a time: long pieces are read fastest, but all that is read again must stay in the
 * cache: count planes, and weighted rows, which are read once for each bit. */
MPISIGN_FN int64_t tile_of(const mpisign_stack *s, int planes)
{
    const int64_t rows = s->weights ? entries_of(s) : 0;
    int64_t bytes = s->rows > MANY_ROWS ? VOTE_TILE / 2 : VOTE_TILE;
    while (bytes > TILE_LEAST && bytes * (rows > planes ? rows : planes) > TILES_AT_MOST)
        bytes /= 2;
    return bytes;
}

MPISIGN_FN const uint8_t *plane_or_start(const counter *c, int k)
{
    return c->begun >> k & 1 ? c->plane + k * c->stride : c->start >> k & 1 ? ISA(full_row) : ISA(empty_row);
}

MPISIGN_FN void begin_plane(counter *c, int k, int64_t bytes)
{
    if (!(c->begun >> k & 1))
        memcpy(c->plane + k * c->stride, plane_or_start(c, k), (size_t)bytes);
    c->begun |= 1ull << k;
}

/* Eight rows, or four of which sign and mask are counted as two. */
typedef struct {
    const uint8_t *sign[BATCH], *mask[BATCH], *next[BATCH];
} batch;

/* Keeps a vector in a register: GCC stores some to load them again. */
#if defined(MPISIGN_AVX2) || defined(MPISIGN_AVX512)
#define KEEP_LANES(v) __asm__("" : "+v"(v))
#else
#define KEEP_LANES(v) ((void)0)
#endif

/* --- a batch ---------------------------------------------------------------------------------- */

MPISIGN_FN lanes counted(const uint8_t *sign, const uint8_t *mask, int64_t at, int what)
{
    lanes s = load_lanes(sign + at);
    if (what == SIGNS)
        return s;
    const lanes m = load_lanes(mask + at);
    return what == NEGATIVES ? s & m : ~s & m;
}

/* Two rows; under BALANCE one, which counts 2 if negative, 0 if positive and 1 if absent. */
MPISIGN_FN lanes add_two(lanes *low, const batch *b, int i, int64_t at, int what)
{
    lanes carry, x, y;
    if (what == BALANCE) {
        const lanes s = load_lanes(b->sign[i] + at), m = load_lanes(b->mask[i] + at);
        x = s & m;
        y = s | ~m;
    } else {
        x = counted(b->sign[2 * i], b->mask[2 * i], at, what);
        y = counted(b->sign[2 * i + 1], b->mask[2 * i + 1], at, what);
        KEEP_LANES(x);
    }
    FULL_ADD(carry, low[0], low[0], x, y);
    return carry;
}

/* Each row is loaded just before it is added: registers are few. */
MPISIGN_FN lanes add_four(lanes *low, const batch *b, int i, int64_t at, int what)
{
    const lanes x = add_two(low, b, 2 * i, at, what), y = add_two(low, b, 2 * i + 1, at, what);
    lanes carry;
    FULL_ADD(carry, low[1], low[1], x, y);
    return carry;
}

MPISIGN_FN lanes add_eight(lanes *low, const batch *b, int64_t at, int what)
{
    const lanes x = add_four(low, b, 0, at, what), y = add_four(low, b, 1, at, what);
    lanes carry;
    FULL_ADD(carry, low[2], low[2], x, y);
    return carry;
}

/* Adds the first 2^bits of a batch to the planes from `from` on, none of which has begun if `fresh`.
 * bytes: whole lines. */
MPISIGN_FN void add_lines(counter *c, int from, int bits, const batch *rows, int64_t bytes, int what,
                          int fresh)
{
    const batch b = *rows; /* which no store to a plane can change */
    const uint8_t *old[MAX_PLANES], *waiting[MAX_PLANES];
    uint8_t *to[MAX_PLANES];
    const int64_t stride = c->stride;
    int last = from + bits;
    while (last < c->planes && c->waits >> last & 1)
        last++;
    for (int k = from; k < last; k++) {
        to[k] = c->plane + k * c->stride;
        waiting[k] = c->waiting + k * c->stride;
        if (k < from + bits && !fresh)
            begin_plane(c, k, bytes);
        old[k] = plane_or_start(c, k);
    }
    lanes start[3];
    MPISIGN_UNROLL
    for (int k = 0; k < bits; k++)
        start[k] = load_lanes(old[from + k]);
    uint8_t *const lowest = c->plane + from * stride;
    uint8_t *const rest = last < c->planes ? c->waiting + last * stride : NULL;
    for (int64_t line = 0; line < bytes; line += LINE) {
        MPISIGN_UNROLL
        for (int i = 0; i < BATCH; i++)
            PREFETCH_L2(b.next[i] + line);
        for (int64_t at = line; at < line + LINE; at += BLOCK) {
            lanes low[3], carry;
            MPISIGN_UNROLL
            for (int k = 0; k < bits; k++)
                low[k] = fresh ? start[k] : load_lanes(lowest + k * stride + at);
            carry = bits == 3   ? add_eight(low, &b, at, what)
                    : bits == 2 ? add_four(low, &b, 0, at, what)
                    : bits == 1 ? add_two(low, &b, 0, at, what)
                                : counted(b.sign[0], b.mask[0], at, what);
            MPISIGN_UNROLL
            for (int k = 0; k < bits; k++)
                store_lanes(lowest + k * stride + at, low[k]);
            for (int k = from + bits; k < last; k++) {
                lanes sum = load_lanes(old[k] + at);
                FULL_ADD(carry, sum, sum, load_lanes(waiting[k] + at), carry);
                store_lanes(to[k] + at, sum);
            }
            if (rest)
                store_lanes(rest + at, carry);
        }
    }
    const uint64_t below = (1ull << last) - 1;
    c->begun |= below & ~((1ull << from) - 1);
    c->waits &= ~(below & ~((1ull << (from + bits)) - 1));
    if (rest)
        c->waits |= 1ull << last;
}

/* Adds the first `rows` of a batch: at most four under BALANCE, else eight. */
static __attribute__((noinline)) void ISA(add_batch)(counter *c, int from, batch *b, int rows,
                                                     int64_t bytes, int what, fetch_queue *q)
{
    const int64_t lines = whole_lines(bytes);
    uint8_t copies[what == SIGNS ? BATCH : 2 * BATCH][lines > bytes ? lines : 1];
    if (lines > bytes) /* nothing behind a row may be read */
        for (int i = 0; i < rows; i++) {
            b->sign[i] = memcpy(memset(copies[i], 0, (size_t)lines), b->sign[i], (size_t)bytes);
            if (what != SIGNS)
                b->mask[i] = memcpy(memset(copies[BATCH + i], 0, (size_t)lines), b->mask[i],
                                    (size_t)bytes);
        }
    for (int i = rows; i < BATCH; i++) {
        b->sign[i] = ISA(empty_row);
        b->mask[i] = what == BALANCE ? ISA(full_row) : ISA(empty_row);
    }
    const int n = what == BALANCE ? 2 * rows : rows;
    ISA(next_entries)(q, n, b->next);
    const int fresh = !(c->begun >> from & 7);
#define ADD(bits, what)                                                                            \
    if (fresh)                                                                                     \
        add_lines(c, from, bits, b, lines, what, 1);                                               \
    else                                                                                           \
        add_lines(c, from, bits, b, lines, what, 0)
    if (what == NEGATIVES)
        add_lines(c, from, 3, b, lines, NEGATIVES, 0);
    else if (what == POSITIVES)
        add_lines(c, from, 3, b, lines, POSITIVES, 0);
    else if (what == BALANCE && n > 4)
        ADD(3, BALANCE);
    else if (what == BALANCE)
        add_lines(c, from, 2, b, lines, BALANCE, 0);
    else if (n > 4)
        ADD(3, SIGNS);
    else if (n > 2)
        add_lines(c, from, 2, b, lines, SIGNS, 0);
    else if (n > 1)
        add_lines(c, from, 1, b, lines, SIGNS, 0);
    else
        add_lines(c, from, 0, b, lines, SIGNS, 0);
#undef ADD
}

/* Adds rows [first, last), from byte `at` on. Weighted rows are added once for each bit of their
 * weight, to the planes from that bit on. */
static void ISA(add_stack)(counter *c, const mpisign_stack *s, int64_t first, int64_t last,
                           int64_t at, int64_t bytes, int what, fetch_queue *q)
{
    const int full = what == BALANCE ? BATCH / 2 : BATCH;
    uint64_t bits = 1;
    if (s->weights) {
        bits = 0;
        for (int64_t r = first; r < last; r++)
            bits |= s->weights[r];
    }
    for (int bit = 0; bits >> bit; bit++) {
        batch b;
        int n = 0;
        for (int64_t r = first; r < last; r++) {
            if (s->weights && !(s->weights[r] >> bit & 1))
                continue;
            b.sign[n] = s->sign + r * s->row_stride + at;
            b.mask[n] = s->mask ? s->mask + r * s->row_stride + at : ISA(empty_row);
            if (++n < full)
                continue;
            ISA(add_batch)(c, bit, &b, n, bytes, what, q);
            n = 0;
        }
        if (n)
            ISA(add_batch)(c, bit, &b, n, bytes, what, q);
    }
}

/* Adds the carries that still wait: then the planes are the count. */
static void ISA(finish)(counter *c, int64_t bytes)
{
    const int64_t lines = whole_lines(bytes);
    for (int k = 0; k < c->planes; k++) {
        begin_plane(c, k, lines);
        if (!(c->waits >> k & 1))
            continue;
        for (int j = k + 1; j < c->planes; j++)
            begin_plane(c, j, lines);
        for (int64_t at = 0; at < lines; at += BLOCK) {
            lanes carry = load_lanes(c->waiting + k * c->stride + at);
            for (int j = k; j < c->planes; j++) {
                uint8_t *plane = c->plane + j * c->stride + at;
                const lanes sum = load_lanes(plane);
                store_lanes(plane, sum ^ carry);
                carry &= sum;
            }
        }
    }
}

/* All votes that rows cast. */
MPISIGN_FN int64_t votes_of(const mpisign_stack *s)
{
    int64_t total = 0;
    for (int64_t r = 0; s->weights && r < s->rows; r++)
        total += s->weights[r];
    return s->weights ? total : s->rows;
}

/* How many planes count to `total`, with room for a batch at any bit of the weights. */
static int ISA(planes_for)(const mpisign_stack *s, int64_t total)
{
    int planes = 3;
    uint64_t bits = 1;
    if (s->weights)
        for (int64_t r = 0; r < s->rows; r++)
            bits |= s->weights[r];
    while (total >> planes || bits >> (planes - 2))
        planes++;
    return planes;
}
