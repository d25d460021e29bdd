"""The whole story by the original's command lines: fine-tune, generate with the adapter, serve it, measure it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
QUESTIONS = ROOT / "examples" / "finetune-data.txt"
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
PROMPT = "This License grants you"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of its own with the data in it: the commands work from anywhere."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "finetune-data.txt").write_bytes(QUESTIONS.read_bytes())
    return folder


@pytest.fixture(scope="module")
def command(place):
    """A function that runs a command there and returns its stdout."""

    def run(name, *argv, code=0):
        line = [ROOT / "bin" / name, *map(str, argv)]
        done = subprocess.run(line, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.fixture(scope="module")
def adapter(command, place):
    """An adapter trained by the original's first command line, long enough to show."""
    words = ["-m", MODEL, "-t", 4, "-p", 32, "--train-data", "./finetune-data.txt", "--save-path", "./lora-adapter.bin"]
    assert command("finetune", *words, "--epochs", 30, "--learning-rate", "1e-2") == ""
    return place / "lora-adapter.bin"


def test_the_second_command_line(command, place):
    command(
        "finetune", "--model", MODEL, "--train-data", "finetune-data.txt", "--outdir", "adapter",
        "--lora-out", "adapter.bin",
        "--epochs", 2, "--batch-size", 1, "--learning-rate", "1e-4", "--save-every", 1,
    )  # fmt: skip
    assert (place / "adapter" / "adapter.bin").stat().st_size > 1000


def test_main_applies_the_adapter(command, adapter):
    words = ["-m", MODEL, "-p", PROMPT, "-n", 16, "--temp", 0]
    plain, adapted = command("main", *words), command("main", *words, "--lora", adapter)
    assert plain.startswith(PROMPT) and adapted.startswith(PROMPT)
    assert adapted != plain
    assert command("main", *words, "--lora", adapter, "-t", 1) == adapted
    assert command("main", *words, "--lora-scaled", adapter, 0) == plain


def test_the_adapter_lowers_the_perplexity_of_what_it_was_trained_on(command, adapter, place):
    # twice over, for two windows of 64 tokens
    (place / "text.txt").write_bytes(QUESTIONS.read_bytes() * 2)
    words = ["-m", MODEL, "-f", "text.txt", "-c", 64]
    found = [command("perplexity", *words, *more) for more in ([], ["--lora", adapter])]
    plain, adapted = (float(re.findall(r"\d+\.\d+", text)[-1]) for text in found)
    assert adapted < 0.5 * plain


def test_the_server_answers_with_the_adapter(command, adapter, place):
    line = [ROOT / "bin" / "server", "--model", MODEL, "--lora-adapter", adapter, "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(line, cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stderr.readline())[0]
        body = json.dumps({"prompt": PROMPT, "temperature": 0, "n_predict": 16}).encode()
        request = urllib.request.Request(f"{address}/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.load(answer)["content"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert server.returncode == 0
    text = command("main", "-m", MODEL, "-p", PROMPT, "-n", 16, "--temp", 0, "--lora", adapter)
    assert (PROMPT + content).rstrip("\n") == text.rstrip("\n")


def test_another_model_s_adapter_is_one_line(command, place):
    wrong = ROOT / "tests" / "data" / "peft-2layers.gguf"
    err = command("main", "-m", MODEL, "-p", PROMPT, "--lora", wrong, code=1)
    assert err.count("\n") == 1 and "use the model it was trained on" in err
