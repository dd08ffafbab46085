/* Majority of a stack of sign planes: in registers where there are few rows, else tile by tile. */

enum { VOTE_SLICE = 8 * VOTE_TILE }; /* bytes that one thread takes at a time */

static int64_t ISA(vote_slice)(const plan *p, int64_t first, uint8_t *out_sign, uint8_t *out_mask,
                               int ties, const mpisign_random *rnd)
{
    const mpisign_stack *s = p->stack;
    const int64_t bytes = (s->length + 7) / 8;
    const int64_t last = first + VOTE_SLICE < bytes ? first + VOTE_SLICE : bytes;
    const int few = is_few(s, p->group); /* begins with a cache line where it streams */
    const int stream = bytes >= STREAM_BYTES / 8 && (few || (uintptr_t)out_sign % BLOCK == 0);
    verdict v = {out_sign, out_mask, ties, stream, stream && (out_mask - out_sign) % BLOCK == 0,
                 s->length, zero_lanes()};
    if (few)
        ISA(vote_few)(p, first, last, rnd, &v);
    else
        for (int64_t at = first, tile = tile_of(s, p->rows.planes); at < last; at += tile)
            ISA(vote_tile)(p, at, last - at < tile ? last - at : tile, rnd, &v);
    if (stream)
        end_of_stream();
    return total_of(v.tied);
}

static int64_t ISA(majority)(const mpisign_stack *stack, int64_t group, uint8_t *out_sign,
                             uint8_t *out_mask, int ties, const mpisign_random *rnd, int threads)
{
    const int64_t bytes = (stack->length + 7) / 8;
    const plan p = ISA(plan_of)(stack, group);
    int64_t tied = 0;
    if (threads == 1 || bytes <= 2 * VOTE_SLICE) { /* a team of one costs as much as a small vote */
        for (int64_t first = 0; first < bytes; first += VOTE_SLICE)
            tied += ISA(vote_slice)(&p, first, out_sign, out_mask, ties, rnd);
        return tied;
    }
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : tied)
    for (int64_t first = 0; first < bytes; first += VOTE_SLICE)
        tied += ISA(vote_slice)(&p, first, out_sign, out_mask, ties, rnd);
    return tied;
}
