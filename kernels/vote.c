/* Majority of a stack of sign planes: in registers where there are few rows, else tile by tile. */

enum { VOTE_SLICE = 16 * VOTE_TILE }; /* bytes that one thread takes at a time */

static int64_t ISA(majority)(const mpisign_stack *stack, int64_t group, uint8_t *out_sign,
                             uint8_t *out_mask, int ties, const mpisign_random *rnd, int threads)
{
    const int64_t bytes = (stack->length + 7) / 8;
    const int few = is_few(stack, group);
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
