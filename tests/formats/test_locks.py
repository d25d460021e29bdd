"""Claims on files to be written: one owner at a time, gone with it, and nothing of others is touched."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llamacy
from llamacy.errors import LlamacyError
from llamacy.formats import locks
from llamacy.formats.locks import claimed


def test_a_second_owner_is_told_who_has_it(tmp_path):
    with claimed(tmp_path / "a.bin", "choose another") as alone:
        assert alone and os.listdir(tmp_path) == [".a.bin.lock"]
        told = rf"a.bin: is in use: .* \({os.getpid()}\) writes there; choose another$"
        again = tmp_path / "x" / ".." / "a.bin"
        with pytest.raises(LlamacyError, match=told), claimed(again, "choose another"):
            pytest.fail("two owners")
        with claimed(tmp_path / "b.bin", "choose another"):
            pass
    assert os.listdir(tmp_path) == []
    with claimed(tmp_path / "a.bin", ""):
        pass


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path):
    code = f"""
import sys, time
from llamacy.formats.locks import claimed
with claimed({str(tmp_path / "a.bin")!r}, ""):
    print("claimed", flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(llamacy.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "claimed\n"
        with pytest.raises(LlamacyError, match=rf"\({child.pid}\)"), claimed(tmp_path / "a.bin", "wait"):
            pytest.fail("two owners")
        child.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == [".a.bin.lock"]
    with claimed(tmp_path / "a.bin", "") as alone:
        assert alone
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_where_there_are_no_locks_a_warning_says_so_and_nothing_is_refused(tmp_path, monkeypatch, code):
    def none(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="would go unnoticed"), claimed(tmp_path / "a.bin", "") as alone:
        assert not alone
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(UserWarning), claimed(tmp_path / "a.bin", "") as alone:
        assert not alone
    assert os.listdir(tmp_path) == []


def test_a_file_of_the_user_s_in_the_lock_s_place_stays_as_it_is(tmp_path):
    (tmp_path / ".a.bin.lock").write_text("my diary")
    os.symlink("elsewhere", tmp_path / ".b.bin.lock")
    for name in ("a.bin", "b.bin"):
        with pytest.warns(UserWarning, match="would go unnoticed"), claimed(tmp_path / name, ""):
            pass
    assert (tmp_path / ".a.bin.lock").read_text() == "my diary"
    assert os.readlink(tmp_path / ".b.bin.lock") == "elsewhere" and len(os.listdir(tmp_path)) == 2


def test_long_names_in_any_script(tmp_path):
    names = ["鱼" * 84, "鱼" * 83 + "a", "n" * 250, "n" * 249 + "m"]
    assert len({locks.short(name) for name in names}) == 4
    with contextlib.ExitStack() as stack:
        for n, name in enumerate(names):
            stack.enter_context(claimed(tmp_path / name, ""))
            assert len(os.listdir(tmp_path)) == n + 1
