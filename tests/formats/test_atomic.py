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
from llamacy.formats.atomic import atomic_write


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
def test_a_full_disk(tmp_path, existed):
    """In a process of its own, whose files may not grow beyond 64 KB: the kernel fails the write as on a full disk."""
    path = tmp_path / "f"
    if existed:
        path.write_bytes(b"old")
    code = textwrap.dedent(
        f"""
        import resource
        from llamacy.errors import LlamacyError
        from llamacy.formats.atomic import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            with atomic_write({str(path)!r}) as file:
                for _ in range(100):
                    file.write(bytes(4096))
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
        (tmp_path / "kept").write_bytes(b"old")
        os.chmod(tmp_path / "kept", 0o600)
        with atomic_write(tmp_path / "kept") as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o644
    assert stat.S_IMODE(os.stat(tmp_path / "kept").st_mode) == 0o600


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


def test_a_long_name(tmp_path):
    path = tmp_path / ("n" * 250)
    with atomic_write(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


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
