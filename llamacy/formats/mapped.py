"""The bytes of a file, memory-mapped or read, and a cursor over them that never leaves them."""

import mmap
import os
import stat
import struct
import weakref

import numpy as np

from llamacy.errors import LlamacyError, printable, shown
from llamacy.system import give_back

# Beginnings of files that people pass by mistake, and what to tell them.
_STRANGERS = [
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page, not a model; download the file itself again"),
    (b"<!doctype", "a web page, not a model; download the file itself again"),
    (b"<html", "a web page, not a model; download the file itself again"),
    (b"PK\x03\x04", "a PyTorch or zip archive; convert it to GGUF first"),
    (b"\x80\x02", "a Python pickle; convert it to GGUF first"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
]


class FileChanged(LlamacyError):
    """A file is no longer what it was when it was opened, and more of it is needed."""


class MappedFile:
    """A regular file's bytes as one read-only uint8 array: `.bytes`, `.size`, `.path`.

    The system ends a process that touches a mapped page behind the end of a file that was cut off (SIGBUS). So whoever
    comes back to the bytes calls `fetch` before, which notices a file that was written to since.
    """

    def __init__(self, path, use_mmap=True):
        self.path = os.fspath(path)
        self.mapped = use_mmap
        self._gone = set()  # of a copy in memory: the (start, nbytes) that were given back
        self._check_regular()
        try:
            with open(self.path, "rb") as file:
                self._opened = _version(file.fileno())
                self.size = self._opened[0]
                if self.size == 0:
                    raise self.error("is empty", "download or copy it again")
                if use_mmap:
                    self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
                else:
                    self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                    self._read(file, 0, self.size)
                self.bytes = np.frombuffer(self._map, np.uint8)
                self.bytes.flags.writeable = False
                # Of this file, whatever its name comes to mean: one that is replaced by renaming lives on.
                self._descriptor = os.dup(file.fileno())
                self._close = weakref.finalize(self, os.close, self._descriptor)
                self._close.atexit = False
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}", "check its permissions") from error

    def _check_regular(self):
        try:
            mode = os.stat(self.path).st_mode
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LlamacyError(f"{self.path}: cannot be opened: {reason}; check the path") from error
        if stat.S_ISDIR(mode):
            whole = os.path.exists(os.path.join(self.path, "config.json"))
            raise self.error("is a folder", "make GGUF of it with bin/convert" if whole else "give the file inside it")
        if not stat.S_ISREG(mode):
            raise self.error("is not a regular file", "save it to a disk first")

    def error(self, what, advice):
        """Return (not raise) a LlamacyError that names this file."""
        return LlamacyError(printable(f"{self.path}: {what}; {advice}"))

    def stranger(self, wanted):
        """Return the error for a file that is none of `wanted`, saying what it seems to be."""
        head = self.bytes[:64].tobytes()
        for start, what in _STRANGERS:
            if head.startswith(start):
                return LlamacyError(f"{self.path}: this is {what}")
        if not head.strip(b"\0"):
            return self.error(f"wanted {wanted}, got a file that begins with zeros", "an unfinished download?")
        return self.error(f"wanted {wanted}, got a file that begins with {shown(head[:8])}", "check the path")

    def _read(self, file, start, nbytes):
        file.seek(start)
        with memoryview(self._map)[start : start + nbytes] as target:
            if file.readinto(target) < nbytes:
                raise FileChanged(f"{self.path}: became shorter while it was read; wait until it is complete")

    def release(self, start, nbytes, done=False):
        """Give the whole pages inside [start, start + nbytes) back to the system; they are read again when touched.

        Those of a copy in memory are given back only when `done`: views of them are lost then, `fetch` reads them anew.
        """
        if not (self.mapped or done):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and give_back(self._map, first, last - first) and not self.mapped:
            self._gone.add((start, nbytes))

    def fetch(self, start, nbytes):
        """Make sure that [start, start + nbytes) can be read, a microsecond where it can: of a copy in memory read it
        again if it was given back. FileChanged where the file was written to or cut off since it was opened.
        """
        if self.mapped:
            self._check_version()
        elif (start, nbytes) in self._gone:
            with open(self._descriptor, "rb", closefd=False) as file:
                self._read(file, start, nbytes)
            self._check_version()
            self._gone.remove((start, nbytes))

    def _check_version(self):
        now = _version(self._descriptor)
        if now != self._opened:
            raise FileChanged(
                f"{self.path}: was written to while in use: it had {self.size} bytes when it was opened, now it has "
                f"{now[0]}; start again once it is complete"
            )

    def close(self):
        """Let go of the file; arrays still in use keep the mapping alive until they are gone."""
        self.bytes = None
        self._map = None
        self._close()


def _version(descriptor):
    """Return what tells whether an open file was written to: its size and the time of the last change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class Cursor:
    """Reads little-endian numbers one after the other; a read beyond the end is an error, never a crash.

    `what` and `of` name what is read (`of` as it stands in the file) and are put together only for an error.
    """

    def __init__(self, source, position=0):
        self.source = source
        self.position = position

    @property
    def left(self):
        """Bytes between the cursor and the end of the file."""
        return self.source.size - self.position

    def take(self, nbytes, what, of=None):
        """Step over `nbytes` (a Python int of any size) and return where they start."""
        start = self.position
        if nbytes > self.source.size - start:
            what = what if of is None else f"{what} {shown(of)}"
            raise self.source.error(
                f"truncated or damaged: {what} wants {nbytes} bytes at {start}, the file ends at {self.source.size}",
                "copy or download it again",
            )
        self.position = start + nbytes
        return start

    def unpack(self, layout, what, of=None):
        """Return the tuple of numbers that struct `layout` (without byte order) describes."""
        layout = "<" + layout
        return struct.unpack_from(layout, self.source.bytes, self.take(struct.calcsize(layout), what, of))

    def u32(self, what, of=None):
        return self.unpack("I", what, of)[0]

    def raw(self, nbytes, what, of=None):
        """Return the next `nbytes` as bytes."""
        start = self.take(nbytes, what, of)
        return self.source.bytes[start : start + nbytes].tobytes()

    def name(self, length, limit, what):
        """Return a name of `length` bytes: UTF-8, not empty, no NUL, at most `limit` bytes."""
        if length > limit:
            raise self.source.error(f"damaged: {what} of {length} bytes, wanted at most {limit}", "download it again")
        raw = self.raw(length, what)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.source.error(f"damaged: {what} {shown(raw)} is not UTF-8", "download it again") from None
        if not name or "\0" in name:
            raise self.source.error(f"damaged: {what} {shown(raw)} is empty or holds a NUL", "download it again")
        return name
