"""What a Vocabulary is made of, as a header: tables of strings, the queue of merges, how vocabularies write bytes.

Functions that need memory return -1 when there is none. Nothing here needs the GIL.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from .splitting cimport Array, char_size, next_char, reserve

# ---------------------------------------------------------------------------------------------------------------------
# Strings, numbered in the order of their coming, and tables from text to number

cdef struct Slice:
    uint32_t start
    uint32_t size

cdef struct Strings:
    Array raw       # uint8: the bytes, one string after the other, less than 2^32 of them
    Array spans     # Slice per string

cdef struct Place:
    uint32_t tag    # hash of the string
    int32_t id      # its number; -1: nothing here

cdef struct Table:
    Place* places   # open addressing, a power of two of places, at most half of them used
    uint32_t mask
    uint32_t used


cdef inline int32_t add_string(Strings* strings, const uint8_t* text, int64_t n) noexcept nogil:
    """Keep a copy of text[:n] and return its number."""
    cdef int64_t which = strings.spans.used
    cdef Slice* span
    if strings.raw.used + n >= <int64_t>0xFFFFFFFF or which >= 0x7FFFFFFF:
        return -1
    if reserve(&strings.raw, n, 1) < 0 or reserve(&strings.spans, 1, sizeof(Slice)) < 0:
        return -1
    if n > 0:
        memcpy(<uint8_t*>strings.raw.data + strings.raw.used, text, n)
    span = <Slice*>strings.spans.data + which
    span.start, span.size = <uint32_t>strings.raw.used, <uint32_t>n
    strings.raw.used += n
    strings.spans.used += 1
    return <int32_t>which


cdef inline bint same_string(const Strings* strings, int32_t which, const uint8_t* text, int64_t n) noexcept nogil:
    cdef Slice span = (<Slice*>strings.spans.data)[which]
    return span.size == n and memcmp(<uint8_t*>strings.raw.data + span.start, text, n) == 0


cdef inline uint64_t load(const uint8_t* text, int size) noexcept nogil:
    cdef uint64_t whole = 0
    cdef uint32_t half = 0
    if size == 8:
        memcpy(&whole, text, 8)
        return whole
    memcpy(&half, text, 4)
    return half


cdef inline uint32_t hash_bytes(const uint8_t* text, int64_t n) noexcept nogil:
    """Multiply and fold eight bytes at a time, the last eight overlapping; shorter strings in overlapping parts."""
    cdef uint64_t h = <uint64_t>0x9E3779B97F4A7C15 ^ <uint64_t>n
    cdef int64_t at = 0
    while at + 8 < n:
        h = (h ^ load(text + at, 8)) * <uint64_t>0xFF51AFD7ED558CCD
        h ^= h >> 32
        at += 8
    if n >= 8:
        h ^= load(text + n - 8, 8)
    elif n >= 4:
        h ^= load(text, 4) | load(text + n - 4, 4) << 32
    elif n > 0:
        h ^= <uint64_t>text[0] | <uint64_t>text[n >> 1] << 8 | <uint64_t>text[n - 1] << 16
    h *= <uint64_t>0xFF51AFD7ED558CCD
    return <uint32_t>(h ^ h >> 32)


cdef inline int32_t lookup(const Strings* strings, const Table* table, const uint8_t* text, int64_t n) noexcept nogil:
    """Return the number of text[:n] in the table, -1 if it is not there."""
    cdef uint32_t tag = hash_bytes(text, n), at = tag & table.mask
    while table.places[at].id >= 0:
        if table.places[at].tag == tag and same_string(strings, table.places[at].id, text, n):
            return table.places[at].id
        at = (at + 1) & table.mask
    return -1


cdef inline int size_table(Table* table, int64_t strings) noexcept nogil:
    """Make room for so many strings in all, keeping those that are there."""
    cdef uint64_t size = 16
    cdef int64_t i
    cdef uint32_t at
    cdef Place* places
    while size < 2 * <uint64_t>strings:
        size *= 2
    places = <Place*>malloc(size * sizeof(Place)) if size <= <uint64_t>0x80000000 else NULL
    if places == NULL:
        return -1
    memset(places, 0xFF, size * sizeof(Place))
    for i in range(<int64_t>table.mask + 1 if table.places != NULL else 0):
        if table.places[i].id >= 0:
            at = table.places[i].tag & <uint32_t>(size - 1)
            while places[at].id >= 0:
                at = (at + 1) & <uint32_t>(size - 1)
            places[at] = table.places[i]
    free(table.places)
    table.places, table.mask = places, <uint32_t>(size - 1)
    return 0


cdef inline int32_t insert(const Strings* strings, Table* table, int32_t which) noexcept nogil:
    """Put a string into the table; return its number, or that of an equal one that is there already."""
    cdef Slice span = (<Slice*>strings.spans.data)[which]
    cdef const uint8_t* text = <uint8_t*>strings.raw.data + span.start
    cdef uint32_t tag = hash_bytes(text, span.size), at
    if 2 * <uint64_t>(table.used + 1) > <uint64_t>table.mask + 1 and size_table(table, 2 * <int64_t>table.used + 2) < 0:
        return -1
    at = tag & table.mask
    while table.places[at].id >= 0:
        if table.places[at].tag == tag and same_string(strings, table.places[at].id, text, span.size):
            return table.places[at].id
        at = (at + 1) & table.mask
    table.places[at].tag, table.places[at].id = tag, which
    table.used += 1
    return which


# ---------------------------------------------------------------------------------------------------------------------
# Merges: symbols of a piece in a chain, and a heap of what could be joined next

cdef struct Symbol:
    int32_t id      # token, or string that only merges lead to; -1 neither
    int32_t prev
    int32_t next
    int32_t start   # bytes into the piece
    int32_t size    # bytes; 0 once merged into its left neighbour

cdef struct Pair:
    # A merge as the vocabulary lists it, found by its result and where that is cut.
    int32_t left_size   # bytes
    int32_t next        # another merge with the same result, -1 for none

cdef struct Merge:
    uint64_t key    # rank << 32 | left symbol: the least comes first
    int32_t size    # bytes of both symbols when this was queued: outdated once their sum is another
    int32_t merged  # id of the result


cdef inline int push_merge(Array* heap, Merge merge) noexcept nogil:
    cdef Merge* items
    cdef int64_t at = heap.used, parent
    if reserve(heap, 1, sizeof(Merge)) < 0:
        return -1
    items = <Merge*>heap.data
    heap.used += 1
    while at > 0:
        parent = (at - 1) // 2
        if items[parent].key <= merge.key:
            break
        items[at] = items[parent]
        at = parent
    items[at] = merge
    return 0


cdef inline Merge pop_merge(Array* heap) noexcept nogil:
    """Take the least merge off a heap that is not empty."""
    cdef Merge* items = <Merge*>heap.data
    cdef Merge least = items[0], last
    cdef int64_t at = 0, child
    heap.used -= 1
    last = items[heap.used]
    while 2 * at + 1 < heap.used:
        child = 2 * at + 1
        if child + 1 < heap.used and items[child + 1].key < items[child].key:
            child += 1
        if items[child].key >= last.key:
            break
        items[at] = items[child]
        at = child
    items[at] = last
    return least


# ---------------------------------------------------------------------------------------------------------------------
# How vocabularies write bytes

cdef inline int byte_of_char(uint32_t code) noexcept nogil:
    """Return the byte that a character stands for in GPT-2's vocabulary, -1 for none.

    Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, are U+0100 and on: GPT-2's
    bytes_to_unicode.
    """
    if 0x21 <= code < 0x7F or 0xA1 <= code < 0xAD or 0xAE <= code < 0x100:
        return code
    if 0x100 <= code < 0x121:
        return code - 0x100
    if 0x121 <= code < 0x143:
        return code - 0x121 + 0x7F
    return 0xAD if code == 0x143 else -1


cdef inline int64_t from_byte_chars(const uint8_t* text, int64_t n, uint8_t* out) noexcept nogil:
    """Write the bytes that GPT-2's characters stand for; return how many, -1 where one stands for none."""
    cdef int64_t at = 0, used = 0
    cdef uint32_t code
    cdef int byte
    while at < n:
        code = next_char(text + at, n - at)
        byte = byte_of_char(code)
        if byte < 0:
            return -1
        out[used] = <uint8_t>byte
        used += 1
        at += char_size(code)
    return used


cdef inline int64_t from_spaced(const uint8_t* text, int64_t n, uint8_t* out) noexcept nogil:
    """Write text with each U+2581 (SentencePiece's space) as a space; return how many bytes."""
    cdef int64_t at = 0, used = 0
    while at < n:
        if text[at] == 0xE2 and n - at >= 3 and text[at + 1] == 0x96 and text[at + 2] == 0x81:
            out[used] = 32
            at += 3
        else:
            out[used] = text[at]
            at += 1
        used += 1
    return used


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    return c - 48 if 48 <= c < 58 else c - 55 if 65 <= c < 71 else c - 87 if 97 <= c < 103 else -1


cdef inline int byte_token(const uint8_t* text, int64_t n) noexcept nogil:
    """Return the byte that `<0xNN>` stands for, -1 for any other text."""
    if n != 6 or memcmp(text, b"<0x", 3) != 0 or text[5] != 62 or hex_digit(text[3]) < 0 or hex_digit(text[4]) < 0:
        return -1
    return hex_digit(text[3]) * 16 + hex_digit(text[4])


cdef inline bint space_inside(const uint8_t* text, int64_t n) noexcept nogil:
    """Say whether a space follows something that is not a space."""
    cdef int64_t i
    for i in range(1, n):
        if text[i] == 32 and text[i - 1] != 32:
            return True
    return False
