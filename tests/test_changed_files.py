"""A model file that is cut off or overwritten while it is open: what needs no page of it goes on, the rest is one line.

Reading a page that is gone ends a process (SIGBUS): files are cut off under processes of their own, else overwritten.
"""

import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy.formats.adapter import save_adapter
from llamacy.formats.lora import Adapter
from llamacy.formats.mapped import FileChanged
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.options import TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model.tiny import CONFIG, CONTROL, NORMAL, logits_of, tokens_of, write_llama
from tests.server.service import ask, error_of, events, post
from tests.server.test_server_command import ENVIRONMENT, ROOT, start

N_VOCAB = 3000  # tokens, merges and embedding then have pages of their own
MESSAGES = [{"role": "user", "content": "ab bba aab"}]


def byte_pair_vocabulary():
    """Return the metadata of a gpt2 vocabulary: printable ASCII, then words of a and b, each by a merge."""
    tokens = [chr(code) for code in range(0x21, 0x7F)] + ["\u0120", "\u010a"]
    words, merges = ["a", "b"], []
    while len(tokens) < N_VOCAB - 2:
        left, right = words[len(merges) // 2], "ab"[len(merges) % 2]
        words.append(left + right)
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, "<s>", "</s>"],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.token_type": [NORMAL] * (N_VOCAB - 2) + [CONTROL] * 2,
        "tokenizer.ggml.bos_token_id": N_VOCAB - 2,
        "tokenizer.ggml.eos_token_id": N_VOCAB - 1,
        "tokenizer.chat_template": "{% for m in messages %}<s>{{ m.content }}{% endfor %}",
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function: tied or not -> a model file that no test changes; beside them adapter.bin, which adapts a norm."""
    folder = tmp_path_factory.mktemp("whole")
    config = replace(CONFIG, n_vocab=N_VOCAB)
    for tied in (True, False):
        write_llama(
            folder / f"{tied}.gguf", config, twin.random_weights(config, 5, tied), change=byte_pair_vocabulary()
        )
    norms = {"blk.1.ffn_norm.weight": np.linspace(-0.5, 0.5, CONFIG.n_embd, dtype=np.float32)}
    save_adapter(folder / "adapter.bin", Adapter("llama", {}, 1.0, norms=norms), "ggla")
    return lambda tied: folder / f"{tied}.gguf"


@pytest.fixture
def model_file(whole, tmp_path):
    """A function: tied or not -> a copy to be changed."""
    return lambda tied: shutil.copy(whole(tied), tmp_path / "model.gguf")


def cut_off(path):
    os.truncate(path, 0)


def overwrite(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.write(b"\xff" * size)


def write_another(path):
    with open(path, "wb") as file:
        file.write(b"another download has begun")


SPOILED = (cut_off, overwrite, write_another)


@contextmanager
def serving(model, *flags):
    """Run bin/server; yields it with its port. In the end `log` is what it wrote, and it must have ended well."""
    process = start("-m", model, "-c", 96, "-np", 2, "--alias", "m", *flags)
    service = SimpleNamespace(port=int(re.search(r":(\d+) ", process.stderr.readline())[1]), process=process)
    try:
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        service.code = process.wait(30)
        service.log = process.stderr.read()


def everything(service):
    """Return the answers of all endpoints that need tokens or the model, timings and names left out."""
    plain = {"temperature": 0, "seed": 1, "cache_prompt": False}
    answers = [
        post(service, "/completion", prompt="ab bba", n_predict=8, n_probs=3, return_tokens=True, **plain),
        post(service, "/completion", prompt="abab", n_predict=4, lora=[{"id": 0, "scale": 3}], **plain),
        post(service, "/v1/chat/completions", messages=MESSAGES, max_tokens=8, **plain),
        post(service, "/v1/completions", prompt=["ab", "bba"], max_tokens=8, logprobs=2, echo=False, **plain),
        events(service, "/completion", prompt="aab", n_predict=8, **plain)[:-1],
        post(service, "/v1/embeddings", input="abba ba"),
        post(service, "/tokenize", content="abbab <s> baab", with_pieces=True),
        post(service, "/detokenize", tokens=list(range(0, N_VOCAB, 7))),
        post(service, "/apply-template", messages=MESSAGES),
        ask(service, "GET", "/props")[1],
    ]
    for answer in answers:
        for key in ("timings", "id", "created", "model", "model_path", "model_alias", "id_slot"):
            if isinstance(answer, dict):
                answer.pop(key, None)
    return answers


@pytest.fixture(scope="module")
def expected(whole):
    with serving(whole(True), "--lora", whole(True).parent / "adapter.bin") as service:
        return everything(service)


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_packed_model_needs_no_page_of_its_file(whole, model_file, expected, spoil):
    path = model_file(True)
    with serving(path, "--lora", whole(True).parent / "adapter.bin") as service:
        spoil(path)
        assert everything(service) == expected
    assert (service.code, service.log) == (0, "")


@pytest.mark.parametrize("spoil", SPOILED)
def test_an_embedding_that_is_looked_up_in_the_file_is_missed_in_one_line(model_file, spoil):
    path = model_file(False)
    wanted = {
        "/completion": {"prompt": "ab"},
        "/v1/completions": {"prompt": "ab"},
        "/v1/chat/completions": {"messages": MESSAGES},
        "/v1/embeddings": {"input": "ab"},
    }
    with serving(path) as service:
        assert post(service, "/completion", prompt="ab", n_predict=4)["stop"]
        spoil(path)
        for endpoint, data in wanted.items():
            status, message = error_of(service, "POST", endpoint, data)
            assert status == 503 and message.startswith(f"{path}: was written to while in use")
        (error,) = events(service, "/completion", prompt="ab")
        assert error["error"]["code"] == 503 and error["error"]["type"] == "unavailable_error"
        assert ask(service, "GET", "/health")[0] == 200
        assert post(service, "/tokenize", content="abab")["tokens"]
    lines = service.log.splitlines()
    assert service.code == 0 and len(lines) == 5 and all("was written to while in use" in line for line in lines)


def test_a_file_replaced_by_renaming_lives_on(whole, model_file, tmp_path):
    path = model_file(False)
    (tmp_path / "new").write_bytes(b"another model")
    with serving(path) as service:
        wanted = post(service, "/completion", prompt="ab", n_predict=8, temperature=0)["content"]
        os.replace(tmp_path / "new", path)
        again = post(service, "/completion", prompt="ab", n_predict=8, temperature=0, cache_prompt=False)
        assert again["content"] == wanted
    assert (service.code, service.log) == (0, "")


def test_a_model_read_into_memory_needs_no_file(model_file):
    path = model_file(False)
    with serving(path, "--no-mmap") as service:
        cut_off(path)
        assert post(service, "/completion", prompt="ab", n_predict=8)["tokens_predicted"] == 8


@pytest.mark.parametrize(("tied", "code"), [(True, 0), (False, 1)])
def test_a_chat_goes_on_or_ends_in_one_line(model_file, tied, code):
    path = model_file(tied)
    process = subprocess.Popen(
        [ROOT / "bin" / "main", "-m", path, "-cnv", "-n", "4", "-c", "96", "--ignore-eos", "--logit-bias", "95-inf"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    process.stdin.write("abab\n")
    process.stdin.flush()
    assert process.stdout.readline().strip()  # no token is a line break: that was all of the answer
    cut_off(path)
    out, err = process.communicate("baba\n", timeout=60)
    assert process.returncode == code, err
    if tied:
        assert out.strip()
    else:
        assert err.startswith(f"main: {path}: was written to while in use: it had ") and err.count("\n") == 1


def test_training_ends_before_a_step_that_would_read_the_file(whole, model_file):
    losses = []
    samples = [[Sample(tokens_of(CONFIG, n).astype(np.int32), np.arange(n) > 2) for n in (9, 12)]]
    for tied in (True, False):
        path = model_file(tied)
        trainer = Trainer(load_model(path, threads=1), TrainOptions(n_ctx=32))
        trainer.init_lora(4, 8, ("attn_q",), 1)
        losses.append(trainer.step(samples, 1e-3).loss)
        overwrite(path)
        if tied:
            losses.append(trainer.step(samples, 1e-3).loss)
    assert losses[1] < losses[0]
    for compute in (partial(trainer.step, samples, 1e-3), partial(trainer.evaluate, samples)):
        with pytest.raises(FileChanged, match="model.gguf: was written to while in use"):
            compute()
    assert trainer.adapter().pairs  # what was trained can still be saved


def test_metadata_are_read_once(whole, model_file):
    path = model_file(True)
    file, wanted = open_model(path), open_model(whole(True)).metadata
    overwrite(path)
    assert wanted.keys() == file.metadata.keys()
    for key, value in wanted.items():
        assert (
            np.array_equal(value, file.metadata[key]) if isinstance(value, np.ndarray) else value == file.metadata[key]
        )
    with pytest.raises(FileChanged, match=f"^{path}: was written to while in use: it had .* bytes .*, now it has "):
        file.data("output_norm.weight")


def test_a_changed_time_is_enough(model_file):
    path = model_file(True)
    file = open_model(path)
    assert file.data("output_norm.weight").any()
    with open(path, "r+b") as other:
        other.write(b"GGUF")
    os.utime(path, ns=(0, 10**18))
    with pytest.raises(FileChanged):
        file.data("output_norm.weight")


def test_what_was_given_back_is_not_read_from_another_file(model_file, tmp_path):
    path = model_file(True)
    file = open_model(path, use_mmap=False)
    wanted = file.data("blk.0.ffn_up.weight").copy()
    file.release("blk.0.ffn_up.weight", done=True)
    (tmp_path / "new").write_bytes(b"\0" * os.path.getsize(path))
    os.rename(path, tmp_path / "old")
    os.rename(tmp_path / "new", path)
    np.testing.assert_array_equal(file.data("blk.0.ffn_up.weight"), wanted)
    file.release("blk.0.ffn_up.weight", done=True)
    os.truncate(tmp_path / "old", 10)
    with pytest.raises(FileChanged):
        file.data("blk.0.ffn_up.weight")


def test_of_a_split_model_the_part_is_named(tmp_path, whole):
    from llamacy.formats.gguf_writer import write_gguf

    with open_model(whole(False)) as model:
        metadata = dict(model.metadata)
        tensors = [(t.name, t.type, t.shape, model.data(t.name).copy()) for t in model.tensors.values()]
    paths = []
    for index in range(2):
        own = [entry for entry in tensors if (entry[0] == "token_embd.weight") == bool(index)]
        split = {
            "split.no": np.uint16(index),
            "split.count": np.uint16(2),
            "split.tensors.count": np.int32(len(tensors)),
        }
        paths.append(tmp_path / f"m-{index + 1:05}-of-00002.gguf")
        write_gguf(paths[-1], (metadata if index == 0 else {}) | split, own)
    model = load_model(paths[0], threads=1)
    wanted = logits_of(model, [1, 2, 3])
    overwrite(paths[0])
    np.testing.assert_array_equal(logits_of(model, [1, 2, 3]), wanted)
    overwrite(paths[1])
    with pytest.raises(FileChanged, match="m-00002-of-00002.gguf"):
        logits_of(model, [1, 2, 3])


def test_no_descriptor_is_left_open(model_file):
    path, before = model_file(True), len(os.listdir("/proc/self/fd"))
    file = open_model(path)
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before
    file = open_model(path)
    del file
    assert len(os.listdir("/proc/self/fd")) == before
