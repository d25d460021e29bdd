"""How positions turn queries and keys: tables against transformers' recorded ones, steps against the float64 twin."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.cli import finetune, info
from llamacy.cli.main import build_parser, session_context
from llamacy.errors import LlamacyError
from llamacy.formats.architectures import ARCHITECTURES
from llamacy.formats.model_file import open_model
from llamacy.generate.context import fit_context
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.model import model as models
from llamacy.model.config import ModelConfig, read_config
from llamacy.model.rope import Rope
from llamacy.model.weights import rope_factors
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model.tiny import CONFIG, logits_of, metadata, tokens_of, use_isa, write_llama

FACTS = json.loads((Path(__file__).parents[1] / "data" / "ropes.json").read_text())
# f32 there, f64 here
CLOSE = {"rtol": 1e-6}
WEIGHTS = twin.random_weights(CONFIG, 20)
HEAD = CONFIG.head_dim
KEYS = {
    "factor": "scaling.factor",
    "original_max_position_embeddings": "scaling.original_context_length",
    "attention_factor": "scaling.yarn_attn_factor",
    "beta_fast": "scaling.yarn_beta_fast",
    "beta_slow": "scaling.yarn_beta_slow",
    "truncate": "scaling.yarn_truncate",
    "mscale_all_dim": "scaling.yarn_log_multiplier",
    "rope_theta": "freq_base",
}
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


def write(path, name, config=CONFIG, change=None):
    """Write a small llama whose rope is that of a recorded case; return its exact weights."""
    settings, tensors = FACTS[name]["rope_parameters"], {}
    keys = {f"llama.rope.{key}": settings[name] for name, key in KEYS.items() if name in settings}
    kind = settings["rope_type"]
    if kind == "longrope":
        tensors = {SHORT: np.array(settings["short_factor"]), LONG: np.array(settings["long_factor"])}
    else:
        keys["llama.rope.scaling.type"] = kind
    keys["llama.rope.dimension_count"] = int(HEAD * settings.get("partial_rotary_factor", 1))
    return write_llama(path, config, WEIGHTS | tensors, change=keys | (change or {}))


@pytest.mark.parametrize("name", [name for name in FACTS if name != "llama3"])
def test_tables_are_transformers(name, tmp_path):
    write(tmp_path / "m.gguf", name)
    with open_model(tmp_path / "m.gguf") as file:
        config = read_config(file)
        frequencies, factor = config.rope.table(FACTS[name]["seq_len"] or 256, rope_factors(file, config))
    np.testing.assert_allclose(frequencies, FACTS[name]["inv_freq"], **CLOSE)
    assert factor == pytest.approx(FACTS[name]["attention_factor"], rel=1e-6)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", ["yarn", "yarn, part of a head", "dynamic, long", "longrope, short", "longrope, long"])
def test_steps_turn_by_the_tables(name, isa, tmp_path, monkeypatch):
    use_isa(monkeypatch, isa)
    exact, fact = write(tmp_path / "m.gguf", name), FACTS[name]
    model = load_model(tmp_path / "m.gguf", activations="f32", threads=2)
    n_ctx = fact["seq_len"] or 256
    tokens = tokens_of(CONFIG, min(90, n_ctx))
    if "long" in name.partition(",")[2]:
        with pytest.warns(UserWarning, match=f"the context of {n_ctx} is longer than the original"):
            found = logits_of(model, tokens, n_ctx)
    else:
        found = logits_of(model, tokens, n_ctx)
    config = replace(CONFIG, rope_tables=((fact["inv_freq"], fact["attention_factor"]),))
    wanted = twin.forward(config, exact, tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-5 * np.abs(wanted).max())


def trained(model, tokens, n_ctx):
    """The losses and gradients of one step over two sequences: a Trainer's."""
    trainer = Trainer(model, TrainOptions(n_ctx=n_ctx))
    pairs = twin.random_lora(CONFIG, 4, 5)
    trainer.init_lora(4, 8.0, tuple(TARGETS), 1)
    for name, a, b, kept in trainer._views(trainer._pass.params):
        a[:], b[:, kept] = pairs[name][0], pairs[name][1].T
    result = trainer.probe([Sample(part, np.arange(len(part)) > 0) for part in np.array_split(tokens, 2)])
    return result.loss, trainer.gradients(), pairs


def assert_trains_as_the_twin(model, config, exact, n_ctx):
    tokens = tokens_of(CONFIG, 100)
    loss, gradients, pairs = trained(model, tokens.astype(np.int32), n_ctx)
    segments = np.repeat([0, 1], [len(part) for part in np.array_split(tokens, 2)])
    targets = twin.next_token_targets(tokens, segments)
    wanted = twin.loss_and_gradients(config, exact, tokens, targets, segments, pairs, 2.0)
    assert loss == pytest.approx(wanted[0], rel=1e-5)
    for name, pair in wanted[1].items():
        for found, exactly in zip(gradients[name], pair, strict=True):
            np.testing.assert_allclose(found, exactly, rtol=0, atol=1e-4 * np.abs(exactly).max(), err_msg=name)


@pytest.mark.parametrize("name", ["yarn", "longrope, short", "longrope, long"])
def test_training_turns_by_the_tables(name, tmp_path):
    exact, fact = write(tmp_path / "m.gguf", name), FACTS[name]
    model = load_model(tmp_path / "m.gguf", activations="f32", threads=2)
    config = replace(CONFIG, rope_tables=((fact["inv_freq"], fact["attention_factor"]),))
    with pytest.warns(UserWarning) if name == "longrope, long" else pytest.MonkeyPatch.context():
        assert_trains_as_the_twin(model, config, exact, fact["seq_len"] or 256)


ROPES = (Rope(12, 500.0, factor=2.0), Rope(12, 90.0, scaling="yarn", factor=4.0, original=40))


@pytest.fixture
def two_ropes(tmp_path, monkeypatch):
    """A model whose second layer turns otherwise, part of each head only, and whose queries grow."""
    exact = write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    monkeypatch.setattr(
        models, "read_config", lambda *args: replace(read_config(*args), ropes=ROPES, temperature=(0.3, 20))
    )
    monkeypatch.setattr(ModelConfig, "rope_of", lambda self, layer: layer)
    tables = tuple(rope.table(256) for rope in ROPES)
    config = replace(CONFIG, rope_tables=tables, other_rope=(1,), temperature=(0.3, 20))
    return load_model(tmp_path / "m.gguf", activations="f32", threads=2), config, exact


def test_two_ropes_and_growing_queries(two_ropes):
    model, config, exact = two_ropes
    tokens = tokens_of(CONFIG, 70)
    wanted = twin.forward(config, exact, tokens)
    close = {"rtol": 0, "atol": 2e-5 * np.abs(wanted).max()}
    np.testing.assert_allclose(logits_of(model, tokens), wanted, **close)
    session, n = model.new_session(1, 256), np.arange(70)
    one_by_one = [session.step(tokens[i : i + 1], n[i : i + 1], [0], [0])[0] for i in n]
    np.testing.assert_allclose(one_by_one, wanted, **close)


def test_two_ropes_and_growing_queries_in_training(two_ropes):
    model, config, exact = two_ropes
    assert_trains_as_the_twin(model, config, exact, 128)


def test_tables_must_be_as_many_as_the_model_s(two_ropes):
    model, *_ = two_ropes
    tables = model.rope_tables(64)
    for wrong in (tables[:1], [(values[1:], 1.0) for values, _ in tables]):
        with pytest.raises(ValueError, match="wanted"):
            kernels.decoder.Session(model.weights, 1, 64, ropes=wrong)


def test_keys_of_a_long_context_are_not_those_of_a_short_one(tmp_path):
    """What a prompt's cache is told by: see prompt_cache."""
    write(tmp_path / "m.gguf", "longrope, short")
    model = load_model(tmp_path / "m.gguf", threads=1)
    assert model.new_session(1, 64).stretched_to is None
    with pytest.warns(UserWarning, match="the context of 65 is longer than the original 64; --ctx-size 64 or less"):
        assert model.new_session(1, 65).stretched_to == 65


@pytest.mark.parametrize(
    ("line", "n_prompt", "n_ctx"),
    [
        ("", 10, 2000),
        ("", 900, 2000),
        ("", 1500, 5596),
        ("-n 100", 10, 110),
        ("-n 100", 1950, 2050),
        ("-c 3000", 10, 3000),
        ("-c 3000 -n 4", 10, 3000),
        ("-c 1000 -n 4", 10, 14),
        ("-c 0", 10, 9000),
    ],
)
def test_the_context_that_main_opens(line, n_prompt, n_ctx):
    """Unasked it stays where positions turn as in short texts, if there is room; what is asked for is opened whole."""
    args = build_parser().parse_args(["-n", "-1", *line.split()])
    model = SimpleNamespace(config=SimpleNamespace(n_ctx_train=9000, n_ctx_plain=2000))
    assert session_context(args, model, n_prompt) == n_ctx
    assert fit_context(None, model.config) == 2000


def test_training_stays_within_the_original_length_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.gguf", "longrope, short")
    (tmp_path / "d.jsonl").write_text('{"prompt": "<5>", "completion": "<6>"}')
    words = ["-m", "m.gguf", "--train-data", "d.jsonl", "--epochs", "1", "-t", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert finetune.main(words) == 0
    with pytest.warns(UserWarning, match="the context of 65 is longer than the original 64"):
        assert finetune.main([*words, "--ctx-size", "65"]) == 0
    with open_model(tmp_path / "m.gguf") as file:
        assert (read_config(file).n_ctx_plain, read_config(file).n_ctx_train) == (64, 256)


# ---- what files may say ----


def refused(path, change=None, more=None):
    write_llama(path, CONFIG, WEIGHTS | (more or {}), change=change)
    with pytest.raises(LlamacyError) as caught:
        load_model(path, threads=1)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scaling.type": "longrope"}, f"tensor {SHORT} is missing, which longrope scaling needs"),
        ({"scaling.type": 3}, "rope scaling 3 is not supported"),
        ({"scaling.factor": -2.0}, "rope scaling -2.0"),
        ({"scaling.attn_factor": -2.0}, "rope.scaling.attn_factor -2.0: wanted a number above 0"),
        (
            {"scaling.type": "yarn", "scaling.yarn_beta_fast": float("nan")},
            "yarn_beta_fast nan: wanted a number above 0",
        ),
        ({"scaling.type": "yarn", "scaling.yarn_truncate": 1}, "yarn_truncate: wanted true or false, got 1"),
        ({"scaling.type": "yarn", "freq_base": 1.0}, "rope_theta 1.0: wanted a number above 1"),
        ({"scaling.type": "dynamic", "dimension_count": 2}, "dynamic scaling of 2 rotating elements"),
        ({"scaling.yarn_ext_factor": 0.5}, "'llama.rope.scaling.yarn_ext_factor' is 0.5, which changes"),
    ],
)
def test_ropes_that_cannot_be(change, words, tmp_path):
    assert words in refused(tmp_path / "m.gguf", {f"llama.rope.{key}": value for key, value in change.items()})


def test_factors_for_long_texts_need_those_for_short_ones(tmp_path):
    factors = np.linspace(1, 2, HEAD // 2)
    assert f"tensor {SHORT} is missing" in refused(tmp_path / "m.gguf", more={LONG: factors})
    change = {"llama.rope.scaling.type": "yarn"}
    words = "rope scaling 'yarn' beside factors for short and long texts"
    assert words in refused(tmp_path / "m.gguf", change, {SHORT: factors, LONG: factors})
    assert f"{LONG} holds -1" in refused(tmp_path / "m.gguf", more={SHORT: factors, LONG: -np.ones(HEAD // 2)})


def test_numbers_that_say_that_they_are_not_there(tmp_path):
    """-1, and 0 where it can mean nothing, are how converters write what a model does not have."""
    write(tmp_path / "m.gguf", "yarn", change={"llama.rope.scaling.yarn_attn_factor": -1.0})
    with open_model(tmp_path / "m.gguf") as file:
        usual = read_config(file).rope
    absent = {"yarn_attn_factor": 0.0, "yarn_ext_factor": -1.0, "yarn_beta_fast": 0.0, "attn_factor": 0.0}
    write(tmp_path / "m.gguf", "yarn", change={f"llama.rope.scaling.{key}": value for key, value in absent.items()})
    with open_model(tmp_path / "m.gguf") as file:
        assert read_config(file).rope == usual


def test_published_gpt_oss_s_range_is_not_rounded():
    truncates = ARCHITECTURES["gpt-oss"].truncates
    assert not truncates(32.0, 4096) and truncates(4.0, 64) and ARCHITECTURES["llama"].truncates(32.0, 4096)


def test_queries_grow_by_the_keys_of_mistral_3(tmp_path):
    """From the length that yarn stretches on, or one of their own; other families' files may not say so."""
    keys = {key: value for key, value in metadata(CONFIG).items() if key.startswith("llama.")}
    keys |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 30}
    keys |= {"llama.attention.temperature_scale": 0.25}
    change = dict.fromkeys(keys) | {key.replace("llama.", "mistral3."): value for key, value in keys.items()}
    tokens = tokens_of(CONFIG, 90)
    for length in (30, 40):
        if length == 40:
            change["mistral3.attention.temperature_length"] = 40
        exact = write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change=change | {"general.architecture": "mistral3"})
        model = load_model(tmp_path / "m.gguf", activations="f32", threads=1)
        table = Rope(HEAD, scaling="yarn", original=30).table(256)
        wanted = twin.forward(replace(CONFIG, rope_tables=(table,), temperature=(0.25, length)), exact, tokens)
        np.testing.assert_allclose(logits_of(model, tokens), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    for value in (float("nan"), float("inf")):
        change["mistral3.attention.temperature_scale"] = value
        write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change=change | {"general.architecture": "mistral3"})
        with pytest.raises(LlamacyError, match="attention.temperature_scale is"):
            load_model(tmp_path / "m.gguf", threads=1)


def test_yarn_without_the_kept_part_is_linear(tmp_path):
    write(tmp_path / "m.gguf", "yarn", change={"llama.rope.scaling.yarn_ext_factor": 0.0})
    with open_model(tmp_path / "m.gguf") as file:
        frequencies, factor = read_config(file).rope.table(256)
    np.testing.assert_allclose(frequencies, FACTS["linear"]["inv_freq"], **CLOSE)
    assert factor == 1


def test_the_attention_factor_of_a_file(tmp_path):
    """llama.cpp's key multiplies what a scaling says; longrope's files hold the whole factor."""
    for name, wanted in (
        ("linear", 1.25),
        ("yarn", 1.25 * FACTS["yarn"]["attention_factor"]),
        ("longrope, long", 1.25),
    ):
        write(tmp_path / "m.gguf", name, change={"llama.rope.scaling.attn_factor": 1.25})
        with open_model(tmp_path / "m.gguf") as file:
            config = read_config(file)
            assert config.rope.table(256, rope_factors(file, config))[1] == pytest.approx(wanted)


def test_info_tells_the_scaling(tmp_path, capsys):
    write(tmp_path / "m.gguf", "yarn")
    assert info.main([str(tmp_path / "m.gguf")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in ("rope scaling yarn", "rope factor 4", "context before 64"):
        assert line.split() in lines


def keys_of(path, family, change):
    """Write the metadata of a small model of another family with its embedding alone; return its ModelConfig."""
    keys = {key: value for key, value in metadata(CONFIG).items() if key.startswith("llama.")}
    moved = dict.fromkeys(keys) | {key.replace("llama", family, 1): value for key, value in keys.items()}
    moved |= {"general.architecture": family} | {f"{family}.{key}": value for key, value in change.items()}
    write_llama(path, CONFIG, WEIGHTS, change=moved)
    with open_model(path) as file:
        return read_config(file)


def test_a_rope_of_their_own_in_layers_with_a_window(tmp_path):
    scaled = {"attention.sliding_window": 16, "rope.freq_base": 1e6, "rope.scaling.type": "linear"}
    scaled |= {"rope.scaling.factor": 8.0, "block_count": 7}
    config = keys_of(tmp_path / "m.gguf", "gemma3", scaled)
    assert [(rope.theta, rope.factor) for rope in config.ropes] == [(1e6, 8.0), (10000.0, 1.0)]
    assert [config.rope_of(layer) for layer in range(7)] == [1, 1, 1, 1, 1, 0, 1]
    config = keys_of(tmp_path / "m.gguf", "gemma3", scaled | {"rope.freq_base_swa": 5000.0})
    assert config.ropes[1].theta == 5000
    # their base is the others' where the family has no other
    config = keys_of(tmp_path / "m.gguf", "olmo2", scaled)
    assert [(rope.theta, rope.factor) for rope in config.ropes] == [(1e6, 8.0), (1e6, 1.0)]
    assert [config.rope_of(layer) for layer in range(4)] == [1, 1, 1, 0]
    config = keys_of(tmp_path / "m.gguf", "olmo2", {"rope.freq_base": 1e6})
    assert len(config.ropes) == 1 and config.rope_of(0) == 0
    for value in (-1.0, float("nan")):
        with pytest.raises(LlamacyError, match="freq_base_swa: wanted a number above 0"):
            keys_of(tmp_path / "m.gguf", "gemma3", scaled | {"rope.freq_base_swa": value})
