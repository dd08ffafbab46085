/* Count planes: how many of a stack's rows voted negative, coordinate by coordinate. */

/* Counts `what` of a tile and stores it. */
static void ISA(tally_tile)(const mpisign_stack *s, int what, int planes, int64_t at, int64_t bytes,
                            fetch_queue *q, uint8_t *out, int64_t plane_stride)
{
    const int enough = ISA(planes_for)(s, votes_of(s));
    COUNTER(c, enough > planes ? enough : planes, 0, bytes);
    ISA(add_stack)(&c, s, 0, s->rows, at, bytes, what, q);
    ISA(finish)(&c, bytes);
    for (int64_t b = 0; b < bytes; b += BLOCK) {
        const lanes valid = valid_lanes(s->length, at + b);
        for (int k = 0; k < planes; k++)
            store_some(out + k * plane_stride + at + b, load_lanes(c.plane + k * c.stride + b) & valid,
                       bytes - b, 0);
    }
}

static void ISA(tally)(const mpisign_stack *stack, int planes, uint8_t *negatives,
                       uint8_t *positives, int64_t plane_stride, int threads)
{
    const int64_t bytes = (stack->length + 7) / 8;
    const int few = is_few(stack, 1) && planes == bit_length((int)stack->rows);
    const int stream = plane_stride * planes >= STREAM_BYTES && plane_stride % 64 == 0 &&
                       (uintptr_t)negatives % 64 == 0 && (uintptr_t)positives % 64 == 0;
#pragma omp parallel for num_threads(threads) schedule(static)                                     \
    if (threads > 1 && bytes > 2 * VOTE_SLICE)
    for (int64_t at = 0; at < bytes; at += VOTE_TILE) {
        const int64_t n = bytes - at < VOTE_TILE ? bytes - at : VOTE_TILE;
        if (few && 8 * (at + VOTE_TILE) <= stack->length) {
            const int64_t last = at + VOTE_TILE;
            ISA(tally_few)(stack, positives ? NEGATIVES : SIGNS, at, last, stream, negatives,
                           plane_stride);
            if (positives)
                ISA(tally_few)(stack, POSITIVES, at, last, stream, positives, plane_stride);
            if (stream)
                end_of_stream();
            continue;
        }
        fetch_queue queue = queue_of(stack, at, n, !stack->weights && !stack->mask);
        ISA(tally_tile)(stack, positives ? NEGATIVES : SIGNS, planes, at, n, &queue, negatives,
                        plane_stride);
        if (positives)
            ISA(tally_tile)(stack, POSITIVES, planes, at, n, &queue, positives, plane_stride);
    }
}
