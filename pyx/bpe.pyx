"""Text to token ids: pre-tokenizing and merging, compiled once for every CPU.

`Splitter` cuts text into pieces with the regular expressions that llamacy/text/pattern.py compiled. `Vocabulary` holds the
tokens as raw bytes, finds special tokens in text and merges the pieces: by the rank of the pair (byte-level BPE) or by
the score of the joined text (SentencePiece). Both are read-only after construction and may be used from many threads;
encoding releases the GIL.

Offsets are int32: one call takes less than 2^31 - 1 bytes.
"""

import unicodedata

import numpy as np

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from .splitting cimport INVALID, N_PAGES, Array, Stage, char_size, next_char, reserve, split_piece

# Token kinds: the low bits say how a token takes part, STRIP_AFTER that white space following it is dropped.
NORMAL, CONTROL, USER_DEFINED, BYTE, STRIP_AFTER = 0, 1, 2, 4, 8
cdef enum:
    K_CONTROL = 1
    K_USER = 2
    K_BYTE = 4
    K_STRIP = 8

# Unicode classes as bits; L, N and so on are unions. Space is White_Space (not str.isspace, which adds U+001C..1F).
CLASS_BITS = {"Lu": 1, "Ll": 2, "Lt": 4, "Lm": 8, "Lo": 16, "M": 32, "Nd": 64, "Nl": 128, "No": 128, "P": 256, "S": 512}
SPACE_BIT = 1024
SPACES = frozenset([*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])

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


cdef struct Work:
    # Scratch of one call; nothing outlives it.
    Array codes         # uint32 code points
    Array ends          # int32 ends of pieces, in code points
    Array old_ends
    Array stack         # Retry
    Array symbols       # Symbol
    Array heap          # Merge
    Array text          # uint8 text with SentencePiece's spaces
    Array out           # int32 token ids


cdef void free_work(Work* work) noexcept nogil:
    free(work.codes.data)
    free(work.ends.data)
    free(work.old_ends.data)
    free(work.stack.data)
    free(work.symbols.data)
    free(work.heap.data)
    free(work.text.data)
    free(work.out.data)


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

    `stages` is what llamacy.text.pattern.compile_pattern returned for each expression: a tuple of arrays in the order of
    the fields of Stage.
    """

    cdef object kept    # the arrays that the stages point into
    cdef Stage* stages
    cdef int n_stages

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

    cdef int run(self, const uint32_t* text, int32_t n, Work* work) noexcept nogil:
        """Leave the ends of the pieces of text[:n], in code points, in work.ends; -1 when memory is short."""
        cdef int s
        cdef int64_t i
        cdef int32_t start
        cdef Array swap
        work.ends.used = 0
        if reserve(&work.ends, 1, sizeof(int32_t)) < 0:
            return -1
        (<int32_t*>work.ends.data)[0] = n
        work.ends.used = 1
        for s in range(self.n_stages):
            swap = work.ends
            work.ends = work.old_ends
            work.old_ends = swap
            work.ends.used = 0
            start = 0
            for i in range(work.old_ends.used):
                if split_piece(&self.stages[s], text, start, (<int32_t*>work.old_ends.data)[i], &work.stack, &work.ends) < 0:
                    return -1
                start = (<int32_t*>work.old_ends.data)[i]
        return 0

    def split(self, bytes text):
        """Return the pieces of `text` as a list of bytes."""
        cdef Work work
        cdef int64_t i, at = 0
        cdef int32_t k = 0
        memset(&work, 0, sizeof(Work))
        pieces = []
        try:
            if len(text) and (decode(text, len(text), &work) < 0 or self.run(<uint32_t*>work.codes.data, work.codes.used, &work) < 0):
                raise MemoryError("splitting text")
            for i in range(work.ends.used):
                start = at
                while k < (<int32_t*>work.ends.data)[i]:
                    at += char_size((<uint32_t*>work.codes.data)[k])
                    k += 1
                pieces.append(text[start:at])
        finally:
            free_work(&work)
        return pieces


# ---------------------------------------------------------------------------------------------------------------------
# Vocabulary

cdef uint64_t EMPTY_PAIR = <uint64_t>-1

cdef struct Table:
    # Open addressing over strings of the vocabulary: tag is the hash, id -1 an empty place.
    uint32_t* tags
    int32_t* ids
    uint32_t mask
    uint32_t used

cdef struct Symbol:
    int32_t id      # token, or string known only to merges; -1 neither
    int32_t prev
    int32_t next
    int32_t start   # bytes into the piece
    int32_t size    # bytes; 0 once merged into its left neighbour

cdef struct Merge:
    uint64_t key    # rank << 32 | left symbol: the least comes first
    int32_t size    # bytes of both symbols when this was found: still valid while that holds
    int32_t merged


cdef inline uint32_t hash_bytes(const uint8_t* text, int64_t n) noexcept nogil:
    cdef uint64_t h = <uint64_t>0x9E3779B97F4A7C15 ^ <uint64_t>n, word
    while n > 0:
        word = 0
        memcpy(&word, text, 8 if n >= 8 else n)
        h = (h ^ word) * <uint64_t>0xFF51AFD7ED558CCD
        h ^= h >> 32
        text += 8
        n -= 8
    return <uint32_t>h


cdef int grow_table(Table* table, uint32_t places) except -1:
    """Give the table a power of two of places, at least `places`, keeping what it holds."""
    cdef uint32_t size = 16, i, at
    while size < places:
        size *= 2
    cdef uint32_t* tags = <uint32_t*>malloc(size * sizeof(uint32_t))
    cdef int32_t* ids = <int32_t*>malloc(size * sizeof(int32_t))
    if tags == NULL or ids == NULL:
        free(tags)
        free(ids)
        raise MemoryError("token table")
    memset(ids, 0xFF, size * sizeof(int32_t))
    for i in range(table.mask + 1 if table.ids != NULL else 0):
        if table.ids[i] >= 0:
            at = table.tags[i] & (size - 1)
            while ids[at] >= 0:
                at = (at + 1) & (size - 1)
            ids[at], tags[at] = table.ids[i], table.tags[i]
    free(table.tags)
    free(table.ids)
    table.tags, table.ids, table.mask = tags, ids, size - 1
    return 0


# GPT-2 writes bytes as printable characters: these stand for themselves, the other 68 for U+0100 + their order.
cdef int16_t[0x144] BYTE_OF_CHAR


def byte_characters():
    """Return the 256 code points that stand for the bytes in GPT-2's vocabulary (its bytes_to_unicode)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return [byte if byte in plain else 0x100 + others.index(byte) for byte in range(256)]


memset(BYTE_OF_CHAR, 0xFF, sizeof(BYTE_OF_CHAR))
for _byte, _char in enumerate(byte_characters()):
    BYTE_OF_CHAR[_char] = _byte


cdef int64_t from_byte_characters(const uint8_t* text, int64_t n, uint8_t* out) noexcept nogil:
    """Write the bytes that the characters stand for; return how many, -1 where one stands for none."""
    cdef int64_t at = 0, used = 0
    cdef uint32_t code
    while at < n:
        code = next_char(text + at, n - at)
        if code >= 0x144 or BYTE_OF_CHAR[code] < 0:
            return -1
        out[used] = <uint8_t>BYTE_OF_CHAR[code]
        used += 1
        at += char_size(code)
    return used


cdef int64_t from_spaced(const uint8_t* text, int64_t n, uint8_t* out) noexcept nogil:
    """Write `text` with each U+2581 as a space; return how many bytes."""
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


cdef int hex_digit(uint8_t c) noexcept nogil:
    return c - 48 if 48 <= c < 58 else c - 55 if 65 <= c < 71 else c - 87 if 97 <= c < 103 else -1


cdef int byte_token(const uint8_t* text, int64_t n) noexcept nogil:
    """Return the byte that `<0xNN>` stands for, -1 for any other text."""
    if n != 6 or memcmp(text, b"<0x", 3) != 0 or text[5] != 62 or hex_digit(text[3]) < 0 or hex_digit(text[4]) < 0:
        return -1
    return hex_digit(text[3]) * 16 + hex_digit(text[4])


cdef bint has_byte(const uint8_t* text, int64_t n, uint8_t byte) noexcept nogil:
    return memchr(text, byte, n) != NULL


cdef bint space_inside(const uint8_t* text, int64_t n) noexcept nogil:
    """Say whether a space follows something that is not a space."""
    cdef int64_t i
    for i in range(1, n):
        if text[i] == 32 and text[i - 1] != 32:
            return True
    return False


cdef inline uint32_t pair_place(uint64_t pair, uint32_t mask) noexcept nogil:
    pair *= <uint64_t>0x9E3779B97F4A7C15
    return <uint32_t>(pair >> 32) & mask


cdef Merge pop_merge(Array* heap) noexcept nogil:
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


def check_strings(strings):
    """Return (buffer, starts, lengths) as contiguous uint8, int64, int64, every string inside the buffer."""
    buffer, starts, lengths = (np.ascontiguousarray(a, dtype=t) for a, t in zip(strings, (np.uint8, np.int64, np.int64)))
    if len(starts) != len(lengths) or (
        len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts > len(buffer) - lengths).any())
    ):
        raise ValueError("strings outside their buffer")
    return buffer if len(buffer) else np.zeros(1, dtype=np.uint8), starts, lengths


cdef class Vocabulary:
    """The tokens as bytes, and text to ids.

    tokens: (buffer uint8, starts int64, lengths int64), as StringArray holds them. kinds: uint8 per token, NORMAL ... as
    above. merges: like tokens, or None. ranks: uint32 per token, the least merges first (SentencePiece), used without
    merges. byte_level: GPT-2's byte characters, else text with U+2581 for spaces and <0xNN> byte tokens. whole_first: take
    a piece that is a token as it is, 0 never, 1 always, 2 when it begins with a newline. unknown: id for what cannot be
    written otherwise, -1: leave it out (byte_level always leaves it out).
    """

    cdef readonly int32_t n_vocab
    cdef object merge_strings
    cdef const uint32_t[::1] ranks
    cdef uint8_t[::1] kinds
    cdef bint byte_level, by_pairs, merges_ready, split_at_space
    cdef int whole_first
    cdef int32_t unknown
    cdef int32_t[256] byte_ids
    cdef Array raw          # uint8: the strings' bytes, one after the other
    cdef Array starts       # int64 into raw, one per string: the tokens, then strings that only merges know
    cdef Array sizes        # int32
    cdef Table words        # tokens that text can merge to
    cdef Table specials     # CONTROL and USER_DEFINED
    cdef int32_t[257] special_rows
    cdef const int32_t[::1] special_sizes
    cdef uint64_t* pairs    # left id << 32 | right id
    cdef int32_t* pair_ranks
    cdef uint32_t pair_mask
    cdef Array merged       # int32 id of each merge's result
    cdef uint8_t* settled   # per token: 1 merging its own text gives it back, 2 does not, 0 not tried yet

    def __cinit__(
        self, tokens, kinds, merges=None, ranks=None, *, bint byte_level, int whole_first=0, int32_t unknown=-1
    ):
        buffer, starts, lengths = check_strings(tokens)
        self.n_vocab = len(starts)
        self.kinds = np.array(kinds, dtype=np.uint8)
        self.ranks = np.ascontiguousarray(np.zeros(self.n_vocab) if ranks is None else ranks, dtype=np.uint32)
        if len(self.kinds) != self.n_vocab or len(self.ranks) != self.n_vocab:
            raise ValueError(f"{self.n_vocab} tokens but {len(self.kinds)} kinds and {len(self.ranks)} ranks")
        self.byte_level, self.whole_first, self.unknown = byte_level, whole_first, unknown
        self.by_pairs = merges is not None
        self.merge_strings = check_strings(merges) if self.by_pairs else None
        self.settled = <uint8_t*>calloc(max(self.n_vocab, 1), 1)
        if self.settled == NULL:
            raise MemoryError("vocabulary")
        grow_table(&self.words, 2 * self.n_vocab)
        grow_table(&self.specials, 16)
        self.read_tokens(buffer, starts, lengths)
        self.list_specials()

    def __dealloc__(self):
        free(self.raw.data)
        free(self.starts.data)
        free(self.sizes.data)
        free(self.words.tags)
        free(self.words.ids)
        free(self.specials.tags)
        free(self.specials.ids)
        free(self.pairs)
        free(self.pair_ranks)
        free(self.merged.data)
        free(self.settled)

    cdef int32_t lookup(self, const Table* table, const uint8_t* text, int64_t n) noexcept nogil:
        """Return the id of text[:n] in the table, -1 if it is not there."""
        cdef uint32_t tag = hash_bytes(text, n), at = tag & table.mask
        cdef int32_t found = table.ids[at]
        while found >= 0:
            if table.tags[at] == tag and (<int32_t*>self.sizes.data)[found] == n:
                if memcmp(<uint8_t*>self.raw.data + (<int64_t*>self.starts.data)[found], text, n) == 0:
                    return found
            at = (at + 1) & table.mask
            found = table.ids[at]
        return -1

    cdef int enter(self, Table* table, int32_t which) except -1:
        """Put string `which` into the table unless an equal one is there."""
        cdef const uint8_t* text = <uint8_t*>self.raw.data + (<int64_t*>self.starts.data)[which]
        cdef int32_t n = (<int32_t*>self.sizes.data)[which]
        cdef uint32_t tag, at
        if n == 0 or self.lookup(table, text, n) >= 0:
            return 0
        if 2 * (table.used + 1) > table.mask + 1:
            grow_table(table, 2 * (table.mask + 1))
        tag = hash_bytes(text, n)
        at = tag & table.mask
        while table.ids[at] >= 0:
            at = (at + 1) & table.mask
        table.ids[at], table.tags[at] = which, tag
        table.used += 1
        return 0

    cdef int32_t add_string(self, const uint8_t* text, int64_t n) except -1:
        """Keep a copy of text[:n] and return its number."""
        cdef int64_t which = self.starts.used
        if (
            which >= 0x7FFFFFFF
            or reserve(&self.raw, n, 1) < 0
            or reserve(&self.starts, 1, sizeof(int64_t)) < 0
            or reserve(&self.sizes, 1, sizeof(int32_t)) < 0
        ):
            raise MemoryError("vocabulary")
        memcpy(<uint8_t*>self.raw.data + self.raw.used, text, n)
        (<int64_t*>self.starts.data)[which] = self.raw.used
        (<int32_t*>self.sizes.data)[which] = <int32_t>n
        self.raw.used += n
        self.starts.used += 1
        self.sizes.used += 1
        return <int32_t>which

    cdef int64_t plain(self, const uint8_t* text, int64_t n, uint8_t* out) noexcept nogil:
        """Write the bytes that a normal token's text stands for; -1 where it is not of this vocabulary's writing."""
        return from_byte_characters(text, n, out) if self.byte_level else from_spaced(text, n, out)

    cdef int read_tokens(self, const uint8_t[::1] buffer, const int64_t[::1] starts, const int64_t[::1] lengths) except -1:
        """Turn every token into raw bytes and enter those that text can become into the tables."""
        cdef int64_t i, n, used
        cdef int32_t which
        cdef int byte
        cdef bint joinable
        cdef const uint8_t* text
        cdef uint8_t* scratch = <uint8_t*>malloc(1 + max(int(np.max(lengths, initial=0)), 1))
        if scratch == NULL:
            raise MemoryError("vocabulary")
        memset(self.byte_ids, 0xFF, sizeof(self.byte_ids))
        self.split_at_space = not self.by_pairs
        try:
            for i in range(self.n_vocab):
                text, n = &buffer[0] + starts[i], lengths[i]
                byte = -1 if self.byte_level else byte_token(text, n)
                if byte >= 0:
                    self.kinds[i] |= K_BYTE
                    scratch[0] = <uint8_t>byte
                    self.add_string(scratch, 1)
                    self.byte_ids[byte] = i
                    continue
                used = -1 if self.kinds[i] & K_CONTROL else self.plain(text, n, scratch)
                joinable = used >= 0
                if joinable and self.kinds[i] & K_USER:
                    joinable = used == n and memcmp(text, scratch, n) == 0 if self.byte_level else True
                    used = -1 if self.byte_level else used
                if not self.byte_level and joinable and has_byte(text, n, 32):
                    joinable = False    # in text, spaces are U+2581 by the time that tokens are looked up
                which = self.add_string(text, n) if used < 0 else self.add_string(scratch, used)
                if self.kinds[i] & (K_CONTROL | K_USER):
                    self.enter(&self.specials, which)
                if joinable:
                    self.enter(&self.words, which)
                    if self.split_at_space and space_inside(scratch, used):
                        self.split_at_space = False
            if self.byte_level:
                for byte in range(256):
                    scratch[0] = <uint8_t>byte
                    self.byte_ids[byte] = self.lookup(&self.words, scratch, 1)
        finally:
            free(scratch)
        return 0

    cdef int list_specials(self) except -1:
        """For each first byte, list the lengths that special tokens have, longest first."""
        cdef int64_t i
        cdef int32_t size
        found = set()
        for i in range(self.n_vocab):
            size = (<int32_t*>self.sizes.data)[i]
            if self.kinds[i] & (K_CONTROL | K_USER) and size > 0 and not self.kinds[i] & K_BYTE:
                found.add(((<uint8_t*>self.raw.data)[(<int64_t*>self.starts.data)[i]], -size))
        rows = sorted(found)
        self.special_sizes = np.array([-size for _, size in rows] + [0], dtype=np.int32)
        counts = np.bincount([first for first, _ in rows], minlength=256) if rows else np.zeros(256, dtype=np.int64)
        for i in range(256):
            self.special_rows[i + 1] = self.special_rows[i] + counts[i]
        return 0

    cdef int32_t intern(self, const uint8_t* text, int64_t n) except -1:
        """Return the number of a string, adding it where no token has that text."""
        cdef int32_t which = self.lookup(&self.words, text, n)
        if which < 0:
            which = self.add_string(text, n)
            self.enter(&self.words, which)
        return which

    cdef int read_merges(self) except -1:
        """Lay out the table of pairs: rank and result of each merge, the first of equal ones counting."""
        buffer, starts, lengths = self.merge_strings
        cdef const uint8_t[::1] text = buffer
        cdef const int64_t[::1] begin = starts
        cdef const int64_t[::1] length = lengths
        cdef int64_t n_merges = len(starts), i, space, left_size, right_size
        cdef int32_t left, right
        cdef uint32_t size = 16, at
        cdef uint64_t pair
        cdef uint8_t* scratch = <uint8_t*>malloc(1 + max(int(np.max(lengths, initial=0)), 1))
        while size < 2 * n_merges:
            size *= 2
        self.pairs = <uint64_t*>malloc(size * sizeof(uint64_t))
        self.pair_ranks = <int32_t*>malloc(size * sizeof(int32_t))
        try:
            if (
                scratch == NULL
                or self.pairs == NULL
                or self.pair_ranks == NULL
                or reserve(&self.merged, n_merges, sizeof(int32_t)) < 0
            ):
                raise MemoryError("merge table")
            memset(self.pairs, 0xFF, size * sizeof(uint64_t))
            self.pair_mask = size - 1
            for i in range(n_merges):
                space = 1
                while space < length[i] and text[begin[i] + space] != 32:
                    space += 1
                if space >= length[i]:
                    continue
                left_size = self.plain(&text[begin[i]], space, scratch)
                right_size = self.plain(&text[begin[i] + space + 1], length[i] - space - 1, scratch + max(left_size, 0))
                if left_size <= 0 or right_size <= 0:
                    continue
                left, right = self.intern(scratch, left_size), self.intern(scratch + left_size, right_size)
                (<int32_t*>self.merged.data)[i] = self.intern(scratch, left_size + right_size)
                pair = <uint64_t>left << 32 | <uint64_t>right
                at = pair_place(pair, self.pair_mask)
                while self.pairs[at] != EMPTY_PAIR and self.pairs[at] != pair:
                    at = (at + 1) & self.pair_mask
                if self.pairs[at] == EMPTY_PAIR:
                    self.pairs[at], self.pair_ranks[at] = pair, <int32_t>i
        finally:
            free(scratch)
        self.merges_ready, self.merge_strings = True, None
        return 0

    def find(self, bytes text):
        """Return the id of the token with these bytes, special tokens first; None if there is none."""
        found = self.lookup(&self.specials, text, len(text))
        if found < 0:
            found = self.lookup(&self.words, text, len(text))
        return found if 0 <= found < self.n_vocab else None

    def token_bytes(self, int64_t token):
        """Return what the token stands for, as bytes; IndexError outside the vocabulary."""
        if not 0 <= token < self.n_vocab:
            raise IndexError(f"token {token} of a vocabulary of {self.n_vocab}")
        cdef const uint8_t* text = <uint8_t*>self.raw.data + (<int64_t*>self.starts.data)[token]
        return text[:(<int32_t*>self.sizes.data)[token]]

    cdef int push_merge(self, Work* work, const uint8_t* text, int32_t left, int32_t right) noexcept nogil:
        """Queue the merge of two neighbouring symbols, if the vocabulary has it; -1 when memory is short."""
        cdef Symbol* a
        cdef Symbol* b
        cdef Merge* heap
        cdef Merge new
        cdef int64_t at, parent
        cdef uint64_t pair
        cdef uint32_t place, rank
        if left < 0 or right < 0:
            return 0
        a, b = <Symbol*>work.symbols.data + left, <Symbol*>work.symbols.data + right
        new.size = a.size + b.size
        if self.by_pairs:
            if a.id < 0 or b.id < 0:
                return 0
            pair = <uint64_t>a.id << 32 | <uint64_t>b.id
            place = pair_place(pair, self.pair_mask)
            while self.pairs[place] != pair:
                if self.pairs[place] == EMPTY_PAIR:
                    return 0
                place = (place + 1) & self.pair_mask
            rank = self.pair_ranks[place]
            new.merged = (<int32_t*>self.merged.data)[rank]
        else:
            new.merged = self.lookup(&self.words, text + a.start, new.size)
            if new.merged < 0:
                return 0
            rank = self.ranks[new.merged]
        new.key = <uint64_t>rank << 32 | <uint64_t>left
        if reserve(&work.heap, 1, sizeof(Merge)) < 0:
            return -1
        heap, at = <Merge*>work.heap.data, work.heap.used
        work.heap.used += 1
        while at > 0:
            parent = (at - 1) // 2
            if heap[parent].key <= new.key:
                break
            heap[at] = heap[parent]
            at = parent
        heap[at] = new
        return 0

    cdef int merge(self, Work* work, const uint8_t* text, int32_t n) noexcept nogil:
        """Append the ids of one piece, n > 0 bytes; -1 when memory is short."""
        cdef int32_t whole = self.lookup(&self.words, text, n), i, at, size
        cdef int64_t before = work.out.used
        cdef Symbol* symbols
        cdef Merge best
        if 0 <= whole < self.n_vocab and (
            self.settled[whole] == 1 or self.whole_first == 1 or (self.whole_first == 2 and text[0] == 10)
        ):
            return self.put(work, whole, text, n)
        if reserve(&work.symbols, n, sizeof(Symbol)) < 0:
            return -1
        symbols, work.symbols.used, work.heap.used, at = <Symbol*>work.symbols.data, 0, 0, 0
        while at < n:
            i = <int32_t>work.symbols.used
            size = 1 if self.byte_level else char_size(next_char(text + at, n - at))
            symbols[i].start, symbols[i].size, symbols[i].prev, symbols[i].next = at, size, i - 1, i + 1
            symbols[i].id = self.lookup(&self.words, text + at, size)
            at += size
            work.symbols.used += 1
        symbols[work.symbols.used - 1].next = -1
        for i in range(1, <int32_t>work.symbols.used):
            if self.push_merge(work, text, i - 1, i) < 0:
                return -1
        while work.heap.used:
            best = pop_merge(&work.heap)
            i = <int32_t><uint32_t>best.key
            at = symbols[i].next
            if symbols[i].size == 0 or at < 0 or symbols[i].size + symbols[at].size != best.size:
                continue    # one of the two has been merged otherwise since
            symbols[i].size, symbols[i].id, symbols[i].next = best.size, best.merged, symbols[at].next
            symbols[at].size = 0
            if symbols[i].next >= 0:
                symbols[symbols[i].next].prev = i
            if self.push_merge(work, text, symbols[i].prev, i) < 0 or self.push_merge(work, text, i, symbols[i].next) < 0:
                return -1
        i = 0
        while i >= 0:
            if self.put(work, symbols[i].id, text + symbols[i].start, symbols[i].size) < 0:
                return -1
            i = symbols[i].next
        if 0 <= whole < self.n_vocab:
            at = work.out.used == before + 1 and (<int32_t*>work.out.data)[before] == whole
            self.settled[whole] = 1 if at else 2
        return 0

    cdef int put(self, Work* work, int32_t token, const uint8_t* text, int32_t n) noexcept nogil:
        """Append a token, or the byte tokens of its text where it is none; -1 when memory is short."""
        cdef int32_t* out
        cdef int32_t i, byte_id, size = n
        cdef const uint8_t* space = b"\xe2\x96\x81"
        if reserve(&work.out, max(n, 3), sizeof(int32_t)) < 0:
            return -1
        out = <int32_t*>work.out.data
        if 0 <= token < self.n_vocab:
            out[work.out.used] = token
            work.out.used += 1
            return 0
        if not self.byte_level and n == 1 and text[0] == 32:
            text, size = space, 3
        for i in range(size):
            byte_id = self.byte_ids[text[i]]
            if byte_id < 0 and not self.byte_level:
                byte_id = self.unknown
            if byte_id >= 0:
                out[work.out.used] = byte_id
                work.out.used += 1
        return 0

    cdef int put_plain(self, Work* work, Splitter splitter, const uint8_t* text, int64_t n, bint prefix) noexcept nogil:
        """Append the ids of text without special tokens, in pieces; -1 when memory is short."""
        cdef int64_t i, at = 0, start
        cdef int32_t k = 0
        cdef uint32_t* codes
        if not self.byte_level:
            if reserve(&work.text, n + 1, 1) < 0:
                return -1
            (<uint8_t*>work.text.data)[0] = 32
            n = from_spaced(text, n, <uint8_t*>work.text.data + prefix) + prefix
            text = <uint8_t*>work.text.data
        if splitter is not None:
            if decode(text, n, work) < 0 or splitter.run(<uint32_t*>work.codes.data, <int32_t>work.codes.used, work) < 0:
                return -1
            codes = <uint32_t*>work.codes.data
            for i in range(work.ends.used):
                start = at
                while k < (<int32_t*>work.ends.data)[i]:
                    at += char_size(codes[k])
                    k += 1
                if self.merge(work, text + start, <int32_t>(at - start)) < 0:
                    return -1
            return 0
        while at < n:
            start = at
            at += 1
            while at < n and not (self.split_at_space and text[at] == 32 and text[at - 1] != 32):
                at += 1
            if self.merge(work, text + start, <int32_t>(at - start)) < 0:
                return -1
        return 0

    cdef int64_t next_special(self, const uint8_t* text, int64_t at, int64_t n, bint control, int32_t* token) noexcept nogil:
        """Return where the next special token begins, the longest there, n if none; control: also those of that kind."""
        cdef int32_t row, found
        while at < n:
            for row in range(self.special_rows[text[at]], self.special_rows[text[at] + 1]):
                if self.special_sizes[row] <= n - at:
                    found = self.lookup(&self.specials, text + at, self.special_sizes[row])
                    if found >= 0 and (control or self.kinds[found] & K_USER):
                        token[0] = found
                        return at
            at += 1
        return n

    cdef int encode_all(self, Work* work, Splitter splitter, const uint8_t* text, int64_t n, bint control, bint prefix) noexcept nogil:
        cdef int64_t at = 0, special
        cdef int32_t token = -1
        cdef bint after_special = True
        while at < n:
            special = self.next_special(text, at, n, control, &token)
            if special > at:
                if self.put_plain(work, splitter, text + at, special - at, prefix and after_special) < 0:
                    return -1
                after_special = False
            if special == n:
                break
            if self.put(work, token, text, 0) < 0:
                return -1
            after_special = True
            at = special + (<int32_t*>self.sizes.data)[token]
            while self.kinds[token] & K_STRIP and at < n and (text[at] == 32 or 9 <= text[at] < 14):
                at += 1
        return 0

    def encode(self, bytes text, Splitter splitter=None, bint control=True, bint prefix=False):
        """Return the ids of UTF-8 text. control: control tokens written out in the text count as such; user-defined ones
        always do. prefix: a space goes before text at the start or behind a special token (SentencePiece)."""
        cdef Work work
        cdef int64_t i, n = len(text)
        cdef const uint8_t* data = text
        cdef int failed
        if n >= 0x7FFFFFF0:
            raise ValueError(f"{n} bytes of text at once, at most {0x7FFFFFF0}")
        if self.by_pairs and not self.merges_ready:
            self.read_merges()
        memset(&work, 0, sizeof(Work))
        try:
            with nogil:
                failed = self.encode_all(&work, splitter, data, n, control, prefix)
            if failed:
                raise MemoryError(f"tokenizing {n} bytes")
            return [(<int32_t*>work.out.data)[i] for i in range(work.out.used)]
        finally:
            free_work(&work)
