"""Text to token ids: merging, compiled once for every CPU.

`Vocabulary` holds the tokens as raw bytes, finds special tokens in text and merges the pieces that a Splitter makes of the
rest: by the rank of the pair (byte-level BPE) or by the score of the joined text (SentencePiece). Many threads may use
one; encoding releases the GIL.

Offsets are int32: one call takes less than 2^31 - 1 bytes.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from .merging cimport (
    Merge, Pair, Slice, Strings, Symbol, Table, add_string, byte_token, from_byte_chars, from_spaced, insert, lookup,
    pop_merge, push_merge, same_string, size_table, space_inside,
)
from .splitter cimport Splitter, Work, free_work
from .splitting cimport Array, char_size, next_char, reserve

# Token kinds: the low bits say how a token takes part, STRIP_AFTER that white space following it is dropped, UNUSED that
# it is no text: it stands for none, and none becomes it.
NORMAL, CONTROL, USER_DEFINED, STRIP_AFTER, UNUSED = 0, 1, 2, 4, 8
cdef enum:
    K_CONTROL = 1
    K_USER = 2
    K_STRIP = 4
    K_UNUSED = 8


def check_strings(strings):
    """Return (buffer, starts, lengths) as uint8, int64, int64; ValueError for a string outside the buffer."""
    types = (np.uint8, np.int64, np.int64)
    buffer, starts, lengths = (np.ascontiguousarray(array, dtype=kind) for array, kind in zip(strings, types))
    if len(starts) != len(lengths) or (
        len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts > len(buffer) - lengths).any())
    ):
        raise ValueError("strings outside their buffer")
    return buffer if len(buffer) else np.zeros(1, dtype=np.uint8), starts, lengths


cdef size_t longest(const int64_t[::1] lengths) noexcept:
    """Return room for the longest of the strings, at least a byte."""
    cdef int64_t i, most = 1
    for i in range(lengths.shape[0]):
        most = max(most, lengths[i])
    return most


cdef class Vocabulary:
    """The tokens as bytes, and text to ids.

    tokens: (buffer uint8, starts int64, lengths int64), as StringArray holds them. kinds: uint8 per token, as above.
    merges: like tokens, or None. ranks: uint32 per token, used without merges: the least goes first (SentencePiece).
    byte_level: the tokens are in GPT-2's byte characters, else text with U+2581 for spaces and <0xNN> for bytes.
    whole_first: take a piece that is a token as it is: 0 never, 1 always, 2 when it begins with a newline.
    unknown: id for what has no other; -1 leaves it out, as byte_level always does.
    """

    cdef readonly int32_t n_vocab
    cdef object merge_strings   # until the merges are laid out
    cdef const uint32_t[::1] ranks
    cdef uint8_t[::1] kinds
    cdef bint byte_level, by_merges, split_at_space
    cdef int whole_first
    cdef int32_t unknown
    cdef int32_t[256] byte_ids
    cdef Strings strings        # the tokens, then strings that only merges lead to
    cdef Table words            # what text can be merged to
    cdef Table specials         # CONTROL and USER_DEFINED
    cdef const int32_t[::1] special_sizes
    cdef int32_t[257] special_rows
    cdef Array pairs            # Pair per merge, in order: a merge's place is its rank
    cdef Array first_pairs      # int32 per string: the first merge that leads to it, -1 for none
    cdef uint8_t* settled       # per token: 1 merging its own text gives it back, 2 does not, 0 not tried yet

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
        self.by_merges = merges is not None
        self.merge_strings = check_strings(merges) if self.by_merges else None
        self.settled = <uint8_t*>calloc(self.n_vocab + 1, 1)
        if (
            self.settled == NULL
            or size_table(&self.words, self.n_vocab + 256) < 0
            or reserve(&self.strings.raw, lengths.sum(), 1) < 0
            or reserve(&self.strings.spans, self.n_vocab + 256, sizeof(Slice)) < 0
        ):
            raise MemoryError("vocabulary")
        self.read_tokens(buffer, starts, lengths)
        self.set_kinds(self.kinds)

    def __dealloc__(self):
        free(self.strings.raw.data)
        free(self.strings.spans.data)
        free(self.words.places)
        free(self.specials.places)
        free(self.pairs.data)
        free(self.first_pairs.data)
        free(self.settled)

    cdef int64_t plain(self, const uint8_t* text, int64_t n, uint8_t* out) noexcept nogil:
        """Write the bytes that a normal token's text stands for; -1 where it is not of this vocabulary's writing."""
        return from_byte_chars(text, n, out) if self.byte_level else from_spaced(text, n, out)

    cdef int64_t raw_token(self, const uint8_t* text, int64_t n, int kind, uint8_t* out, bint* joinable) noexcept nogil:
        """Write the bytes that a token stands for and return how many; joinable: whether merging can lead to it."""
        cdef int64_t used = -1 if kind & K_CONTROL else self.plain(text, n, out)
        joinable[0] = used > 0
        if self.byte_level and kind & K_USER:
            joinable[0] = used == n and memcmp(text, out, n) == 0
            used = -1
        elif not self.byte_level and memchr(text, 32, n) != NULL:
            joinable[0] = False     # in text, spaces are U+2581 by the time that tokens are looked up
        if used < 0:
            memcpy(out, text, n)
        return n if used < 0 else used

    cdef int read_tokens(
        self, const uint8_t[::1] buffer, const int64_t[::1] starts, const int64_t[::1] lengths
    ) except -1:
        """Keep every token as raw bytes, and enter those that merging can lead to into `words`."""
        cdef int64_t i, used
        cdef int32_t which
        cdef int byte
        cdef bint joinable = False
        cdef uint8_t* scratch = <uint8_t*>malloc(longest(lengths))
        try:
            if scratch == NULL:
                raise MemoryError("vocabulary")
            memset(self.byte_ids, 0xFF, sizeof(self.byte_ids))
            self.split_at_space = not self.by_merges
            for i in range(self.n_vocab):
                byte = -1 if self.byte_level else byte_token(&buffer[0] + starts[i], lengths[i])
                if byte >= 0:
                    self.byte_ids[byte] = <int32_t>i
                    scratch[0], used, joinable = <uint8_t>byte, 1, False
                else:
                    used = self.raw_token(&buffer[0] + starts[i], lengths[i], self.kinds[i], scratch, &joinable)
                which = add_string(&self.strings, scratch, used)
                joinable = joinable and not self.kinds[i] & K_UNUSED
                if which < 0 or (joinable and insert(&self.strings, &self.words, which) < 0):
                    raise MemoryError("vocabulary")
                self.split_at_space = self.split_at_space and not (joinable and space_inside(scratch, used))
            for byte in range(256 if self.byte_level else 0):
                scratch[0] = <uint8_t>byte
                self.byte_ids[byte] = lookup(&self.strings, &self.words, scratch, 1)
        finally:
            free(scratch)
        return 0

    def set_kinds(self, kinds):
        """Take other kinds for the tokens than those they were built with; not while another thread encodes."""
        cdef int64_t i
        cdef Slice span
        if len(kinds) != self.n_vocab:
            raise ValueError(f"{len(kinds)} kinds for {self.n_vocab} tokens")
        self.kinds = np.array(kinds, dtype=np.uint8)
        free(self.specials.places)
        memset(&self.specials, 0, sizeof(Table))
        if size_table(&self.specials, 0) < 0:
            raise MemoryError("vocabulary")
        found = set()
        for i in range(self.n_vocab):
            span = (<Slice*>self.strings.spans.data)[i]
            if self.kinds[i] & (K_CONTROL | K_USER) and span.size:
                if insert(&self.strings, &self.specials, <int32_t>i) < 0:
                    raise MemoryError("vocabulary")
                found.add(((<uint8_t*>self.strings.raw.data)[span.start], -<int64_t>span.size))
        # For each first byte, the lengths that special tokens have, longest first.
        rows = sorted(found)
        self.special_sizes = np.array([-size for _, size in rows] + [0], dtype=np.int32)
        counts = np.bincount(np.array([first for first, _ in rows], dtype=np.int64), minlength=256)
        for i in range(256):
            self.special_rows[i + 1] = self.special_rows[i] + <int32_t>counts[i]

    cdef int32_t intern(self, const uint8_t* text, int64_t n, int32_t guess) except -1:
        """Return the number of a string, adding it where there is none; the token `guess` is tried first."""
        cdef int32_t which
        if 0 <= guess < self.n_vocab and self.kinds[guess] == 0 and same_string(&self.strings, guess, text, n):
            return guess
        which = lookup(&self.strings, &self.words, text, n)
        if which < 0:
            which = add_string(&self.strings, text, n)
            if which < 0 or insert(&self.strings, &self.words, which) < 0 or self.grow_first_pairs() < 0:
                raise MemoryError("merges")
        return which

    cdef int grow_first_pairs(self) noexcept nogil:
        """Give every string its place in first_pairs."""
        cdef int64_t more = self.strings.spans.used - self.first_pairs.used
        if more == 0:
            return 0
        if reserve(&self.first_pairs, more, sizeof(int32_t)) < 0:
            return -1
        memset(<int32_t*>self.first_pairs.data + self.first_pairs.used, 0xFF, more * sizeof(int32_t))
        self.first_pairs.used += more
        return 0

    cdef int read_merges(self) except -1:
        """Lay out for each string the merges that lead to it: where they cut it, and their rank.

        Neighbouring symbols are found by the text that they make together and the place of the cut, so neither side
        needs looking up. Backwards, so that of equal merges the first stands in front.
        """
        buffer, starts, lengths = self.merge_strings
        cdef const uint8_t[::1] text = buffer
        cdef const int64_t[::1] begin = starts
        cdef const int64_t[::1] length = lengths
        cdef int64_t n_merges = min(len(starts), 0x7FFFFFFF), i, left_size, right_size
        cdef int32_t result = self.n_vocab
        cdef const uint8_t* line
        cdef const uint8_t* space
        cdef Pair* pairs
        cdef uint8_t* scratch = <uint8_t*>malloc(longest(length))
        # Nothing here runs Python code, so that no other thread comes in between.
        try:
            if scratch == NULL or self.grow_first_pairs() < 0 or reserve(&self.pairs, n_merges, sizeof(Pair)) < 0:
                raise MemoryError("merges")
            pairs = <Pair*>self.pairs.data
            for i in range(n_merges - 1, -1, -1):
                # "left right": the first character may itself be a space.
                line = &text[begin[i]]
                space = <uint8_t*>memchr(line + 1, 32, length[i] - 1) if length[i] > 1 else NULL
                left_size = self.plain(line, space - line, scratch) if space != NULL else -1
                if left_size <= 0:
                    continue
                right_size = self.plain(space + 1, line + length[i] - space - 1, scratch + left_size)
                if right_size <= 0:
                    continue
                # Most vocabularies list the results in the order of the merges.
                result = self.intern(scratch, left_size + right_size, result - 1)
                pairs[i].left_size, pairs[i].next = <int32_t>left_size, (<int32_t*>self.first_pairs.data)[result]
                (<int32_t*>self.first_pairs.data)[result] = <int32_t>i
        finally:
            free(scratch)
        self.merge_strings = None
        return 0

    def find(self, bytes text):
        """Return the id of the token with these bytes, special tokens first; None if there is none but unused ones."""
        found = lookup(&self.strings, &self.specials, text, len(text))
        if found < 0:
            found = lookup(&self.strings, &self.words, text, len(text))
        return found if 0 <= found < self.n_vocab else None

    def token_bytes(self, int64_t token):
        """Return what the token stands for, as bytes; IndexError outside the vocabulary."""
        if not 0 <= token < self.n_vocab:
            raise IndexError(f"token {token} of a vocabulary of {self.n_vocab}")
        if self.kinds[token] & K_UNUSED:
            return b""
        cdef Slice span = (<Slice*>self.strings.spans.data)[token]
        cdef const uint8_t* text = <uint8_t*>self.strings.raw.data + span.start
        return text[:span.size]

    cdef int32_t word(self, const uint8_t* text, int64_t n) noexcept nogil:
        """Return the number of what text can be merged to, -1 for none. Control tokens do not come from merging."""
        cdef int32_t found = lookup(&self.strings, &self.words, text, n)
        return -1 if 0 <= found < self.n_vocab and self.kinds[found] & K_CONTROL else found

    cdef int queue(self, Work* work, const uint8_t* text, int32_t left, int32_t right) noexcept nogil:
        """Queue the merge of two neighbouring symbols, if the vocabulary has it; -1 when memory is short."""
        cdef Symbol* a = <Symbol*>work.symbols.data + left
        cdef Symbol* b = <Symbol*>work.symbols.data + right
        cdef Merge new
        cdef int64_t rank
        if left < 0 or right < 0:
            return 0
        new.size = a.size + b.size
        new.merged = self.word(text + a.start, new.size)
        if new.merged < 0:
            return 0
        if self.by_merges:
            rank = (<int32_t*>self.first_pairs.data)[new.merged]
            while rank >= 0 and (<Pair*>self.pairs.data)[rank].left_size != a.size:
                rank = (<Pair*>self.pairs.data)[rank].next
            if rank < 0:
                return 0
        else:
            rank = self.ranks[new.merged]
        new.key = <uint64_t>rank << 32 | <uint64_t>left
        return push_merge(&work.heap, new)

    cdef int merge(self, Work* work, const uint8_t* text, int32_t n) noexcept nogil:
        """Append the ids of one piece, n > 0 bytes; -1 when memory is short."""
        cdef int32_t whole = self.word(text, n), i, at, size
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
            symbols[i].id = self.word(text + at, size)
            at += size
            work.symbols.used += 1
        symbols[work.symbols.used - 1].next = -1
        for i in range(1, <int32_t>work.symbols.used):
            if self.queue(work, text, i - 1, i) < 0:
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
            if self.queue(work, text, symbols[i].prev, i) < 0 or self.queue(work, text, i, symbols[i].next) < 0:
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
        cdef int32_t i, used = 0
        if reserve(&work.out, max(n, 3), sizeof(int32_t)) < 0:
            return -1
        out = <int32_t*>work.out.data + work.out.used
        if 0 <= token < self.n_vocab:
            out[0] = token
            work.out.used += 1
            return 0
        if not self.byte_level and n == 1 and text[0] == 32:
            text, n = b"\xe2\x96\x81", 3
        for i in range(n):
            out[used] = self.byte_ids[text[i]]
            used += out[used] >= 0
        if used < n and not self.byte_level:
            out[0], used = self.unknown, self.unknown >= 0
        work.out.used += used
        return 0

    cdef int put_plain(self, Work* work, Splitter splitter, const uint8_t* text, int64_t n, bint prefix) noexcept nogil:
        """Append the ids of text without special tokens, in pieces; -1 when memory is short."""
        cdef int64_t i, at = 0, start
        if not self.byte_level:
            if reserve(&work.text, n + 1, 1) < 0:
                return -1
            (<uint8_t*>work.text.data)[0] = 32
            n = from_spaced(text, n, <uint8_t*>work.text.data + prefix) + prefix
            text = <uint8_t*>work.text.data
        if splitter is not None:
            if splitter.cut(text, n, work) < 0:
                return -1
            for i in range(work.ends.used):
                start, at = at, (<int32_t*>work.ends.data)[i]
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

    cdef int64_t next_special(
        self, const uint8_t* text, int64_t at, int64_t n, bint control, int32_t* token
    ) noexcept nogil:
        """Return where the next special token begins, the longest there; n if there is none. control: these too."""
        cdef int32_t row, found
        while at < n:
            for row in range(self.special_rows[text[at]], self.special_rows[text[at] + 1]):
                if self.special_sizes[row] <= n - at:
                    found = lookup(&self.strings, &self.specials, text + at, self.special_sizes[row])
                    if found >= 0 and (control or self.kinds[found] & K_USER):
                        token[0] = found
                        return at
            at += 1
        return n

    cdef int encode_all(
        self, Work* work, Splitter splitter, const uint8_t* text, int64_t n, bint control, bint prefix
    ) noexcept nogil:
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
            at = special + (<Slice*>self.strings.spans.data)[token].size
            while self.kinds[token] & K_STRIP and at < n and (text[at] == 32 or 9 <= text[at] < 14):
                at += 1
        return 0

    def encode(self, bytes text, Splitter splitter=None, bint control=True, bint prefix=False):
        """Return the ids of UTF-8 text as a list.

        control: control tokens written out in the text count as such, as user-defined ones always do.
        prefix: a space goes before text at the start or behind a special token (SentencePiece).
        """
        cdef Work work
        cdef const uint8_t* data = text
        cdef int64_t i, n = len(text)
        cdef int failed
        if n >= 0x7FFFFFF0:
            raise ValueError(f"{n} bytes of text at once, at most {0x7FFFFFF0}")
        if self.merge_strings is not None:
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
