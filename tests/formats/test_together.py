"""replaced_together: old files or new ones, whatever fails or dies at whatever moment, and nothing left lying about."""

import contextlib
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llamacy
from llamacy.errors import LlamacyError
from llamacy.formats import together
from llamacy.formats.together import replaced_together

NAMES = ("config.json", "weights.bin", "other.bin")
OLD = {"config.json": b"old config", "weights.bin": b"old weights"}
NEW = {"config.json": b"new", "other.bin": b"new other weights"}
# What touches the disk: each call is a moment at which the process may die or the disk may fail.
CALLS = ["mkdir", "open", "fsync", "link", "symlink", "replace", "unlink", "rmdir", "truncate", "pwrite"]


def content_of(folder):
    """Return the names' contents as any reader finds them."""
    found = {}
    for name in NAMES:
        with contextlib.suppress(FileNotFoundError):
            found[name] = (folder / name).read_bytes()
    return found


def write(folder, content):
    with replaced_together(folder, NAMES) as create:
        for name, raw in content.items():
            with create(name) as file:
                file.write(raw)


def folder_with(path, content):
    """A folder with the names' `content` and things of the user's own."""
    path.mkdir()
    for name, raw in content.items():
        (path / name).write_bytes(raw)
    (path / "README.md").write_text("mine")
    (path / "notes.tmp").write_text("mine too")
    (path / "deep").mkdir()
    (path / "deep" / "x.bin").write_bytes(b"x")
    return path


def assert_tidy(folder, content):
    """Plain files of that content, the user's things, and nothing else."""
    assert content_of(folder) == content
    assert sorted(os.listdir(folder)) == sorted([*content, "README.md", "notes.tmp", "deep"])
    assert all(not (folder / name).is_symlink() for name in content)
    assert (folder / "README.md").read_text() == "mine" and (folder / "deep" / "x.bin").read_bytes() == b"x"


def at_call(number, act, log=None):
    """Let the call number `number` (from 0) of CALLS run `act` first; returns a function that undoes it."""
    count, real = iter(range(10**9)), {name: getattr(os, name) for name in CALLS}

    def patched(name):
        def call(*args, **more):
            if next(count) == number:
                act(name)
            return real[name](*args, **more)

        return call

    for name in CALLS:
        setattr(os, name, patched(name))
    return lambda: [setattr(os, name, function) for name, function in real.items()]


def n_calls(tmp_path, content):
    folder, seen = folder_with(tmp_path / "counted", content), []
    undo = at_call(10**8, None)
    try:
        for name in CALLS:
            real = getattr(os, name)
            setattr(os, name, lambda *a, real=real, **k: seen.append(1) or real(*a, **k))
        write(folder, NEW)
    finally:
        undo()
    assert_tidy(folder, NEW)
    return len(seen)


@pytest.mark.parametrize("old", [OLD, {}, {"weights.bin": b"only one"}], ids=["pair", "none", "half"])
def test_a_process_that_dies_at_any_moment_leaves_all_old_or_all_new(tmp_path, old):
    """SIGKILL before each call in turn; then another save, which also dies; then one that lives."""
    n, seen = n_calls(tmp_path, old), []
    assert n > 25
    for number in range(n):
        folder = folder_with(tmp_path / str(number), old)
        killed_in(lambda folder=folder: write(folder, NEW), number)
        found = content_of(folder)
        assert found in (old, NEW), number
        seen.append(found == NEW)
        assert (folder / "README.md").read_text() == "mine"
        killed_in(lambda folder=folder: write(folder, OLD), (number * 7) % n)
        assert content_of(folder) in (found, OLD), number
        write(folder, NEW)
        assert_tidy(folder, NEW)
    # one moment: never back again
    assert seen == sorted(seen) and True in seen and False in seen


def killed_in(work, number):
    """Do `work` in a process of its own that is killed before call `number`."""
    child = os.fork()
    if child == 0:
        try:
            at_call(number, lambda name: os.kill(os.getpid(), signal.SIGKILL))
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*would go unnoticed")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("old", [OLD, {}], ids=["pair", "none"])
def test_a_call_that_fails_at_any_moment_leaves_all_old_or_all_new(tmp_path, old, code):
    def fail(name):
        raise OSError(code, os.strerror(code))

    n = n_calls(tmp_path, old)
    for number in range(n):
        folder, told = folder_with(tmp_path / str(number), old), None
        undo = at_call(number, fail)
        try:
            write(folder, NEW)
        except LlamacyError as error:
            told = str(error)
        finally:
            undo()
        found = content_of(folder)
        assert found == (NEW if told is None else old), (number, told)
        assert told is None or "cannot write" in told
        write(folder, OLD)
        assert_tidy(folder, OLD)


def test_a_block_that_fails_changes_nothing(tmp_path):
    folder = folder_with(tmp_path / "a", OLD)
    for raised in (ValueError("x"), KeyboardInterrupt(), LlamacyError("y")):
        with pytest.raises(type(raised)), replaced_together(folder, NAMES) as create:
            with create("config.json") as file:
                file.write(b"half")
            raise raised
        assert_tidy(folder, OLD)


def test_killed_at_random_while_it_saves_again_and_again(tmp_path):
    """Without patched calls: a process that replaces the pair for ever, killed at any time."""
    folder, rng = folder_with(tmp_path / "a", {}), random.Random(5)
    code = f"""
import itertools
from tests.formats.test_together import *
for i in itertools.count():
    pair = dict.fromkeys(("config.json", "weights.bin"), b"%09d" % i * 1000)
    write(Path({str(folder)!r}), pair)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(llamacy.__file__).parents[1])}
    last = -1
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as child:
            start = time.monotonic()
            # at least one save, so that each round has something to interrupt
            while content_of(folder) == {} and time.monotonic() < start + 60:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.2, 0.35))
            found = content_of(folder)
            child.kill()
        found = content_of(folder)
        assert len(found) == 2 and len(set(found.values())) == 1
        last = max(last, int(found["config.json"][:9]))
    assert last > 0
    write(folder, NEW)
    assert_tidy(folder, NEW)


def test_modes_links_and_a_folder_that_is_new(tmp_path):
    write(tmp_path / "deep" / "er", NEW)
    assert content_of(tmp_path / "deep" / "er") == NEW
    folder = folder_with(tmp_path / "a", OLD)
    os.chmod(folder / "config.json", 0o600)
    os.rename(folder / "weights.bin", tmp_path / "blob")
    os.symlink("../blob", folder / "weights.bin")
    os.symlink("a", tmp_path / "link")
    write(tmp_path / "link", OLD | {"weights.bin": b"1"})
    assert_tidy(folder, OLD | {"weights.bin": b"1"})
    assert stat.S_IMODE(os.stat(folder / "config.json").st_mode) == 0o600
    assert (tmp_path / "link").is_symlink() and (tmp_path / "blob").read_bytes() == b"old weights"


@pytest.mark.parametrize("missing", ["symlink", "link"])
def test_file_systems_without_links(tmp_path, monkeypatch, missing):
    def none(*args, **more):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, missing, none)
    folder = folder_with(tmp_path / "a", OLD)
    write(folder, NEW)
    assert_tidy(folder, NEW)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LlamacyError, match="wanted a folder to write"):
        write(tmp_path / "file", NEW)
    folder = folder_with(tmp_path / "a", {})
    (folder / "config.json").mkdir()
    with pytest.raises(LlamacyError, match="config.json: is a folder"):
        write(folder, NEW)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "deep", "notes.tmp"]


def test_two_writers_take_turns_and_an_endless_one_is_told(tmp_path, monkeypatch):
    folder = folder_with(tmp_path / "a", OLD)
    monkeypatch.setattr(together, "PATIENCE", 0.1)
    with replaced_together(folder, NAMES) as create:
        with create("config.json") as file:
            file.write(b"1")
        with pytest.raises(LlamacyError, match=rf"in use: another process \({os.getpid()}\) writes there; wait until"):
            write(folder, NEW)
    assert_tidy(folder, {"config.json": b"1"})


# The adapters' folders.


def test_a_folder_is_one_adapter_whatever_format_it_was_before(tmp_path):
    from llamacy.formats.adapter import adapter_format, load_adapter, save_adapter
    from tests.formats.test_adapters import BASE, assert_equal, sample

    first, second = sample(seed=1), sample(seed=2, layers=range(2))
    for format, adapter in (("peft", first), ("mlx", second), ("peft", second), ("mlx", first)):
        save_adapter(tmp_path / "a", adapter, format, BASE)
        assert adapter_format(tmp_path / "a") == format and len(os.listdir(tmp_path / "a")) == 2
        assert_equal(load_adapter(tmp_path / "a", BASE), adapter)


def test_a_reader_gets_one_adapter_while_another_takes_its_place(tmp_path, monkeypatch):
    """The swap comes between the two files: of weights read before it the config is read after it."""
    from llamacy.formats import peft
    from llamacy.formats.adapter import load_adapter, save_adapter
    from tests.formats.test_adapters import BASE, assert_equal, sample

    first, second = sample(scale=2.0, seed=1), sample(scale=8.0, seed=2)
    save_adapter(tmp_path / "a", first, "peft", BASE)
    read, swaps = peft.read_config, iter([True])

    def config_after_the_swap(file):
        if next(swaps, False):
            save_adapter(tmp_path / "a", second, "peft", BASE)
        return read(file)

    monkeypatch.setattr(peft, "read_config", config_after_the_swap)
    assert_equal(load_adapter(tmp_path / "a", BASE), second)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_alpha"] == 32

    def for_ever(file):
        save_adapter(tmp_path / "a", first, "peft", BASE)
        return read(file)

    monkeypatch.setattr(peft, "read_config", for_ever)
    with pytest.raises(LlamacyError, match="is replaced again and again"):
        load_adapter(tmp_path / "a", BASE)
