"""Several files of a folder replaced at one moment: a reader, even after a crash, finds all old or all new.

A file system gives one name at a time to another file. So each name becomes a symbolic link that goes through one
other, `now`; turning that is the moment; then the names become plain files again. Any state between reads the same:

    .adapter_config.json.0123456789ab.tmp/old/    the files as they were: hard links
                                          new/    the new ones
                                          now     -> old, then -> new
    adapter_config.json                           -> .adapter_config.json.0123456789ab.tmp/now/adapter_config.json

A killed process leaves such links, which read as files; the next change makes them plain and removes the folder. Other
files are not touched. Where there are no symbolic links (FAT) the files are replaced one after the other.
"""

import contextlib
import os
import shutil
import stat

from llamacy.errors import LlamacyError
from llamacy.formats.atomic import FULL, TEMPORARY, cannot_write, mode_of, sync_folder, temporary_name
from llamacy.formats.locks import claimed

PATIENCE = 20.0  # seconds in which another process that changes the same folder should be done
LOCK = ".together.lock"
_PARTS = {"old", "new", "now", "next"}


@contextlib.contextmanager
def replaced_together(folder, names):
    """Give a function that opens one of `names` for writing; when the block ends well `folder` holds what was written.

    Of `names` those that were not written are gone then. A folder that is missing is made; a symbolic link to a file
    becomes a plain file. LlamacyError where the folder cannot be written or the disk is full: all is as it was.
    """
    real = os.path.realpath(os.fspath(folder))
    _make(real, folder)
    with claimed(folder, "wait until it is done", PATIENCE, os.path.join(real, LOCK)) as alone:
        change = _Change(real, names)
        try:
            change.begin()
            yield change.create
            change.make()
        except OSError as error:
            if error.errno in FULL:
                raise cannot_write(folder, error, "there is unchanged") from error
            raise LlamacyError(f"{folder}: cannot write: {error.strerror}; choose another folder") from error
        finally:
            change.end(alone)


def _make(real, folder):
    try:
        os.makedirs(real, exist_ok=True)
    except OSError as error:
        raise LlamacyError(f"{folder}: wanted a folder to write: {error.strerror}; choose another path") from error


class _Change:
    """One change of a folder; `wanted` is the side that its names shall have in the end."""

    def __init__(self, folder, names):
        self.folder, self.names, self.wanted = folder, names, "old"
        self.work = temporary_name(os.path.join(folder, names[0]))
        self.linked = []  # names that go through `now`

    def begin(self):
        os.mkdir(self.work)
        for side in ("old", "new"):
            os.mkdir(self._at(side))

    def _at(self, *parts):
        return os.path.join(self.work, *parts)

    @contextlib.contextmanager
    def create(self, name):
        """Give a binary file that becomes `name`."""
        place = os.path.join(self.folder, name)
        mode = mode_of(place, place)
        with open(self._at("new", name), "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())

    def make(self):
        """Bring the new files to their names."""
        self._keep()
        try:
            os.symlink("old", self._at("now"))
        except (OSError, NotImplementedError):
            self._one_by_one()
            return
        for part in ("old", "new", ""):
            sync_folder(self._at(part))
        for name in self.names:
            place = os.path.join(self.folder, name)
            # the link of a killed process may stand where neither side has a file
            if os.path.lexists(place) or os.path.exists(self._at("new", name)):
                self._link(os.path.join(os.path.basename(self.work), "now", name), place)
                self.linked.append(name)
        sync_folder(self.folder)
        self._link("new", self._at("now"))
        self.wanted = "new"
        sync_folder(self.work)

    def _keep(self):
        """Give the files as they are a second name."""
        for name in self.names:
            place = os.path.join(self.folder, name)
            if mode_of(place, place) is not None:
                _second_name(os.path.realpath(place), self._at("old", name))

    def _link(self, content, place):
        """Let `place` be a symbolic link, whatever it was."""
        os.symlink(content, self._at("next"))
        os.replace(self._at("next"), place)

    def _one_by_one(self):
        for name in self.names:
            place = os.path.join(self.folder, name)
            if os.path.exists(self._at("new", name)):
                os.replace(self._at("new", name), place)
            elif os.path.lexists(place):
                os.unlink(place)
        sync_folder(self.folder)

    def end(self, alone):
        """Make the names plain files of the wanted side and remove the rest; when `alone`, of killed processes too.

        Where that fails the links stay, which are as good for reading.
        """
        with contextlib.suppress(OSError):
            for name in self.linked:
                place = os.path.join(self.folder, name)
                if os.path.exists(self._at(self.wanted, name)):
                    _second_name(self._at(self.wanted, name), self._at("next"))
                    os.replace(self._at("next"), place)
                else:
                    os.unlink(place)
            sync_folder(self.folder)
            shutil.rmtree(self.work, ignore_errors=True)
            if alone:
                with os.scandir(self.folder) as entries:
                    left = [entry.path for entry in entries if TEMPORARY.fullmatch(entry.name) and _is_work(entry)]
                for path in left:
                    shutil.rmtree(path, ignore_errors=True)


def _is_work(entry):
    return entry.is_dir(follow_symlinks=False) and set(os.listdir(entry.path)) <= _PARTS


def _second_name(path, place):
    """Let the file at `path` be at `place` too, as a copy where the system has no hard links."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copy2(path, place)
        with open(place, "rb") as file:
            os.fsync(file.fileno())
