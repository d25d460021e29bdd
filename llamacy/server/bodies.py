"""Reading a request's body: its length or its chunks, compressed or not, and how much memory all bodies may take."""

import sys
import threading
import zlib

from llamacy.server.errors import ClientGone, HttpError

MAX_BODY = 16 << 20
MAX_BODIES = 4 * MAX_BODY  # of all requests that are being read
SMALL_BODY = 1 << 16  # so much of each is not counted
BODY_STEP = 1 << 16
# Content-Encoding -> zlib's window bits; 47: gzip or zlib, whichever it is
ENCODINGS = {"gzip": 47, "x-gzip": 47, "deflate": 47}


class BodyMemory:
    """Bytes that requests' bodies take in memory, at most `most`."""

    def __init__(self, most=MAX_BODIES):
        self._most, self._used, self._lock = most, 0, threading.Lock()

    def take(self, n):
        """Count n bytes more; HttpError 503 where there is no room."""
        with self._lock:
            if self._used + n > self._most:
                raise HttpError(
                    503, f"bodies of {self._used} bytes are being read already; try again later", {"Retry-After": "1"}
                )
            self._used += n

    def give(self, n):
        """Count n bytes less."""
        with self._lock:
            self._used -= n


class Body:
    """One request's body, read from `file`; `taken` bytes of it are counted until free()."""

    def __init__(self, headers, file, max_body, memory):
        self._headers, self._file, self._max, self._memory = headers, file, max_body, memory
        self._size = self._counted = 0

    def free(self):
        """Say that the bytes are not needed any more."""
        self._memory.give(self._counted)
        self._counted = 0

    def length(self):
        """Return the length that the headers announce, None for chunks; HttpError when it is wrong or too long."""
        lengths = set(self._headers.get_all("Content-Length", []))
        encoding = self._headers.get("Transfer-Encoding")
        if encoding is not None:
            if encoding.strip().lower() != "chunked" or lengths:
                raise HttpError(400, "Transfer-Encoding: wanted chunked, and no Content-Length beside it")
            return None
        if not lengths:
            return 0
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise HttpError(400, f"Content-Length: wanted one whole number, got {length!r:.40}")
        return self._checked(int(length) if len(length) < 20 else sys.maxsize)

    def read(self):
        """Return the body's bytes, decompressed; HttpError when it is not what it says, or too long."""
        coding = (self._headers.get("Content-Encoding") or "identity").strip().lower()
        if coding != "identity" and coding not in ENCODINGS:
            raise HttpError(415, f"Content-Encoding: wanted gzip, deflate or none, got {coding[:40]!r}")
        length = self.length()
        data = self._chunks() if length is None else self._exactly(length)
        return data if coding == "identity" or not data else self._decompressed(data, coding)

    def _checked(self, length):
        if length > self._max:
            raise HttpError(413, f"the body is over the limit of {self._max} bytes")
        return length

    def _count(self, n):
        before, self._size = self._size, self._size + n
        more = max(self._size - SMALL_BODY, 0) - max(before - SMALL_BODY, 0)
        self._memory.take(more)
        self._counted += more

    def _exactly(self, length):
        # In steps: memory is used for what arrives, not for what was announced.
        parts, left = [], length
        while left:
            part = self._file.read(min(left, BODY_STEP))
            if not part:
                raise ClientGone
            self._count(len(part))
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _chunks(self):
        parts, total = [], 0
        while True:
            line = self._file.readline(1026)
            digits = line.split(b";")[0].strip()
            if (
                not line.endswith(b"\n")
                or not digits
                or len(digits) > 8
                or set(digits) - set(b"0123456789abcdefABCDEF")
            ):
                raise HttpError(400, "the chunked body has a wrong chunk length")
            size = int(digits, 16)
            total = self._checked(total + size)
            if not size:
                break
            parts.append(self._exactly(size))
            if self._file.readline(3).strip():
                raise HttpError(400, "the chunked body has a wrong chunk end")
        for _ in range(100):
            if not self._file.readline(65537).strip():
                return b"".join(parts)
        raise HttpError(431, "the chunked body has too many trailers")

    def _decompressed(self, data, coding):
        parts, total = [], 0
        for bits in (ENCODINGS[coding], -15):  # some clients' deflate has no header
            decoder = zlib.decompressobj(bits)
            try:
                while not decoder.eof and data:
                    part = decoder.decompress(data, BODY_STEP)
                    data = decoder.unconsumed_tail
                    total = self._checked(total + len(part))
                    self._count(len(part))
                    parts.append(part)
                    if not part and not data:
                        break
            except zlib.error:
                if coding == "deflate" and bits > 0 and not parts:
                    continue
                break
            if decoder.eof:
                return b"".join(parts)
            break
        raise HttpError(400, f"Content-Encoding: the body is not whole {coding}")
