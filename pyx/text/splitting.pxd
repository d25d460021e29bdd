"""Regular expressions over code points, as a header: the matcher behind the pre-tokenizers.

llamacy/text/pattern.py compiles an expression into a Stage; here it runs, by backtracking, on decoded text. Nothing
here needs the GIL or knows of tokens.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport realloc

# A byte that is not UTF-8 becomes the code point INVALID + byte, of class S as U+FFFD is.
cdef enum:
    INVALID = 0x110000
    N_PAGES = 0x1101

cdef struct Array:
    void* data
    int64_t used        # items
    int64_t room


cdef inline int reserve(Array* array, int64_t more, size_t item) noexcept nogil:
    """Make room for `more` items behind those used; -1 when memory is short."""
    cdef int64_t room
    cdef void* data
    if array.used + more <= array.room:
        return 0
    room = max(array.used + more, 2 * array.room, 64)
    data = realloc(array.data, room * item)
    if data == NULL:
        return -1
    array.data, array.room = data, room
    return 0


cdef inline int char_size(uint32_t code) noexcept nogil:
    """Bytes that a decoded code point came from."""
    if code < 0x80 or code >= INVALID:
        return 1
    return 2 if code < 0x800 else 3 if code < 0x10000 else 4


cdef inline uint32_t next_char(const uint8_t* text, int64_t left) noexcept nogil:
    """Decode the first code point of `left` > 0 bytes; INVALID + byte where they are not well-formed UTF-8."""
    cdef uint32_t first = text[0], code
    cdef int size, i
    if first < 0x80:
        return first
    size = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4 if 0xF0 <= first < 0xF5 else 0
    if size == 0 or left < size:
        return INVALID + first
    code = first & (0xFF >> (size + 1))
    for i in range(1, size):
        if text[i] & 0xC0 != 0x80:
            return INVALID + first
        code = code << 6 | (text[i] & 0x3F)
    if (size == 3 and (code < 0x800 or 0xD800 <= code < 0xE000)) or (size == 4 and not 0x10000 <= code < 0x110000):
        return INVALID + first
    return code


cdef enum:
    OP_MATCH = 0    # the alternative matched
    OP_RUN = 1      # a: set, b: least, c: most (-1: any number); greedy, gives back one at a time
    OP_SPLIT = 2    # try the next instruction, then a
    OP_JUMP = 3     # a: target
    OP_LOOK = 4     # a: where to go on, b: 1 negative; the body follows and ends with OP_MATCH
    OP_END = 5      # only at the end of the text

cdef struct Retry:
    int32_t pc
    int32_t pos
    int32_t least   # a run may shrink down to here; equal to pos for a plain alternative

cdef struct Stage:
    const uint16_t* classes    # class bits of every code point
    const int32_t* code        # instructions of four int32: op, a, b, c
    const int32_t* starts      # first instruction of each alternative
    const uint32_t* first      # [129] alternatives (bits) that can start with an ASCII character; [128] with any other
    const uint8_t* ascii       # (n_sets, 128) membership
    const uint32_t* masks      # (n_sets,) class bits of each set, for code points from 128 on
    const uint8_t* negated     # (n_sets,)
    const int32_t* range_starts  # (n_sets + 1,) into ranges
    const uint32_t* ranges     # (n_ranges, 2) sorted, inclusive
    int32_t skip_set           # the only alternative is a run of this set and something more; -1 otherwise


cdef inline bint in_set(const Stage* stage, int32_t which, uint32_t code) noexcept nogil:
    cdef int32_t low, high, middle
    if code < 128:
        return stage.ascii[which * 128 + code]
    if stage.classes[code] & stage.masks[which]:
        return not stage.negated[which]
    low, high = stage.range_starts[which], stage.range_starts[which + 1]
    while low < high:
        middle = (low + high) // 2
        if code > stage.ranges[2 * middle + 1]:
            low = middle + 1
        elif code < stage.ranges[2 * middle]:
            high = middle
        else:
            return not stage.negated[which]
    return stage.negated[which]


cdef inline int32_t match(
    const Stage* stage, int32_t pc, const uint32_t* text, int32_t pos, int32_t end, Array* stack
) noexcept nogil:
    """Run the program from `pc` at `pos`; return where the match ends, -1 for none, -2 when memory is short."""
    cdef int64_t base = stack.used
    cdef const int32_t* op
    cdef Retry* retry
    cdef int32_t start, most, found
    while True:
        op = stage.code + 4 * pc
        pc += 1
        if op[0] == OP_MATCH:
            stack.used = base
            return pos
        if op[0] == OP_JUMP:
            pc = op[1]
            continue
        if reserve(stack, 1, sizeof(Retry)) < 0:
            return -2
        retry = <Retry*>stack.data + stack.used
        if op[0] == OP_SPLIT:
            retry.pc, retry.pos, retry.least = op[1], pos, pos
            stack.used += 1
            continue
        if op[0] == OP_RUN:
            start, most = pos, end if op[3] < 0 or op[3] > end - pos else pos + op[3]
            while pos < most and in_set(stage, op[1], text[pos]):
                pos += 1
            if pos - start >= op[2]:
                if pos - start > op[2]:
                    retry.pc, retry.pos, retry.least = pc, pos - 1, start + op[2]
                    stack.used += 1
                continue
        elif op[0] == OP_LOOK:
            found = match(stage, pc, text, pos, end, stack)
            if found == -2:
                return -2
            if (found >= 0) != (op[2] == 1):
                pc = op[1]
                continue
        elif pos == end:    # OP_END
            continue
        # Failed: go back to the latest choice.
        if stack.used == base:
            return -1
        retry = <Retry*>stack.data + stack.used - 1
        pc, pos = retry.pc, retry.pos
        if retry.pos > retry.least:
            retry.pos -= 1
        else:
            stack.used -= 1


cdef inline int32_t find_match(
    const Stage* stage, const uint32_t* text, int32_t pos, int32_t end, Array* stack
) noexcept nogil:
    """Try the alternatives in order at `pos` < end; return the end of the first that matches, -1 or -2 as match."""
    cdef uint32_t viable = stage.first[text[pos] if text[pos] < 128 else 128]
    cdef int32_t i = 0, found
    while viable:
        if viable & 1:
            found = match(stage, stage.starts[i], text, pos, end, stack)
            if found != -1:
                return found
        viable >>= 1
        i += 1
    return -1


cdef inline int split_piece(
    const Stage* stage, const uint32_t* text, int32_t start, int32_t end, Array* stack, Array* ends
) noexcept nogil:
    """Append the ends of the pieces of text[start:end]: each match, and whatever lies between matches."""
    cdef int32_t pos = start, last = start, found
    cdef int32_t* out
    while pos < end:
        found = find_match(stage, text, pos, end, stack)
        if found == -2 or reserve(ends, 3, sizeof(int32_t)) < 0:
            return -1
        out = <int32_t*>ends.data
        if found < 0:
            # `X+ tail` that failed at the head of a run of X fails inside it too: skip the run, not one character.
            if stage.skip_set >= 0:
                while pos + 1 < end and in_set(stage, stage.skip_set, text[pos]):
                    pos += 1
            pos += 1
            continue
        if pos > last:
            out[ends.used] = pos
            ends.used += 1
        if found > pos:
            out[ends.used] = found
            ends.used += 1
        last, pos = max(pos, found), max(pos + 1, found)
    if last < end:
        if reserve(ends, 1, sizeof(int32_t)) < 0:
            return -1
        (<int32_t*>ends.data)[ends.used] = end
        ends.used += 1
    return 0
