"""A sound file whose results leave f32's range: each command ends in a line that says so, no number is made up."""

import re
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy.formats.model_file import open_model
from tests.server.service import error_of, post
from tests.server.test_server_command import ENVIRONMENT, MODEL, ROOT, start

SAID = "the model's results are not numbers (infinite or NaN)"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A copy of the small model with one weight of its last norm so large that logits are infinite."""
    path = tmp_path_factory.mktemp("overflow") / "m.gguf"
    content = bytearray(MODEL.read_bytes())
    with open_model(MODEL) as file:
        at = file.tensors["output_norm.weight"].offset
    content[at : at + 4] = np.float32(3e38).tobytes()
    path.write_bytes(content)
    return path


def command(name, *words, text=None):
    """Return a finished command: exit code, stdout and stderr."""
    line = [ROOT / "bin" / name, *map(str, words)]
    return subprocess.run(line, input=text, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)


@pytest.mark.parametrize("activations", ["int8", "int16", "f32"])
def test_main_ends_in_one_line(overflowing, activations):
    done = command("main", "-m", overflowing, "-p", "This License", "-n", 4, "--activations", activations)
    assert done.returncode == 1 and SAID in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and done.stdout.strip() in ("", "This License")


def test_perplexity_prints_no_number(overflowing):
    text = ROOT / "tests" / "data" / "golden" / "gpl3.txt"
    done = command("perplexity", "-m", overflowing, "-f", text, "-c", 32, "--chunks", 1)
    assert done.returncode == 1 and SAID in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not re.search(r"nan|inf\b", done.stdout)


def test_the_server_says_500_and_goes_on(overflowing):
    process = start("-m", overflowing, "-c", 64)
    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[1])
        running = SimpleNamespace(port=port)
        for path in ("/completion", "/v1/completions"):
            status, message = error_of(running, "POST", path, {"prompt": "This License", "n_predict": 4})
            assert status == 500 and SAID in message
        assert post(running, "/tokenize", content="This")["tokens"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err


def test_finetune_refuses_to_train_on_it(overflowing, tmp_path):
    (tmp_path / "t.txt").write_text("### Instruction:\nSay yes.\n### Response:\nyes\n" * 3)
    saved = tmp_path / "a.bin"
    done = command(
        "finetune", "-m", overflowing, "--train-data", tmp_path / "t.txt", "--epochs", 1, "--lora-out", saved
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and not saved.exists()
    assert "the loss is nan" in done.stderr.splitlines()[-1] and "the model itself gives this" in done.stderr
