/* Majority of a stack of sign planes, by bit-sliced counters. */

/* Which bits of a row are counted. */
enum { SIGNS, NEGATIVES, POSITIVES };

enum { VOTE_TILE = 2048, MAX_PLANES = 36, AT_ONCE = MPISIGN_MAX_ROWS_AT_ONCE };

/* Bytes [0, count) of a row, the rest 0. */
MPISIGN_FN lanes load_some(const uint8_t *p, int64_t count)
{
    uint8_t padded[BLOCK] = {0};
    if (count >= BLOCK)
        return load_lanes(p);
    memcpy(padded, p, (size_t)count);
    return load_lanes(padded);
}

MPISIGN_FN void store_some(uint8_t *p, lanes v, int64_t count, int stream)
{
    if (count < BLOCK) {
        uint8_t bytes[BLOCK];
        store_lanes(bytes, v);
        memcpy(p, bytes, (size_t)count);
    } else if (stream) {
        stream_lanes(p, v);
    } else {
        store_lanes(p, v);
    }
}

/* What stays after a comparison: where the result goes and what a tie means. */
typedef struct {
    uint8_t *sign, *mask;
    int ties;
    int stream, stream_mask;
    int64_t length; /* coordinates of the whole: padding bits stay 0 */
    lane_sums tied;
} verdict;

/* The coordinates that exist among the 512 from byte `at` on. */
MPISIGN_FN lanes valid_lanes(int64_t length, int64_t at)
{
    uint8_t keep[BLOCK] = {0};
    int64_t left = length - 8 * at;
    for (int i = 0; i < BLOCK && left > 0; i++, left -= 8)
        keep[i] = left >= 8 ? 0xff : (uint8_t)(0xff >> (8 - left));
    return load_lanes(keep);
}

/* random: the tie bits of these coordinates; may_tie is known when this is compiled. */
MPISIGN_FN void settle_lanes(verdict *v, int64_t at, int64_t count, lanes more, lanes tie,
                             lanes random, int may_tie)
{
    lanes valid = ~zero_lanes();
    if (__builtin_expect(v->length - 8 * at < 8 * BLOCK, 0)) {
        valid = valid_lanes(v->length, at);
        more &= valid;
        tie &= valid;
    }
    if (may_tie) {
        v->tied = add_sums(v->tied, count_lanes(tie));
        more |= tie & random;
        if (v->ties == MPISIGN_TIES_ZERO)
            valid &= ~tie;
    }
    store_some(v->sign + at, more, count, v->stream);
    if (v->mask)
        store_some(v->mask + at, valid, count, v->stream_mask);
}

/* --- any stack: the counters stay in the first-level cache ------------------------------------ */

typedef uint8_t tile[VOTE_TILE + BLOCK]; /* not all at the same place of the cache */

typedef struct {
    tile negatives[MAX_PLANES], positives[MAX_PLANES];
} counters;

static const tile ISA(empty_row);

MPISIGN_FN lanes counted(const uint8_t *sign, const uint8_t *mask, int64_t at, int64_t count,
                         int what)
{
    lanes s = load_some(sign + at, count);
    if (what == SIGNS)
        return s;
    lanes m = load_some(mask + at, count);
    return what == NEGATIVES ? s & m : ~s & m;
}

/* Sixteen rows, absent ones empty. */
typedef struct {
    const uint8_t *sign[AT_ONCE], *mask[AT_ONCE];
} batch;

/* Adds a batch to the count planes from `from` on. `next`: the batch after this one; fetching it now
 * hides how far apart rows lie in memory. */
MPISIGN_FN void add_blocks(tile *counter, int from, int planes, const batch *b, const batch *next,
                           int64_t at, int64_t bytes, int count, int what)
{
    for (; at < bytes; at += BLOCK) {
        lanes v[AT_ONCE], low[4];
        MPISIGN_UNROLL
        for (int i = 0; i < AT_ONCE; i++) {
            PREFETCH_L2(next->sign[i] + at);
            if (what != SIGNS)
                PREFETCH_L2(next->mask[i] + at);
            v[i] = counted(b->sign[i], b->mask[i], at, count < BLOCK ? bytes - at : BLOCK, what);
        }
        MPISIGN_UNROLL
        for (int k = 0; k < 4; k++)
            low[k] = load_lanes(counter[from + k] + at);
        lanes carry = add_rows(low, v, AT_ONCE);
        MPISIGN_UNROLL
        for (int k = 0; k < 4; k++)
            store_lanes(counter[from + k] + at, low[k]);
        for (int k = from + 4; k < planes; k++) {
            lanes c = load_lanes(counter[k] + at);
            store_lanes(counter[k] + at, c ^ carry);
            carry &= c;
        }
    }
}

static __attribute__((noinline)) void ISA(add_batch)(tile *counter, int from, int planes,
                                                     const batch *b, const batch *next,
                                                     int64_t bytes, int what)
{
    const int64_t whole = bytes / BLOCK * BLOCK;
    if (what == SIGNS)
        add_blocks(counter, from, planes, b, next, 0, whole, BLOCK, SIGNS);
    else if (what == NEGATIVES)
        add_blocks(counter, from, planes, b, next, 0, whole, BLOCK, NEGATIVES);
    else
        add_blocks(counter, from, planes, b, next, 0, whole, BLOCK, POSITIVES);
    add_blocks(counter, from, planes, b, next, whole, bytes, 0, what);
}

/* The same rows one tile on. */
MPISIGN_FN batch ahead(const batch *b)
{
    batch next = *b;
    for (int i = 0; i < AT_ONCE; i++) {
        next.sign[i] += VOTE_TILE;
        next.mask[i] += VOTE_TILE;
    }
    return next;
}

/* Adds rows [first, last), from byte `at` on, to a counter of `planes` planes. Weighted rows
 * are added once for each bit of their weight, to the planes from that bit on. */
static void ISA(count_tile)(tile *counter, int planes, const mpisign_stack *s, int64_t first,
                           int64_t last, int64_t at, int64_t bytes, int what)
{
    uint64_t bits = 1;
    if (s->weights) {
        bits = 0;
        for (int64_t r = first; r < last; r++)
            bits |= s->weights[r];
    }
    for (int bit = 0; bits >> bit; bit++) {
        batch batches[2], first_ones;
        int64_t full = 0;
        int n = 0;
        for (int64_t r = first; r < last; r++) {
            batch *b = &batches[full % 2];
            if (s->weights && !(s->weights[r] >> bit & 1))
                continue;
            b->sign[n] = s->sign + r * s->row_stride + at;
            b->mask[n] = s->mask ? s->mask + r * s->row_stride + at : ISA(empty_row);
            if (++n < AT_ONCE)
                continue;
            if (full == 0)
                first_ones = ahead(b);
            else
                ISA(add_batch)(counter, bit, planes, &batches[1 - full % 2], b, bytes, what);
            full++;
            n = 0;
        }
        batch *b = &batches[full % 2];
        for (int i = n; i < AT_ONCE; i++)
            b->sign[i] = b->mask[i] = ISA(empty_row);
        if (full == 0)
            first_ones = ahead(b);
        else
            ISA(add_batch)(counter, bit, planes, &batches[1 - full % 2], n ? b : &first_ones, bytes, what);
        if (n > 0)
            ISA(add_batch)(counter, bit, planes, b, &first_ones, bytes, what);
    }
}

/* How many planes count to `total`, with room for add_batch at any bit of the weights. */
static int ISA(planes_for)(const mpisign_stack *s, int64_t total)
{
    int planes = 4;
    uint64_t bits = 1;
    if (s->weights)
        for (int64_t r = 0; r < s->rows; r++)
            bits |= s->weights[r];
    while (total >> planes || bits >> (planes - 3))
        planes++;
    return planes;
}

MPISIGN_FN void clear(counters *c, int planes, int masked)
{
    for (int k = 0; k < planes; k++)
        memset(c->negatives[k], 0, VOTE_TILE);
    for (int k = 0; masked && k < planes; k++)
        memset(c->positives[k], 0, VOTE_TILE);
}

static void ISA(add_stack)(counters *c, int planes, const mpisign_stack *s, int64_t first,
                           int64_t last, int64_t at, int64_t bytes)
{
    if (s->mask) {
        ISA(count_tile)(c->negatives, planes, s, first, last, at, bytes, NEGATIVES);
        ISA(count_tile)(c->positives, planes, s, first, last, at, bytes, POSITIVES);
    } else {
        ISA(count_tile)(c->negatives, planes, s, first, last, at, bytes, SIGNS);
    }
}

/* Where a block of a counted tile has more negatives than positives, and where as many. `total`: of
 * all votes where everyone votes, -1 where positives are counted. */
MPISIGN_FN void compare_tile(const counters *c, int planes, int64_t total, int64_t at, lanes *more,
                             lanes *tie)
{
    lanes negatives[MAX_PLANES], positives[MAX_PLANES];
    for (int k = 0; k < planes; k++)
        negatives[k] = load_lanes(c->negatives[k] + at);
    if (total < 0) {
        for (int k = 0; k < planes; k++)
            positives[k] = load_lanes(c->positives[k] + at);
        compare_counters(negatives, positives, planes, more, tie);
    } else {
        compare_constant(negatives, planes, (unsigned)(total / 2), more, tie);
        if (total % 2)
            *tie = zero_lanes();
    }
}

/* How a stack is counted. `votes`: all votes cast where everyone votes, else -1; of groups, groups. */
typedef struct {
    const mpisign_stack *stack;
    int64_t group, votes;
    int planes, group_planes;
} plan;

static plan ISA(plan_of)(const mpisign_stack *s, int64_t group)
{
    int64_t total = s->rows / group;
    if (s->weights) {
        total = 0;
        for (int64_t r = 0; r < s->rows; r++)
            total += s->weights[r];
    }
    const int abstain = s->mask != NULL || (group > 1 && group % 2 == 0);
    return (plan){s, group, abstain ? -1 : total, ISA(planes_for)(s, total),
                  ISA(planes_for)(s, group)};
}

/* Groups vote first; where a group ties it abstains. Their results are the rows that are counted. */
static void ISA(add_groups)(counters *c, const plan *p, int64_t at, int64_t bytes)
{
    const mpisign_stack *s = p->stack;
    const int64_t groups = s->rows / p->group;
    counters inner;
    tile sign[AT_ONCE], mask[AT_ONCE];
    for (int64_t g = 0; g < groups; g += AT_ONCE) {
        const int64_t n = groups - g < AT_ONCE ? groups - g : AT_ONCE;
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = (g + i) * p->group;
            clear(&inner, p->group_planes, s->mask != NULL);
            ISA(add_stack)(&inner, p->group_planes, s, row, row + p->group, at, bytes);
            for (int64_t b = 0; b < bytes; b += BLOCK) {
                lanes more, tie;
                compare_tile(&inner, p->group_planes, s->mask ? -1 : p->group, b, &more, &tie);
                store_lanes(sign[i] + b, more);
                store_lanes(mask[i] + b, ~tie);
            }
        }
        const mpisign_stack winners = {sign[0], p->votes < 0 ? mask[0] : NULL, sizeof(tile), n, 0,
                                       NULL};
        ISA(add_stack)(c, p->planes, &winners, 0, n, 0, bytes);
    }
}

static void ISA(vote_tile)(const plan *p, int64_t at, int64_t bytes, const mpisign_random *rnd,
                           verdict *v)
{
    counters c;
    uint8_t room[RANDOM_ROOM(VOTE_TILE)];
    const uint8_t *bits = room;
    const int may_tie = p->votes < 0 || p->votes % 2 == 0;
    const int draw = may_tie && v->ties == MPISIGN_TIES_RANDOM;
    clear(&c, p->planes, p->votes < 0);
    if (p->group > 1)
        ISA(add_groups)(&c, p, at, bytes);
    else
        ISA(add_stack)(&c, p->planes, p->stack, 0, p->stack->rows, at, bytes);
    if (draw)
        bits = random_bytes(rnd, (uint64_t)at, bytes, room);
    for (int64_t b = 0; b < bytes; b += BLOCK) {
        lanes more, tie;
        compare_tile(&c, p->planes, p->votes, b, &more, &tie);
        settle_lanes(v, at + b, bytes - b, more, tie, draw ? load_lanes(bits + b) : zero_lanes(),
                     may_tie);
    }
}

/* --- few rows without masks, weights and groups: the counters never leave the registers -------- */

/* `batches` of RANDOM_BATCH_BYTES from byte `at` on. */
MPISIGN_FN void few_rows(const mpisign_stack *s, int n, int64_t at, int64_t batches,
                         const mpisign_random *rnd, verdict *v)
{
    const int draw = n % 2 == 0 && v->ties == MPISIGN_TIES_RANDOM;
    const philox_keys keys = keys_of(rnd);
    uint64_t block = (rnd->byte_offset + (uint64_t)at) >> 4;
    for (int64_t k = 0; k < batches; k++, block += RANDOM_BATCH) {
        lanes random[BATCH_LANES] = {{0}};
        if (draw)
            philox_lanes(&keys, block, random);
        UNROLL_BATCH
        for (int i = 0; i < BATCH_LANES; i++, at += BLOCK) {
            lanes rows[AT_ONCE], counter[5], more, tie;
            MPISIGN_UNROLL
            for (int r = 0; r < n; r++)
                rows[r] = load_lanes(s->sign + r * s->row_stride + at);
            count_rows(counter, rows, n);
            compare_constant(counter, 32 - __builtin_clz((unsigned)n), (unsigned)(n / 2), &more,
                             &tie);
            settle_lanes(v, at, BLOCK, more, tie, random[i], n % 2 == 0);
        }
    }
}

static void ISA(vote_batches)(const mpisign_stack *s, int64_t at, int64_t batches,
                              const mpisign_random *rnd, verdict *v)
{
#define ROWS(n)                                                                                    \
    case n: few_rows(s, n, at, batches, rnd, v); break;
    switch (batches ? s->rows : 0) { /* so that each number of rows has a loop of its own */
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
        ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14) ROWS(15) ROWS(16)
    }
#undef ROWS
}

/* The last bytes, fewer than a batch, from byte `at` on, where a block of the stream begins if random
 * bits are drawn: a batch that ends in zeros. */
static void ISA(vote_tail)(const mpisign_stack *s, int64_t at, int64_t bytes,
                           const mpisign_random *rnd, verdict *v)
{
    uint8_t rows[AT_ONCE][RANDOM_BATCH_BYTES], sign[RANDOM_BATCH_BYTES], mask[RANDOM_BATCH_BYTES];
    const mpisign_stack padded = {rows[0], NULL, RANDOM_BATCH_BYTES, s->rows, 0, NULL};
    mpisign_random here = *rnd;
    verdict all = *v;
    here.byte_offset += (uint64_t)at;
    all.sign = sign;
    all.mask = v->mask ? mask : NULL;
    all.length = v->length - 8 * at < 8 * bytes ? v->length - 8 * at : 8 * bytes;
    for (int64_t r = 0; r < s->rows; r++) {
        memset(rows[r], 0, RANDOM_BATCH_BYTES);
        memcpy(rows[r], s->sign + r * s->row_stride + at, (size_t)bytes);
    }
    ISA(vote_batches)(&padded, 0, 1, &here, &all);
    memcpy(v->sign + at, sign, (size_t)bytes);
    if (v->mask)
        memcpy(v->mask + at, mask, (size_t)bytes);
    v->tied = all.tied;
}

/* Bytes [first, last). Whole batches of random bits stay in registers where they begin with a block of
 * the stream; streaming stores must begin with a cache line. What is left is voted on as any stack. */
static void ISA(vote_few)(const plan *p, int64_t first, int64_t last, const mpisign_random *rnd,
                          verdict *v)
{
    const mpisign_stack *s = p->stack;
    const int draw = s->rows % 2 == 0 && v->ties == MPISIGN_TIES_RANDOM;
    const int64_t to_block = (int64_t)(-(rnd->byte_offset + (uint64_t)first) & 15);
    const int64_t to_line = (int64_t)(-(uintptr_t)(v->sign + first) & 63);
    const int both = !draw || (to_line - to_block) % 16 == 0;
    verdict rest = *v;
    rest.stream = rest.stream_mask = 0;
    v->stream &= both;
    v->stream_mask &= both;
    int64_t head = v->stream ? to_line : draw ? to_block : 0;
    head = head < last - first ? head : last - first;
    const int64_t batches = (last - first - head) / RANDOM_BATCH_BYTES;
    const int64_t tail = first + head + batches * RANDOM_BATCH_BYTES;
    ISA(vote_batches)(s, first + head, batches, rnd, v);
    if (head)
        ISA(vote_tile)(p, first, head, rnd, &rest);
    if (tail < last)
        ISA(vote_tail)(s, tail, last - tail, rnd, &rest);
    v->tied = add_sums(v->tied, rest.tied);
}

enum { VOTE_SLICE = 16 * VOTE_TILE }; /* bytes that one thread takes at a time */

static int64_t ISA(majority)(const mpisign_stack *stack, int64_t group, uint8_t *out_sign,
                             uint8_t *out_mask, int ties, const mpisign_random *rnd, int threads)
{
    const int64_t bytes = (stack->length + 7) / 8;
    const int few = stack->rows <= AT_ONCE && !stack->mask && !stack->weights && group == 1;
    const int stream = bytes >= STREAM_BYTES / 8 && few;
    const plan p = ISA(plan_of)(stack, group);
    int64_t tied = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : tied)                 \
    if (threads > 1 && bytes > 2 * VOTE_SLICE)
    for (int64_t first = 0; first < bytes; first += VOTE_SLICE) {
        const int64_t last = first + VOTE_SLICE < bytes ? first + VOTE_SLICE : bytes;
        verdict v = {out_sign, out_mask, ties, stream,
                     stream && (out_mask - out_sign) % BLOCK == 0, stack->length, zero_lanes()};
        if (few)
            ISA(vote_few)(&p, first, last, rnd, &v);
        else
            for (int64_t at = first; at < last; at += VOTE_TILE)
                ISA(vote_tile)(&p, at, last - at < VOTE_TILE ? last - at : VOTE_TILE, rnd, &v);
        tied += total_of(v.tied);
        if (stream)
            end_of_stream();
    }
    return tied;
}
