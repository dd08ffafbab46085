/* Sparse planes to few bytes and back: Golomb-Rice coded gaps, each with the sign of what ends it.
 *
 * A message is its blocks, MPISIGN_SPARSE_BLOCK coordinates each and the last one shorter, each by
 * itself in the fewest bytes: a byte of kind, then bits, lowest first, zeros up to a whole byte.
 *   0         nothing is present
 *   k, 1..17  how many are present, in as many bits as the block's number of coordinates has; then for
 *             each, with g the absent ones since the last: g >> k zeros, a one, the sign, g mod 2^k
 *   32        the mask plane; the signs of those present
 *   33        all are present: the sign plane
 * Decoders are given bytes from anywhere: reads behind their end are zeros, positions and lengths are
 * checked before anything is written.
 */
#include "bits.h"

enum { SPARSE_NONE = 0, SPARSE_MOST = 17, SPARSE_MASKED = 32, SPARSE_FULL = 33 };

/* 64 coordinates from `at` on, 0 for those beyond the block. */
MPISIGN_FN uint64_t sparse_word(const uint8_t *plane, int64_t at, int64_t coordinates)
{
    const int64_t left = coordinates - at;
    if (left >= 64)
        return load_word(plane + at / 8, 8);
    return load_word(plane + at / 8, (int)(left + 7) / 8) & valid_word(left);
}

MPISIGN_FN int64_t count_present(const uint8_t *mask, int64_t coordinates)
{
    int64_t present = 0;
    for (int64_t at = 0; at < coordinates; at += 64)
        present += __builtin_popcountll(sparse_word(mask, at, coordinates));
    return present;
}

/* Bits of the number of those present: any from 0 to `coordinates`. */
MPISIGN_FN int count_bits(int64_t coordinates)
{
    return 64 - __builtin_clzll((uint64_t)coordinates);
}

/* The best parameter for gaps of independent coordinates: the least k of q^(2^k) <= golden ratio - 1
 * (Kiely 2004), q the share of the absent. 0 where a whole mask plane is as short. */
MPISIGN_FN int rice_parameter(int64_t present, int64_t coordinates)
{
    double q = (double)(coordinates - present) / (double)coordinates;
    int k = 0;
    for (; q > 0.6180339887498949 && k < SPARSE_MOST; k++)
        q *= q;
    return k;
}

/* --- to bytes ------------------------------------------------------------------------------- */

/* Where the code ends, or NULL if that is not below `limit`. Stores up to 7 bytes behind the limit. */
static uint8_t *ISA(put_rice)(const uint8_t *sign, const uint8_t *mask, int64_t coordinates,
                              int64_t present, int k, uint8_t *out, const uint8_t *limit)
{
    bit_writer w = {out, 0, 0};
    int64_t next = 0;
    if (w.at >= limit)
        return NULL;
    put_bits(&w, (uint64_t)present, count_bits(coordinates));
    for (int64_t at = 0; at < coordinates; at += 64) {
        const uint64_t signs = sparse_word(sign, at, coordinates);
        for (uint64_t left = sparse_word(mask, at, coordinates); left; left &= left - 1) {
            const int i = __builtin_ctzll(left);
            const uint64_t gap = (uint64_t)(at + i - next), low = gap & ((1ull << k) - 1);
            int64_t zeros = (int64_t)(gap >> k);
            next = at + i + 1;
            for (; zeros > 32 && w.at < limit; zeros -= 32)
                put_bits(&w, 0, 32);
            if (w.at >= limit)
                return NULL;
            put_bits(&w, (low << 2 | (signs >> i & 1) << 1 | 1) << zeros, (int)zeros + 2 + k);
        }
    }
    w.at += w.held > 0;
    return w.at < limit ? w.at : NULL;
}

static uint8_t *ISA(put_masked)(const uint8_t *sign, const uint8_t *mask, int64_t coordinates,
                                uint8_t *out)
{
    const int64_t bytes = (coordinates + 7) / 8;
    bit_writer w = {out + bytes, 0, 0};
    for (int64_t at = 0; at < coordinates; at += 64) {
        const uint64_t present = sparse_word(mask, at, coordinates);
        const uint64_t signs = gather_bits(sparse_word(sign, at, coordinates), present);
        const int n = __builtin_popcountll(present), first = n < 32 ? n : 32;
        store_word(out + at / 8, present, (int)(bytes - at / 8 < 8 ? bytes - at / 8 : 8));
        put_bits(&w, signs & 0xffffffff, first);
        put_bits(&w, signs >> 32, n - first);
    }
    return w.at + (w.held > 0);
}

/* One block, where 1 + 2 planes + 8 bytes are free; returns where it ends. */
static uint8_t *ISA(encode_block)(const uint8_t *sign, const uint8_t *mask, int64_t coordinates,
                                  uint8_t *out)
{
    const int64_t bytes = (coordinates + 7) / 8, present = count_present(mask, coordinates);
    const int k = rice_parameter(present, coordinates);
    uint8_t *end = NULL;
    if (present == 0) {
        *out = SPARSE_NONE;
        return out + 1;
    }
    if (present == coordinates) {
        *out = SPARSE_FULL;
        memcpy(out + 1, sign, (size_t)bytes);
        out[bytes] &= (uint8_t)(0xff >> (8 * bytes - coordinates));
        return out + 1 + bytes;
    }
    if (k > 0) {
        *out = (uint8_t)k;
        end = ISA(put_rice)(sign, mask, coordinates, present, k, out + 1,
                            out + 1 + bytes + (present + 7) / 8);
    }
    if (!end) {
        *out = SPARSE_MASKED;
        end = ISA(put_masked)(sign, mask, coordinates, out + 1);
    }
    return end;
}

/* Returns the bytes of the message. `out` has room for 2 planes, a byte a block and 8 more. */
static int64_t ISA(encode_sparse)(const uint8_t *sign, const uint8_t *mask, int64_t length,
                                  uint8_t *out)
{
    uint8_t *end = out;
    for (int64_t at = 0; at < length; at += MPISIGN_SPARSE_BLOCK) {
        const int64_t left = length - at;
        end = ISA(encode_block)(sign + at / 8, mask + at / 8,
                                left < MPISIGN_SPARSE_BLOCK ? left : MPISIGN_SPARSE_BLOCK, end);
    }
    return end - out;
}

/* --- and back ------------------------------------------------------------------------------- */

/* Bytes that a block took, or an error of host.h; its planes are zeros before. */
static int64_t ISA(take_rice)(const uint8_t *data, int64_t size, int64_t coordinates, int k,
                              uint8_t *sign, uint8_t *mask)
{
    bit_reader r = {data, size, 0, 0, 0};
    int64_t next = 0;
    read_more(&r);
    const int64_t present = (int64_t)take_bits(&r, count_bits(coordinates));
    for (int64_t i = 0; i < present; i++) {
        int64_t zeros = 0;
        read_more(&r);
        for (; (r.bits & 0xffffffff) == 0 && zeros << k < coordinates; zeros += 32) {
            take_bits(&r, 32);
            read_more(&r);
        }
        const int more = r.bits & 0xffffffff ? __builtin_ctzll(r.bits) : 31;
        take_bits(&r, more + 1);
        const uint8_t negative = (uint8_t)take_bits(&r, 1);
        const int64_t position = next + ((zeros + more) << k) + (int64_t)take_bits(&r, k);
        if (position >= coordinates)
            return bits_taken(&r) > 8 * size ? MPISIGN_SPARSE_SHORT : MPISIGN_SPARSE_POSITION;
        sign[position >> 3] |= (uint8_t)(negative << (position & 7));
        mask[position >> 3] |= (uint8_t)(1 << (position & 7));
        next = position + 1;
    }
    const int64_t taken = bits_taken(&r);
    if (taken > 8 * size)
        return MPISIGN_SPARSE_SHORT;
    read_more(&r);
    return take_bits(&r, (int)(-taken & 7)) ? MPISIGN_SPARSE_PADDING : (taken + 7) / 8;
}

MPISIGN_FN int padding_is_set(const uint8_t *plane, int64_t coordinates)
{
    return coordinates & 7 && plane[coordinates / 8] >> (coordinates & 7);
}

static int64_t ISA(take_masked)(const uint8_t *data, int64_t size, int64_t coordinates,
                                uint8_t *sign, uint8_t *mask)
{
    const int64_t bytes = (coordinates + 7) / 8;
    if (size < bytes)
        return MPISIGN_SPARSE_SHORT;
    if (padding_is_set(data, coordinates))
        return MPISIGN_SPARSE_PADDING;
    const int64_t present = count_present(data, coordinates), all = bytes + (present + 7) / 8;
    if (size < all)
        return MPISIGN_SPARSE_SHORT;
    if (padding_is_set(data + bytes, present))
        return MPISIGN_SPARSE_PADDING;
    bit_reader r = {data + bytes, all - bytes, 0, 0, 0};
    for (int64_t at = 0; at < coordinates; at += 64) {
        const int left = (int)(bytes - at / 8 < 8 ? bytes - at / 8 : 8);
        const uint64_t word = load_word(data + at / 8, left);
        const int n = __builtin_popcountll(word), first = n < 32 ? n : 32;
        read_more(&r);
        uint64_t signs = take_bits(&r, first);
        read_more(&r);
        signs |= take_bits(&r, n - first) << 32;
        store_word(mask + at / 8, word, left);
        store_word(sign + at / 8, scatter_bits(signs, word), left);
    }
    return all;
}

static int64_t ISA(take_full)(const uint8_t *data, int64_t size, int64_t coordinates, uint8_t *sign,
                              uint8_t *mask)
{
    const int64_t bytes = (coordinates + 7) / 8;
    if (size < bytes)
        return MPISIGN_SPARSE_SHORT;
    if (padding_is_set(data, coordinates))
        return MPISIGN_SPARSE_PADDING;
    memcpy(sign, data, (size_t)bytes);
    memset(mask, 0xff, (size_t)bytes);
    mask[bytes - 1] = (uint8_t)(0xff >> (8 * bytes - coordinates));
    return bytes;
}

static int64_t ISA(decode_block)(const uint8_t *data, int64_t size, int64_t coordinates,
                                 uint8_t *sign, uint8_t *mask)
{
    const size_t bytes = (size_t)(coordinates + 7) / 8;
    int64_t taken = 0;
    if (size < 1)
        return MPISIGN_SPARSE_SHORT;
    memset(sign, 0, bytes);
    memset(mask, 0, bytes);
    if (*data == SPARSE_MASKED)
        taken = ISA(take_masked)(data + 1, size - 1, coordinates, sign, mask);
    else if (*data == SPARSE_FULL)
        taken = ISA(take_full)(data + 1, size - 1, coordinates, sign, mask);
    else if (*data > SPARSE_MOST)
        return MPISIGN_SPARSE_KIND;
    else if (*data != SPARSE_NONE)
        taken = ISA(take_rice)(data + 1, size - 1, coordinates, *data, sign, mask);
    return taken < 0 ? taken : 1 + taken;
}

/* 0, or what is wrong with the message: then the planes hold anything, but nothing beyond them. */
static int64_t ISA(decode_sparse)(const uint8_t *data, int64_t size, int64_t length, uint8_t *sign,
                                  uint8_t *mask)
{
    int64_t from = 0;
    for (int64_t at = 0; at < length; at += MPISIGN_SPARSE_BLOCK) {
        const int64_t left = length - at;
        const int64_t taken = ISA(decode_block)(
            data + from, size - from, left < MPISIGN_SPARSE_BLOCK ? left : MPISIGN_SPARSE_BLOCK,
            sign + at / 8, mask + at / 8);
        if (taken < 0)
            return taken;
        from += taken;
    }
    return from == size ? 0 : MPISIGN_SPARSE_LONG;
}
