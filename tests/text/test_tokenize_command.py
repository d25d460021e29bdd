"""bin/tokenize."""

import io
import json
import os
import subprocess
import sys

import pytest

from llamacy.cli import tokenize
from llamacy.cli.run import run
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model


@pytest.fixture
def command(vocabulary_file, capfdbinary):
    """A function from arguments to (exit code, stdout as text, stderr as text), with GPT-2's vocabulary."""

    def call(*args, model=None):
        code = run(tokenize.main, ["-m", str(model or vocabulary_file("gpt-2")), *args])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def test_ids(command):
    assert command("-p", "Hello world", "--ids") == (0, "[15496, 995]\n", "")
    assert command("--ids", "--prompt", "") == (0, "[]\n", "")


def test_lines(command):
    code, out, _ = command("-p", "Hi 'é'\n漢")
    assert code == 0
    assert out.splitlines() == [
        *("17250 -> 'Hi'", "705 -> ' ''", "2634 -> 'é'", "6 -> '''", "198 -> '\\n'"),
        *("162 -> '\\xe6'", "120 -> '\\xbc'", "95 -> '\\xa2'"),
    ]


def test_bos(command, vocabulary_file):
    llama = vocabulary_file("llama-spm")
    assert command("-p", "a", "--ids", model=llama)[1] == "[1, 263]\n"
    assert command("-p", "a", "--ids", "--no-bos", model=llama)[1] == "[263]\n"
    assert command("-p", "</s>", "--ids", "--no_bos", model=llama)[1] == "[2]\n"
    plain = json.loads(command("-p", "</s>", "--ids", "--no-bos", "--no-parse-special", model=llama)[1])
    assert len(plain) > 1 and 2 not in plain


def test_file_and_stdin_with_any_bytes(command, tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_bytes(b"Hello\xff world")
    expected = json.loads(command("-f", str(path), "--ids")[1])
    assert expected[0] == 15496 and expected[-1] == 995 and len(expected) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert json.loads(command("--stdin", "--ids")[1]) == expected
    assert json.loads(command("-p", os.fsdecode(path.read_bytes()), "--ids")[1]) == expected


def test_failures_are_one_line(command, tmp_path):
    missing = tmp_path / "missing"
    for args, model in ((["-f", str(missing)], None), (["-p", "a"], missing), (["-p", "a"], __file__)):
        code, out, err = command(*args, model=model)
        assert (code, out, err.count("\n")) == (1, "", 1)
    for args in ([], ["-p", "a", "--stdin"], ["-p"]):
        with pytest.raises(SystemExit) as stopped:
            command(*args)
        assert stopped.value.code == 2


def test_an_unknown_pre_tokenizer_is_one_line_of_warning(vocabulary_file, tmp_path):
    path = tmp_path / "m.gguf"
    with open_model(vocabulary_file("gpt-2")) as model:
        write_gguf(path, model.metadata | {"tokenizer.ggml.pre": "unheard-of"}, [])
    command = [sys.executable, "-c", "from llamacy.cli.entry import tokenize; raise SystemExit(tokenize())"]
    done = subprocess.run([*command, "-m", path, "-p", "Hello world", "--ids"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[15496, 995]\n")
    assert done.stderr.startswith(
        "tokenize: warning: pre-tokenizer 'unheard-of' is not known: text is cut as 'default'"
    )
    assert done.stderr.count("\n") == 1


def test_how_many_there_are(command):
    assert command("-p", "Hello world", "--ids", "--show-count")[1] == "[15496, 995]\nTotal number of tokens: 2\n"
    assert command("-p", "Hi 'é'", "--show-count")[1].endswith("Total number of tokens: 4\n")
