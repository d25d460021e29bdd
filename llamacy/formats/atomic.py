"""Files appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat

from llamacy.errors import LlamacyError

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


@contextlib.contextmanager
def atomic_write(path):
    """Give a binary file that replaces `path` when the block ends well; until then the old file stays as it is.

    A temporary file in the same folder is written, synced and renamed; any failure removes it. A symbolic link is
    followed, permissions of the old file are kept, and a device or pipe (/dev/null) is written directly.
    Raises LlamacyError when the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    target = os.path.realpath(os.fspath(path))
    mode = _mode_of(target, path)
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            yield file
        return
    temporary, descriptor = _create(target, path, 0o666 if mode is None else stat.S_IMODE(mode))
    try:
        file = os.fdopen(descriptor, "wb")
        try:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(descriptor)
        finally:
            # After a failed write closing flushes again and fails again: the first error is the one to tell.
            with contextlib.suppress(OSError):
                file.close()
        os.replace(temporary, target)
        _sync_folder(os.path.dirname(target))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _FULL:
            kept = "is unchanged" if mode is not None else "was not written"
            raise LlamacyError(
                f"{path}: cannot write: {error.strerror}; the file {kept}; free some space or choose another folder"
            ) from error
        raise


def _mode_of(target, path):
    """Return the mode bits of what stands at `target`, None for nothing."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LlamacyError(f"{path}: cannot write: {error.strerror}; choose another path") from error
    if stat.S_ISDIR(mode):
        raise LlamacyError(f"{path}: is a folder; wanted the path of a file to write")
    return mode


def _create(target, path, mode):
    """Create a new file beside `target`; return its path and descriptor."""
    folder, name = os.path.split(target)
    # The name is cut so that a name at the file system's limit still leaves room for the suffix.
    temporary = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
    except FileNotFoundError as error:
        raise LlamacyError(f"{path}: cannot write: the folder {folder} does not exist; create it first") from error
    except OSError as error:
        raise LlamacyError(f"{path}: cannot write: {error.strerror} in {folder}; choose another folder") from error


def _sync_folder(folder):
    """Make the rename itself durable, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
