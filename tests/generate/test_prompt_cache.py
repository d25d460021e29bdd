"""--prompt-cache: the same text with and without it, whatever the file holds; and what is no such file."""

import numpy as np
import pytest

from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.generate.engine import Engine
from llamacy.generate.prompt_cache import PromptCache
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.generate.fakes import FakeModel
from tests.generate.test_conversation import OPEN, chat, turn  # noqa: F401  a fixture
from tests.generate.test_main_cli import main  # noqa: F401  a fixture
from tests.model import tiny

PROMPT = "a prompt that is longer than a tile of the cache"
COUNT = 1 + len(PROMPT)


@pytest.fixture
def cached(main, tmp_path):  # noqa: F811
    """Return a function: words -> (stdout, stderr) of main with a cache file; drawn text, not a fixed answer."""

    def call(*words, prompt=PROMPT, code=0, **more):
        got, out, err = main(
            "-p", prompt, "-n", "8", "--temp", "0", "--prompt-cache", str(tmp_path / "c"), *words, answer=None, **more
        )
        assert got == code, err
        return out, err

    call.path = tmp_path / "c"
    return call


def computed(err):
    """Return how many prompt tokens were computed, by the timings on stderr."""
    return int(err.split("\nprompt: ")[1].split()[0])


def test_the_text_is_the_same_and_the_prompt_is_computed_once(cached, main):  # noqa: F811
    plain = main("-p", PROMPT, "-n", "8", "--temp", "0", answer=None)[1]
    out, err = cached()
    assert out == plain and computed(err) == COUNT and "computed before" not in err
    written = cached.path.read_bytes()
    out, err = cached()
    assert out == plain and computed(err) == 1
    assert f"{COUNT - 1} of the prompt's {COUNT} tokens were computed before" in err
    assert cached.path.read_bytes() == written
    # another context, a longer prompt, one that leaves the beginning
    for words, prompt, n in ((["-c", "300"], PROMPT, 1), ([], PROMPT + " more", 5), ([], PROMPT[:20] + "!", 1)):
        plain = main("-p", prompt, "-n", "8", "--temp", "0", *words, answer=None)[1]
        out, err = cached(*words, "--prompt-cache-ro", prompt=prompt)
        assert out == plain and computed(err) == n
    assert cached.path.read_bytes() == written


def test_what_is_generated_is_kept_on_demand(cached):
    first = cached("--prompt-cache-all")[0].rstrip("\n")
    # all but the last token of the first text was computed
    out, err = cached(prompt=first + "x")
    assert computed(err) == 2
    # a shorter prompt than the file has: it is there already
    written = cached.path.read_bytes()
    assert computed(cached()[1]) == 1 and cached.path.read_bytes() == written


def test_other_settings_are_computed_anew_with_a_note(cached, monkeypatch):
    plain = cached()[0]
    monkeypatch.setattr(FakeModel, "threads", 2)
    assert computed(cached()[1]) == 1  # threads change nothing
    for name, value in (("activations", "f32"), ("cache_types", ("f32", "f32"))):
        target = FakeModel if name == "activations" else type(FakeModel().new_session())
        monkeypatch.setattr(target, name, value, raising=False)
        monkeypatch.setattr(FakeModel, "__init__", _with(FakeModel.__init__, name, value))
        out, err = cached("--prompt-cache-ro")
        assert out == plain and computed(err) == COUNT
        assert "made with another precision: the prompt is computed anew" in err
    cached()
    assert computed(cached()[1]) == 1  # the file is the new one's now


def _with(init, name, value):
    def changed(self, **more):
        init(self, **more)
        if name == "activations":
            self.activations = value

    return changed


def test_a_chat_begins_with_the_file_too(chat, tmp_path):  # noqa: F811
    words = ["-cnv", "--chat-template", "chatml", "-sys", "S" * 40, "-n", "4", "--temp", "0"]
    file = ["--prompt-cache", str(tmp_path / "c")]
    plain = chat(*words, stdin="one\ntwo\n")[1]
    assert chat(*words, *file, stdin="one\ntwo\n")[1] == plain
    code, out, err = chat(*words, *file, stdin="one\ntwo\n")
    assert out == plain and "tokens were computed before" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGSN" + bytes(100), "wanted a prompt cache that bin/main wrote"),
        (b"some text\n", "wanted a prompt cache that bin/main wrote"),
        ("model", "is no prompt cache that bin/main wrote; choose another --prompt-cache"),
        ("version", "a prompt cache of another version of llamacy; remove it"),
        ("cut", "damaged"),
        ("bit", "the prompt cache is damaged (its checksum is wrong); remove it"),
        ("tokens", "the prompt cache is damaged (its parts do not fit together); remove it"),
        ("missing", "the prompt cache is damaged ("),
    ],
)
def test_what_is_no_cache_is_refused_and_kept(cached, content, message):
    cached()
    data = cached.path.read_bytes()
    if content == "cut":
        data = data[: len(data) // 2]
    elif content == "bit":
        data = data[:-70] + bytes([data[-70] ^ 4]) + data[-69:]
    elif isinstance(content, bytes):
        data = content
    if isinstance(content, bytes) or content in ("cut", "bit"):
        cached.path.write_bytes(data)
    else:
        with open_model(cached.path) as file:
            metadata, tensors = (
                dict(file.metadata),
                [(t.name, t.type, t.shape, np.array(file.data(t.name))) for t in file.tensors.values()],
            )
        key = "llamacy.prompt_cache."
        change = {
            "model": {"general.type": "model"},
            "version": {key + "version": 99},
            "tokens": {key + "tokens": np.arange(5, dtype=np.int32)},
            "missing": {key + "identity": "{"},
        }[content]
        write_gguf(cached.path, metadata | change, tensors)
    before = cached.path.read_bytes()
    out, err = cached(code=1)
    assert out.strip("\n") in ("", PROMPT) and message in err and err.count("\n") == 1
    assert cached.path.read_bytes() == before


def test_an_empty_file_is_filled(cached):
    cached.path.touch()
    cached()
    assert computed(cached()[1]) == 1


def test_its_flags_need_a_file(main):  # noqa: F811
    for flag in ("--prompt-cache-all", "--prompt-cache-ro"):
        code, _, err = main("-p", "Hi", flag)
        assert code == 2 and "need a file: --prompt-cache FILE" in err


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    tiny.write_llama(path, tiny.CONFIG, twin.random_weights(tiny.CONFIG, seed=3), "Q8_0")
    return path


@pytest.mark.parametrize("types", [("s16", "s16"), ("f16", "q8_0"), ("f32", "f32")])
@pytest.mark.parametrize(("n", "n_ctx"), [(5, 20), (16, 400), (300, 301), (255, 700), (256, 256)])
def test_a_cache_that_was_put_back_gives_the_same_bits(model_path, types, n, n_ctx):
    model = load_model(model_path, threads=1, cache_types=types)
    ids = tiny.tokens_of(tiny.CONFIG, n + 4)
    first = model.new_session(2, 512)
    first.step(ids[:n], range(n), [1] * n, [])
    tiles = first.read_cache(1, n)
    second = model.new_session(1, max(n_ctx, n + 4))
    second.write_cache(0, tiles)
    sessions = [(first, 1), (second, 0)]
    rows = [s.step(ids[n:], range(n, n + 4), [slot] * 4, range(4)) for s, slot in sessions]
    assert np.array_equal(*rows)
    for wrong in (tiles[:, :, 1:], tiles[1:], np.concatenate([tiles] * 50, axis=1)):
        with pytest.raises(ValueError, match="do not fit"):
            second.write_cache(0, wrong)
    for slot, count in ((2, 5), (-1, 5), (0, 513), (0, -1)):
        with pytest.raises(ValueError, match="positions"):
            first.read_cache(slot, count)


def test_the_model_is_known_by_its_files(model_path, tmp_path):
    notes = []
    path = tmp_path / "m.gguf"
    path.write_bytes(model_path.read_bytes())
    ids = [int(token) for token in tiny.tokens_of(tiny.CONFIG, 40)]

    def texts(model):
        engine, made = Engine(model, n_ctx=64), []
        cache = PromptCache(tmp_path / "c", engine, note=notes.append)
        cache.restore(ids)
        request = Request(ids, SamplingParams(temperature=0), n_predict=6, on_token=lambda token: made.append(token.id))
        engine.run(request)
        cache.keep(ids)
        return made

    made = texts(load_model(path, threads=1))
    assert texts(load_model(path, threads=2)) == made and "39 of the prompt's 40 tokens" in notes[-1]
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    texts(load_model(path, threads=1))
    assert notes[-1].endswith("made with another model: the prompt is computed anew")
    texts(
        load_model(path, threads=1, overrides={"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 2.0})
    )
    assert notes[-1].endswith("made with another model: the prompt is computed anew")
