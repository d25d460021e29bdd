"""The scripts in bin/: from any folder, through a symlink, under any Python; and what all commands have in common."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamacy import __version__
from llamacy.cli import entry
from tools.commands_doc import commands

ROOT = Path(__file__).resolve().parents[1]

# Where there is no .venv the scripts take `python3`: make that the one that runs the tests.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def call(*words, **options):
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, **options
    )


@pytest.mark.parametrize("command", commands())
def test_a_command_works_through_a_link_from_anywhere(command, tmp_path):
    (tmp_path / "linked").symlink_to(ROOT / "bin" / command)
    done = call(tmp_path / "linked", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"llamacy {__version__}\n", "")


def test_a_script_may_be_given_to_python(tmp_path):
    done = call(sys.executable, ROOT / "bin" / "main", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"llamacy {__version__}\n")


def test_paths_with_spaces_and_arguments_arrive_whole(tmp_path):
    (tmp_path / "a folder").mkdir()
    link = tmp_path / "a folder" / "main"
    link.symlink_to(ROOT / "bin" / "main")
    done = call(link, "-m", "no such model.gguf", "-p", "two  spaces", cwd=tmp_path)
    assert done.returncode == 1
    assert "no such model.gguf" in done.stderr


@pytest.mark.parametrize("command", commands())
def test_wrong_usage_is_one_line_and_exit_2(command, tmp_path):
    done = call(ROOT / "bin" / command, "--no-such-flag", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{command}: ")


@pytest.mark.parametrize("command", commands())
def test_a_command_is_installed_too(command):
    scripts = re.search(r"\[project.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.S)[1]
    name = command.replace("-", "_")
    assert f'llamacy-{command} = "llamacy.cli.entry:{name}"' in scripts.splitlines()
    assert callable(getattr(entry, name))
    assert len(scripts.splitlines()) == len(commands())


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    def refuse(name):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(entry.importlib, "import_module", refuse)
    monkeypatch.setattr(sys, "argv", ["main"])
    assert entry.start("main") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "numpy" in error
    assert "`make`" in error


UNBUILT = ["main -m {} -p hi", "server -m {}", "finetune -m {}", "tokenize -m {} -p hi", "info {}"]


@pytest.mark.parametrize("line", UNBUILT)
def test_a_clone_that_was_not_built_says_run_make(line, tmp_path):
    shutil.copytree(ROOT / "llamacy", tmp_path / "llamacy", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command, *argv = line.format(ROOT / "tests" / "data" / "tiny-q8_0.gguf").split()
    code = f"from llamacy.cli.entry import start; raise SystemExit(start({command!r}))"
    done = call(sys.executable, "-c", code, *argv, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"kernels are missing or cannot be loaded: run `make` in {tmp_path}" in done.stderr
