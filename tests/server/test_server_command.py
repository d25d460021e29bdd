"""bin/server as a process, over a small real model: start, serve, finish; and what it says when it cannot."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.server.service import ask, error_of, events, open_request, post

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
ADAPTER = ROOT / "tests" / "data" / "tiny-adapter-ggla.bin"
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def start(*flags):
    return subprocess.Popen(
        [ROOT / "bin" / "server", "--port", "0", *map(str, flags)], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def fails(*flags):
    """Run a server that cannot start; return (exit code, its one line)."""
    process = start(*flags)
    _, err = process.communicate(timeout=60)
    assert err.count("\n") == 1, err
    return process.returncode, err


@pytest.fixture(scope="module")
def running():
    process = start("-m", MODEL, "-c", 128, "-np", 2, "--metrics", "--alias", "tiny")
    line = process.stderr.readline()
    address = re.match(r"server is listening on http://127.0.0.1:(\d+) \(tiny, 2 slots of 128 tokens", line)
    assert address, line
    yield SimpleNamespace(port=int(address[1]), process=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert process.stderr.read() == ""


def test_it_serves(running):
    assert ask(running, "GET", "/health")[:2] == (200, {"status": "ok"})
    plain = {"prompt": "This License grants you", "n_predict": 24, "temperature": 0}
    answer = post(running, "/completion", **plain)
    assert answer["model"] == "tiny" and answer["tokens_predicted"] == 24
    parts = events(running, "/completion", **plain)
    assert "".join(part["content"] for part in parts) == answer["content"]
    assert post(running, "/completion", **plain, cache_prompt=False)["content"] == answer["content"]
    tokens = post(running, "/tokenize", content="This License", add_special=True)["tokens"]
    assert tokens[0] == 1 and post(running, "/detokenize", tokens=tokens[1:])["content"].strip() == "This License"
    assert error_of(running, "POST", "/completion", {"prompt": "word " * 200})[0] == 400


def test_main_says_what_the_server_says(running):
    answer = post(running, "/completion", prompt="This License grants you", n_predict=24, temperature=0)
    words = [ROOT / "bin" / "main", "-m", MODEL, "-p", "This License grants you", "-n", "24", "--temp", "0"]
    for threads in "12":
        done = subprocess.run([*words, "-t", threads], capture_output=True, text=True, env=ENVIRONMENT, check=True)
        assert done.stdout.rstrip("\n") == ("This License grants you" + answer["content"]).rstrip("\n")


def test_the_same_seed_gives_the_same_text_alone_and_beside_others(running):
    plain = {"prompt": "You may convey", "n_predict": 30, "seed": 7}
    alone = post(running, "/completion", **plain)["content"]
    beside = open_request(running, "/completion", {"prompt": "Other text", "n_predict": 100, "ignore_eos": True})
    assert post(running, "/completion", **plain, cache_prompt=False)["content"] == alone
    beside.close()


def test_a_taken_port(running):
    process = subprocess.run(
        [ROOT / "bin" / "server", "-m", MODEL, "--port", str(running.port)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert process.returncode == 1 and process.stdout == ""
    assert re.fullmatch(
        r"server: cannot listen on 127.0.0.1:\d+: .*; choose another --port or --host\n", process.stderr
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["-m", "no-such-model.gguf"], 1, "no-such-model.gguf"),
        (["-m", str(MODEL), "--host", "no.such.host.invalid"], 1, "--host no.such.host.invalid: cannot be resolved"),
        (["-m", str(MODEL), "--lora", "no-such-adapter.gguf"], 1, "no-such-adapter.gguf"),
        (["-m", str(MODEL), "--chat-template", "nonsense"], 1, "chat template 'nonsense'"),
        (["-m", str(MODEL), "--api-key-file", "no-such-file"], 1, "no-such-file"),
        (["-m", str(MODEL), "--api-key", " "], 2, "--api-key: wanted a key, got an empty one"),
        (["--parallel", "0"], 2, "wanted a whole number from 1 to 256, got '0'"),
    ],
)
def test_what_cannot_be_is_one_line(flags, code, message):
    got, err = fails(*flags)
    assert got == code and message in err


def test_an_empty_key_file_does_not_open_the_door(tmp_path):
    (tmp_path / "keys").write_text("\n \n")
    code, err = fails("-m", MODEL, "--api-key-file", tmp_path / "keys")
    assert code == 1 and "wanted a key a line, got none" in err


@pytest.mark.parametrize(("flags", "n_vectors"), [([], 3), (["--pooling", "last"], 1)])
def test_pooling_is_the_file_s_unless_a_flag_says_another(flags, n_vectors):
    process = start("-m", MODEL, "-c", 64, "--override-kv", "llama.pooling_type=int:0", *flags)
    try:
        port = int(re.search(r":(\d+) ", process.stderr.readline())[1])
        answer = post(SimpleNamespace(port=port), "/embedding", content=[5, 6, 7])
        assert len(answer[0]["embedding"]) == n_vectors
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_0_while_it_works(number):
    process = start("-m", MODEL, "-np", 1, "--api-key", "k")
    port = int(re.search(r":(\d+) ", process.stderr.readline())[1])
    body = json.dumps({"prompt": "x", "n_predict": 100000, "ignore_eos": True, "stream": True}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json", "Authorization": "Bearer k"}
    )
    answer = urllib.request.urlopen(request, timeout=10)
    assert answer.readline().startswith(b"data: ")
    begin = time.monotonic()
    process.send_signal(number)
    # Its client gets an end, its own or the server's; the port is free at once.
    last = answer.read().split(b"\n\n")[-2]
    assert b'"stop": true' in last or b"the server is shutting down" in last
    assert process.wait(15) == 0 and time.monotonic() - begin < 10
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_ending_while_the_model_loads():
    process = start("-m", MODEL)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    # Before the handler is set the signal itself ends the process.
    assert process.wait(15) in (0, -signal.SIGTERM)


def test_adapters_with_norms_have_their_scale_per_request():
    process = start("-m", MODEL, "-np", 3, "-c", 128, "--lora", f"{ADAPTER}:0.5", "--activations", "f32")
    service = SimpleNamespace(port=int(re.search(r":(\d+) ", process.stderr.readline())[1]))
    plain = {"prompt": "This License grants you", "n_predict": 1, "n_probs": 3, "cache_prompt": False}

    def top(**more):
        return [
            entry["logprob"]
            for entry in post(service, "/completion", **plain, **more)["completion_probabilities"][0]["top_logprobs"]
        ]

    half, whole, off = (top(lora=[{"id": 0, "scale": scale}]) for scale in (0.5, 1, 0))
    assert top() == half and len({tuple(half), tuple(whole), tuple(off)}) == 3
    assert top(lora=[]) == off
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    bare = start("-m", MODEL, "-c", 128, "--activations", "f32")
    service = SimpleNamespace(port=int(re.search(r":(\d+) ", bare.stderr.readline())[1]))
    assert top() == pytest.approx(off, abs=1e-5)
    bare.send_signal(signal.SIGTERM)
    assert bare.wait(15) == 0


def test_a_pasted_line_and_variables(tmp_path, monkeypatch):
    (tmp_path / "chat.jinja").write_text("{{ messages[-1].content }}{{ mark }}")
    monkeypatch.setitem(ENVIRONMENT, "LLAMA_ARG_N_PREDICT", "5")
    monkeypatch.setitem(ENVIRONMENT, "LLAMA_ARG_CTX_SIZE", "0")
    line = "-np 2 -ngl 99 -fa on --jinja --threads-http 4 --no-slots --api-prefix /llm --lora-init-without-apply"
    names = ["--chat-template-file", tmp_path / "chat.jinja", "--chat-template-kwargs", '{"mark": "!"}']
    process = start("-m", MODEL, "--lora", ADAPTER, *line.split(), *names, "--log-file", tmp_path / "log")
    assert process.stderr.readline() == "-ngl 99, -fa on, --jinja, --threads-http 4: no effect here\n"
    first = process.stderr.readline()
    address = re.search(r"listening on http://127.0.0.1:(\d+)/llm \(.*, 2 slots of (\d+) tokens", first)
    service = SimpleNamespace(port=int(address[1]))
    assert int(address[2]) == ask(service, "GET", "/llm/v1/models")[1]["data"][0]["meta"]["n_ctx_train"]
    assert post(service, "/llm/completion", prompt="This License", ignore_eos=True)["tokens_predicted"] == 5
    adapters = ask(service, "GET", "/llm/lora-adapters")[1]
    assert [adapter["scale"] for adapter in adapters] == [0]
    asked = post(service, "/llm/apply-template", messages=[{"role": "user", "content": "hi"}])
    assert asked == {"prompt": "hi!"}
    assert error_of(service, "GET", "/llm/slots")[0] == 501
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert (tmp_path / "log").read_text() == first
