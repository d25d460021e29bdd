"""Logits of small random llamas against the float64 twin on the same dequantised weights; batching changes nothing.

With f32 activations each of the some 20 sums of 64 to 96 products on the way rounds by u = 6e-8 per term, and errors
add up like random walks: 2e-5 of the largest logit is ten times what is seen. With 8 bits an input moves by
amax / 254 / 3^1/2 on average, 0.5 % of a normal block's size, 9 roundings in a row 1.5 %: 3 % is allowed. With 16 bits
the f16 cache rules: 2^-11 per key and value.
"""

import itertools
import os
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model.tiny import CONFIG, logits_of, tokens_of, use_isa, write_llama

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
VARIANTS = {
    "one key/value head": replace(CONFIG, n_head_kv=1),
    "as many key/value heads": replace(CONFIG, n_head_kv=4),
    "linear rope scaling": replace(CONFIG, rope_scale=4.0),
    "frequency factors": replace(CONFIG, rope_factors=(1.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)),
    "another rope base": replace(CONFIG, rope_theta=500000.0),
    "a large epsilon": replace(CONFIG, rms_eps=0.1),
    "no size a multiple of 16": replace(CONFIG, n_embd=40, n_ff=52, n_vocab=43),
    "three layers": replace(CONFIG, n_layer=3),
}


def assert_close(found, exact, share):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=share * np.abs(exact).max())


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


@pytest.fixture
def tiny(tmp_path):
    """A function (config, type, tied, **load_model's) -> (Model, exact weights)."""

    def make(config=CONFIG, type_name="Q4_0", tied=False, **how):
        path = tmp_path / "tiny.gguf"
        exact = write_llama(path, config, twin.random_weights(config, 20, tied), type_name)
        return load_model(path, **({"activations": "f32", "threads": 2} | how)), exact

    return make


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_every_type(tiny, name, tied, isa, monkeypatch):
    use_isa(monkeypatch, isa)
    model, exact = tiny(type_name=name, tied=tied)
    tokens = tokens_of(CONFIG, 21)
    assert_close(logits_of(model, tokens), twin.forward(CONFIG, exact, tokens), 2e-5)


def test_a_mix_of_types(tiny):
    model, exact = tiny(type_name=lambda name: TYPES[sum(name.encode()) % len(TYPES)])
    tokens = tokens_of(CONFIG, 21)
    assert_close(logits_of(model, tokens), twin.forward(CONFIG, exact, tokens), 2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(tiny, name):
    config = VARIANTS[name]
    model, exact = tiny(config, "F16" if config.n_embd % 32 else "Q5_1")
    tokens = tokens_of(config, 40)
    assert_close(logits_of(model, tokens), twin.forward(config, exact, tokens), 2e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
        {"rope.scale_linear": 8.0, "rope.scaling.factor": 4.0},
    ],
    ids=" ".join,
)
def test_every_way_to_write_linear_rope_scaling(tmp_path, keys):
    plain = dict.fromkeys(["llama.rope.scaling.type", "llama.rope.scaling.factor"])
    change = plain | {f"llama.{key}": value for key, value in keys.items()}
    exact = write_llama(tmp_path / "a.gguf", CONFIG, twin.random_weights(CONFIG, 20), "Q8_0", change=change)
    tokens = tokens_of(CONFIG, 30)
    found = logits_of(load_model(tmp_path / "a.gguf", activations="f32", threads=2), tokens)
    assert_close(found, twin.forward(VARIANTS["linear rope scaling"], exact, tokens), 2e-5)


def test_positions_far_from_zero(tiny):
    model, exact = tiny()
    tokens = tokens_of(CONFIG, 150)
    assert_close(logits_of(model, tokens), twin.forward(CONFIG, exact, tokens), 2e-5)


def test_biases(tmp_path):
    weights = twin.random_weights(CONFIG, 20)
    for name, shape in twin.linear_shapes(CONFIG).items():
        weights[f"blk.1.{name}.bias"] = twin.uniform(len(name), shape[:1]).astype(np.float32)
    exact = write_llama(tmp_path / "biased.gguf", CONFIG, weights, "Q8_0")
    tokens = tokens_of(CONFIG, 9)
    model = load_model(tmp_path / "biased.gguf", activations="f32", threads=2)
    assert_close(logits_of(model, tokens), twin.forward(CONFIG, exact, tokens), 2e-5)


@pytest.mark.parametrize(("activations", "share"), [("int8", 0.03), ("int16", 0.002)])
@pytest.mark.parametrize("name", TYPES)
def test_rounded_activations(tiny, name, activations, share):
    model, exact = tiny(type_name=name, activations=activations)
    tokens = tokens_of(CONFIG, 21)
    wanted = twin.forward(CONFIG, exact, tokens)
    assert rms(logits_of(model, tokens) - wanted) < share * rms(wanted)


@pytest.mark.parametrize("activations", ["f32", "int8", "int16"])
@pytest.mark.parametrize("name", ["Q4_1", "F16"])
def test_one_two_and_three_threads_are_bitwise_equal(tiny, name, activations):
    tokens = tokens_of(CONFIG, 37)
    found = [logits_of(tiny(type_name=name, activations=activations, threads=n)[0], tokens) for n in (1, 2, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_slots_mixed_in_one_step_equal_each_alone(tiny, activations):
    model, _ = tiny(activations=activations)
    prompts = [tokens_of(CONFIG, n, seed=n) for n in (1, 20, 33, 7)]
    alone = [logits_of(model, prompt) for prompt in prompts]
    session = model.new_session(len(prompts), 64)
    # continuous batching: the first slot is a step behind, slots come in turns, some with one token, some with many
    done = [0] * len(prompts)
    for share in (0, 1, 5, 3, 16, 1, 64):
        batch = [(slot, p) for slot in reversed(range(len(prompts))) for p in _next(done, prompts, slot, share)]
        if not batch:
            continue
        slots, positions = np.array(batch).T
        tokens = [prompts[slot][p] for slot, p in batch]
        logits = session.step(tokens, positions, slots, np.arange(len(batch)))
        for (slot, p), row in zip(batch, logits, strict=True):
            np.testing.assert_array_equal(row, alone[slot][p])
    assert done == [len(prompt) for prompt in prompts]


@pytest.mark.parametrize("cache_types", [(None, None), ("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "f16")])
@pytest.mark.parametrize("isa", kernels.available())
def test_long_sequences_batched_or_not_on_any_threads_are_bitwise_equal(tiny, isa, cache_types, monkeypatch):
    # over 512 positions: three chunks, dealt to the threads singly where a step is small
    use_isa(monkeypatch, isa)
    tokens, found = tokens_of(CONFIG, 531), []
    for threads, cuts in ((1, [0, 512, 531]), (2, [0, 200, 231, 531]), (3, [0, 500, 520, *range(521, 532)])):
        session = tiny(threads=threads, activations="int8", cache_types=cache_types)[0].new_session(2, 700)
        for lo, hi in itertools.pairwise(cuts):
            logits = session.step(tokens[lo:hi], range(lo, hi), [1] * (hi - lo), [hi - lo - 1])
        found.append(logits)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16"])
@pytest.mark.parametrize("isa", kernels.available())
def test_a_wide_model_with_8_bits_gives_one_token_alone_the_bits_it_has_among_others(tiny, isa, name, monkeypatch):
    # wide enough for 8-bit activations; what checked drafts and batches rely on
    use_isa(monkeypatch, isa)
    config = replace(CONFIG, n_embd=1024, n_head=8, n_ff=1056, n_layer=1)
    model, _ = tiny(config, name, activations="int8")
    tokens, session = tokens_of(config, 9), model.new_session(1, 16)
    for i, row in enumerate(logits_of(model, tokens)):
        np.testing.assert_array_equal(session.step(tokens[i : i + 1], [i], [0], [0])[0], row)


def test_more_threads_than_processors_wait_asleep(tiny):
    # 16 threads at 20 barriers a token: spinning out their time slices they would take minutes
    tokens, found = tokens_of(CONFIG, 30), []
    for threads in (1, 16):
        session = tiny(threads=threads)[0].new_session(1, 64)
        for i, token in enumerate(tokens):
            logits = session.step([token], [i], [0], [0])
        found.append(logits)
    np.testing.assert_array_equal(*found)


def test_a_q8_0_cache_is_half_of_an_f16_one_and_near_it(tiny):
    # 4.5 bits less per key and value than f16: 8-bit codes are off by d / 2, 0.2 % of a block's largest, as activations
    (coarse, exact), (fine, _) = (tiny(activations="f32", cache_types=(kind, kind)) for kind in ("q8_0", "f32"))
    tokens = tokens_of(CONFIG, 300)
    wanted = logits_of(fine, tokens, 512)
    assert 0 < np.abs(logits_of(coarse, tokens, 512) - wanted).max() < 0.03 * np.abs(wanted).max()
    sizes = {kind: tiny(cache_types=(kind, kind))[0].new_session(2, 700).cache_bytes for kind in ("q8_0", "f16", "f32")}
    assert sizes["f32"] == 2 * sizes["f16"] == 2 * 4 * 2 * 2 * 768 * CONFIG.n_embd // CONFIG.n_head * 2
    assert sizes["q8_0"] == sizes["f16"] * 18 // 32  # heads of 16 elements, of which each has a scale of two bytes


def test_a_cache_takes_memory_only_where_it_is_used(tiny):
    session = tiny(cache_types=("f32", "f32"))[0].new_session(64, 1 << 14)
    assert session.cache_bytes > 500e6
    before = resident_bytes()
    session.step(tokens_of(CONFIG, 64), [0] * 64, range(64), [0])
    assert resident_bytes() - before < 64 * 2 * 2**21 + 32e6  # two huge pages at most for each slot's first chunk


def test_no_page_of_the_file_is_needed_to_look_a_tied_embedding_up(tiny):
    model, _ = tiny(replace(CONFIG, n_vocab=8001), "F32", tied=True)
    model.file.release("token_embd.weight")
    before = mapped_bytes(model.path)
    model.weights.embeddings(range(8001))
    assert mapped_bytes(model.path) == before < 8001 * 64 * 4 / 2


LOADING = """
import re, sys
from llamacy.model import load_model
def peak():
    return 1024 * int(re.search("VmHWM: *(\\d+)", open("/proc/self/status").read().replace("\\t", " "))[1])
before = peak()
model = load_model(sys.argv[1], mmap=False, threads=1)
print(peak() - before)
"""


def test_read_without_a_mapping_the_file_shrinks_as_the_weights_grow(tiny):
    model, weights = tiny(replace(CONFIG, n_embd=512, n_ff=1024, n_layer=4), "F32")
    largest = max(values.nbytes // 2 for values in weights.values())
    command = [sys.executable, "-c", LOADING, model.path]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert os.path.getsize(model.path) * 0.9 < grown < os.path.getsize(model.path) + largest + 8e6


def mapped_bytes(path):
    """Return how much of the file's mapping is in memory."""
    with open("/proc/self/smaps") as file:
        lines = file.read().splitlines()
    rows = (lines[i + 4] for i, line in enumerate(lines) if line.endswith(str(path)))
    return sum(int(row.removeprefix("Rss:").split()[0]) * 1024 for row in rows)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _next(done, prompts, slot, share):
    """Return the positions that a slot takes in this step: `share` of them, one more for every other slot."""
    first = done[slot]
    done[slot] = min(len(prompts[slot]), first + share + slot % 2)
    return range(first, done[slot])


def test_cutting_back_forgets_what_came_after(tiny):
    model, _ = tiny(activations="int8")
    first, second = tokens_of(CONFIG, 30, seed=1), tokens_of(CONFIG, 12, seed=2)
    session, wanted = model.new_session(1, 64), logits_of(model, np.r_[first[:11], second])
    session.step(first, np.arange(30), np.zeros(30, int), [])
    found = session.step(second, np.arange(11, 23), np.zeros(12, int), np.arange(12))
    np.testing.assert_array_equal(found, wanted[11:])


def test_only_the_wanted_logits_are_computed(tiny):
    model, _ = tiny()
    tokens, session = tokens_of(CONFIG, 9), model.new_session(1, 16)
    every = logits_of(model, tokens)
    assert session.step(tokens, np.arange(9), np.zeros(9, int), []).shape == (0, CONFIG.n_vocab)
    found = session.step(tokens, np.arange(9), np.zeros(9, int), [8, 2])
    np.testing.assert_array_equal(found, every[[8, 2]])
    assert session.step([], [], [], []).shape == (0, CONFIG.n_vocab)


@pytest.mark.parametrize("activations", ["f32", "int8", "int16"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [3, 21, 75])
def test_tokens_whose_logits_nobody_wants_leave_their_keys_and_change_nothing_else(tiny, activations, threads, n):
    model, _ = tiny(replace(CONFIG, n_layer=3), activations=activations, threads=threads)
    prompts = [tokens_of(CONFIG, n + 1, seed=seed) for seed in (1, 2)]
    every = [logits_of(model, prompt) for prompt in prompts]
    tokens, positions = np.r_[prompts[0][:n], prompts[1][:n]], np.r_[:n, :n]
    slots, last = np.repeat([0, 1], n), 2 * n - 1
    for wanted in ([], [last], [n - 1, 0], [last, n // 2, last], [n], list(range(last, 0, -2))):
        session = model.new_session(2, n + 1)
        found = session.step(tokens, positions, slots, wanted)
        np.testing.assert_array_equal(found, np.concatenate([rows[:n] for rows in every])[wanted])
        found = session.step([prompts[0][n], prompts[1][n]], [n, n], [0, 1], [1, 0])
        np.testing.assert_array_equal(found, [every[1][n], every[0][n]])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (([97], [0], [0], [0]), "token"),
        (([-1], [0], [0], [0]), "token"),
        (([1], [16], [0], [0]), "position"),
        (([1], [-1], [0], [0]), "position"),
        (([1], [0], [2], [0]), "slot"),
        (([1], [0], [0], [1]), "logits_at"),
        (([1, 2], [0], [0], [0]), "wanted equal"),
        (([1] * 9, range(9), [0] * 9, [0]), "at most 8"),
        (([1], [0], [0], [0], [[1.0]]), "lora_scales"),
    ],
)
def test_indices_out_of_range_are_refused(tiny, step, words):
    session = tiny()[0].new_session(2, 16, max_batch=8)
    with pytest.raises(ValueError, match=words):
        session.step(*step)


@pytest.mark.parametrize("sizes", [(1, 1 << 31, 512), (1, 1 << 45, 512), (1 << 31, 1, 512), (1, 1 << 32, 1 << 32)])
def test_sizes_beyond_counting_are_one_clear_error(tiny, sizes):
    with pytest.raises(LlamacyError, match="no memory .* try a smaller --ctx-size or --batch-size$"):
        tiny()[0].new_session(*sizes)


def test_steps_are_never_larger_than_the_cache(tiny):
    model, tokens = tiny()[0], tokens_of(CONFIG, 7)
    session, n = model.new_session(2, 7, 1 << 40), np.arange(7)
    assert session.max_batch == 14
    np.testing.assert_array_equal(session.step(tokens, n, 0 * n + 1, n), logits_of(model, tokens))


@pytest.mark.parametrize("isa", kernels.available())
def test_hidden_states_are_what_logits_are_made_of(tiny, isa, monkeypatch):
    use_isa(monkeypatch, isa)
    model, exact = tiny()
    tokens, n = tokens_of(CONFIG, 21), np.arange(21)
    session = model.new_session(1, 64)
    hidden = session.step(tokens, n, 0 * n, n[5:], hidden=True)
    assert (hidden.shape, hidden.dtype) == ((16, CONFIG.n_embd), np.float32)
    logits = hidden.astype(np.float64) @ exact["output.weight"].T
    assert_close(logits.astype(np.float32), twin.forward(CONFIG, exact, tokens)[5:], 2e-5)
