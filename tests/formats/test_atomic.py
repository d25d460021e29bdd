"""atomic_write: the new file whole, or the old one as it was, and nothing left lying about."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

import llamacy
from llamacy.errors import LlamacyError
from llamacy.formats import locks
from llamacy.formats.atomic import atomic_write, sweep


def test_replaces_when_the_block_ends(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("raised", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOENT, "another file")])
def test_a_failing_block_leaves_the_old_file(tmp_path, raised):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(type(raised)), atomic_write(path) as file:
        file.write(b"half")
        raise raised
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize(("limit", "size"), [(65536, 409600), (0, 10)], ids=["on the way", "at the end"])
def test_a_full_disk(tmp_path, existed, limit, size):
    """In a process of its own, whose files may not grow beyond `limit`: the kernel fails the write as on a full disk.

    A few bytes are still in Python's buffer when the block ends.
    """
    path = tmp_path / "f"
    if existed:
        path.write_bytes(b"old")
    code = textwrap.dedent(
        f"""
        import resource
        from llamacy.errors import LlamacyError
        from llamacy.formats.atomic import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            with atomic_write({str(path)!r}) as file:
                for _ in range({size} // 10):
                    file.write(bytes(10))
        except LlamacyError as error:
            print(error)
        """
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert answer.stderr == ""
    assert answer.stdout.count("\n") == 1
    assert "cannot write: File too large" in answer.stdout and "free some space" in answer.stdout
    assert ("is unchanged" if existed else "was not written") in answer.stdout
    assert os.listdir(tmp_path) == (["f"] if existed else [])
    if existed:
        assert path.read_bytes() == b"old"


def _environment():
    return os.environ | {"PYTHONPATH": str(Path(llamacy.__file__).parents[1])}


def test_a_disk_that_fills_at_the_sync(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LlamacyError, match="No space left"), atomic_write(tmp_path / "f") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "new") as file:
            file.write(b"x")
        for name, mode in (("kept", 0o600), ("open", 0o664)):
            (tmp_path / name).write_bytes(b"old")
            os.chmod(tmp_path / name, mode)
            with atomic_write(tmp_path / name) as file:
                file.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o644
    assert stat.S_IMODE(os.stat(tmp_path / "kept").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "open").st_mode) == 0o664


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    os.symlink("real", tmp_path / "link")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert os.path.islink(tmp_path / "link")
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_stays_a_device():
    with atomic_write("/dev/null") as file:
        file.write(b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["n" * 250, "鱼" * 83])
def test_a_long_name(tmp_path, name):
    path = tmp_path / name
    with atomic_write(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


USERS = [
    "notes.tmp",
    ".f.tmp",
    ".f.0123456789ab.tmp~",
    "f.0123456789ab.tmp",
    ".f.0123456789AB.tmp",
    ".f.0123456789a.tmp",
]


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else(tmp_path):
    """A process killed in the middle of a write, one that still writes, and files of the user's with such names."""
    for name in USERS:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".f.0123456789ab.tmp").mkdir()
    os.symlink("notes.tmp", tmp_path / ".g.0123456789ab.tmp")
    code = textwrap.dedent(
        f"""
        import sys, time
        from llamacy.formats.atomic import atomic_write
        with atomic_write({str(tmp_path)!r} + "/" + sys.argv[1]) as file:
            file.write(b"half")
            file.flush()
            print("half", flush=True)
            time.sleep(600)
        """
    )
    kept = [*USERS, ".f.0123456789ab.tmp", ".g.0123456789ab.tmp"]
    children = []
    try:
        for name in ("dead.gguf", "alive.gguf"):
            command = [sys.executable, "-c", code, name]
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()))
            assert children[-1].stdout.readline() == "half\n"
        children[0].kill()
        children[0].wait()
        left = set(os.listdir(tmp_path)) - set(kept)
        assert sorted(name.split(".")[1] for name in left) == ["alive", "dead"]
        with atomic_write(tmp_path / "f") as file:
            file.write(b"x")
        (alive,) = set(os.listdir(tmp_path)) - set(kept) - {"f"}
        assert alive.startswith(".alive.gguf.") and (tmp_path / alive).read_bytes() == b"half"
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
    with atomic_write(tmp_path / "f") as file:
        file.write(b"y")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "f"])
    assert all((tmp_path / name).read_bytes() == b"mine" for name in USERS)


def test_a_sweep_that_comes_before_the_lock_only_costs_a_try(tmp_path, monkeypatch):
    """Another process removes the temporary file between its making and its lock."""
    removed, flock = [], locks.fcntl.flock

    def late(descriptor, how):
        if not removed:
            (name,) = os.listdir(tmp_path)
            removed.append(os.unlink(tmp_path / name))
        return flock(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with atomic_write(tmp_path / "f") as file:
        file.write(b"x")
    assert removed == [None] and (tmp_path / "f").read_bytes() == b"x" and os.listdir(tmp_path) == ["f"]


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    (tmp_path / ".f.0123456789ab.tmp").write_bytes(b"whose?")
    monkeypatch.setattr(locks, "fcntl", None)
    with atomic_write(tmp_path / "f") as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == [".f.0123456789ab.tmp", "f"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cases = {
        tmp_path: "is a folder",
        tmp_path / "no" / "f": "does not exist",
        tmp_path / "file" / "f": "Not a directory",
    }
    for path, word in cases.items():
        with pytest.raises(LlamacyError, match=word), atomic_write(path):
            pytest.fail("the block must not run")


@contextmanager
def nobody():
    """Within: not root, who may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission():
    # not tmp_path: nobody could not even look into it
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        with nobody():
            assert os.listdir(folder) == []
            with pytest.raises(LlamacyError, match="Permission denied"), atomic_write(os.path.join(folder, "f")):
                pytest.fail("the block must not run")
        os.chmod(folder, 0o755)


def test_a_sweep_just_before_the_rename_leaves_the_file(tmp_path, monkeypatch):
    """It is closed by then, and still its writer's."""
    replace = os.replace

    def late(old, new):
        sweep(tmp_path)
        replace(old, new)

    monkeypatch.setattr(os, "replace", late)
    with atomic_write(tmp_path / "f") as file:
        file.write(b"x")
    assert (tmp_path / "f").read_bytes() == b"x"
