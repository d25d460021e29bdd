"""Text to pieces: pre-tokenizing, compiled once for every CPU.

`Splitter` cuts text with the regular expressions that llamacy/text/pattern.py compiled. Many threads may use one. Offsets
are int32: one call takes less than 2^31 - 1 bytes.
"""

import unicodedata

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from .splitting cimport INVALID, N_PAGES, char_size, next_char, reserve, split_piece

# Unicode classes as bits; L, N and so on are unions. Space is White_Space (not str.isspace, which adds U+001C..1F).
CLASS_BITS = {"Lu": 1, "Ll": 2, "Lt": 4, "Lm": 8, "Lo": 16, "M": 32, "Nd": 64, "Nl": 128, "No": 128, "P": 256, "S": 512}
SPACE_BIT = 1024
SPACES = {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}

# Class bits of every code point, filled from unicodedata a page of 256 at a time when text first touches it.
cdef uint16_t* CLASSES = <uint16_t*>calloc(N_PAGES * 256, sizeof(uint16_t))
cdef uint8_t[N_PAGES] FILLED
memset(FILLED, 0, N_PAGES)


def char_class(int code):
    """Return the class bits of one code point; 0 for unassigned, control and private ones."""
    if code >= INVALID:
        return CLASS_BITS["S"]
    category = unicodedata.category(chr(code))
    bits = CLASS_BITS.get(category, CLASS_BITS.get(category[0], 0))
    return bits | SPACE_BIT if code in SPACES else bits


cdef int fill_pages(uint8_t* wanted) except -1:
    cdef int page, code
    for page in range(N_PAGES):
        if wanted[page] and not FILLED[page]:
            for code in range(page * 256, page * 256 + 256):
                CLASSES[code] = char_class(code)
            FILLED[page] = 1
    return 0


cdef int decode(const uint8_t* text, int64_t n, Work* work) noexcept nogil:
    """Put the code points of text[:n] into work.codes, their classes into CLASSES; -1 when that fails."""
    cdef uint8_t[N_PAGES] wanted
    cdef uint32_t* codes
    cdef int64_t at = 0, used = 0
    cdef uint32_t code
    cdef bint missing = False
    memset(wanted, 0, N_PAGES)
    work.codes.used = 0
    if reserve(&work.codes, n, sizeof(uint32_t)) < 0:
        return -1
    codes = <uint32_t*>work.codes.data
    while at < n:
        code = next_char(text + at, n - at)
        codes[used] = code
        used += 1
        at += char_size(code)
        if not FILLED[code >> 8]:
            wanted[code >> 8] = missing = True
    work.codes.used = used
    if missing:
        with gil:
            try:
                fill_pages(wanted)
            except Exception:
                return -1
    return 0


cdef class Splitter:
    """Cuts text into pieces, one stage after the other, each within the pieces of the one before.

    `stages` is what llamacy.text.pattern.compile_pattern returned for each expression: arrays, in the order of Stage.
    """

    def __cinit__(self, stages):
        cdef int i
        cdef const int32_t[::1] ints
        cdef const uint32_t[::1] words
        cdef const uint8_t[::1] small
        self.kept = stages
        self.n_stages = len(stages)
        self.stages = <Stage*>calloc(max(self.n_stages, 1), sizeof(Stage))
        if self.stages == NULL:
            raise MemoryError("splitter")
        for i, (code, starts, first, ascii_table, masks, negated, range_starts, ranges, skip_set) in enumerate(stages):
            self.stages[i].classes = CLASSES
            ints = code
            self.stages[i].code = &ints[0]
            ints = starts
            self.stages[i].starts = &ints[0]
            words = first
            self.stages[i].first = &words[0]
            small = ascii_table
            self.stages[i].ascii = &small[0]
            words = masks
            self.stages[i].masks = &words[0]
            small = negated
            self.stages[i].negated = &small[0]
            ints = range_starts
            self.stages[i].range_starts = &ints[0]
            words = ranges
            self.stages[i].ranges = &words[0]
            self.stages[i].skip_set = skip_set

    def __dealloc__(self):
        free(self.stages)

    cdef int cut(self, const uint8_t* text, int64_t n, Work* work) noexcept nogil:
        """Leave the ends of the pieces of text[:n], in bytes, in work.ends; -1 when memory is short."""
        cdef const uint32_t* codes
        cdef int64_t i, k = 0
        cdef int32_t start, s, at = 0
        cdef int32_t* ends
        cdef Array swap
        work.ends.used = 0
        if decode(text, n, work) < 0 or reserve(&work.ends, 1, sizeof(int32_t)) < 0:
            return -1
        codes = <uint32_t*>work.codes.data
        (<int32_t*>work.ends.data)[0] = <int32_t>work.codes.used
        work.ends.used = n > 0
        for s in range(self.n_stages):
            swap = work.ends
            work.ends = work.old_ends
            work.old_ends = swap
            work.ends.used = 0
            start, ends = 0, <int32_t*>work.old_ends.data
            for i in range(work.old_ends.used):
                if split_piece(&self.stages[s], codes, start, ends[i], &work.stack, &work.ends) < 0:
                    return -1
                start = ends[i]
        ends = <int32_t*>work.ends.data
        for i in range(work.ends.used):
            while k < ends[i]:
                at += char_size(codes[k])
                k += 1
            ends[i] = at
        return 0

    def split(self, bytes text):
        """Return the pieces of `text` as a list of bytes."""
        cdef Work work
        cdef int64_t i
        memset(&work, 0, sizeof(Work))
        try:
            if self.cut(text, len(text), &work) < 0:
                raise MemoryError("splitting text")
            ends = [0] + [(<int32_t*>work.ends.data)[i] for i in range(work.ends.used)]
            return [text[start:end] for start, end in zip(ends, ends[1:])]
        finally:
            free_work(&work)
