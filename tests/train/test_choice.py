"""Expressions, layers and patterns: which matrices they find, by PEFT's rule, and what finds nothing."""

import json
import math
import re

import pytest

from llamacy.cli import finetune as command
from llamacy.cli.run import run
from llamacy.errors import UsageError
from llamacy.formats.adapter import load_adapter
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from llamacy.model.config import read_config
from llamacy.train.choice import settled
from llamacy.train.lora import pair_ranks, places, rank_and_scale
from llamacy.train.options import LISTS, TARGETS, TrainOptions, alpha_patterns, rank_patterns, target_modules
from tests.model.tiny import write_llama
from tests.train.test_init_lora import MODEL

DEEP = twin.Config(n_vocab=97, n_embd=32, n_head=4, n_head_kv=2, n_ff=48, n_layer=12)
MODULES = {f"attn_{key[0]}" if key != "o" else "attn_output": f"self_attn.{key}_proj" for key in "qkvo"}
MODULES |= {f"ffn_{key}": f"mlp.{key}_proj" for key in ("gate", "up", "down")}
NAMES = {f"blk.{n}.{key}.weight": f"model.layers.{n}.{module}" for n in range(12) for key, module in MODULES.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "m.gguf"
    write_llama(path, DEEP, twin.random_weights(DEEP, 5), "F32")
    with open_model(str(path)) as file:
        return read_config(file)


def chosen(config, text, **how):
    """The names of the tensors that a run with these targets trains."""
    options = settled(config, TrainOptions(targets=target_modules(text) if text else tuple(MODULES), **how))
    return set(places(config, options.targets, options.num_layers))


EXPRESSIONS = [
    r"layers\.(1[0-9])\..*q_proj",
    r".*\.(q|v)_proj",
    r"model\.layers\.\d+\.mlp\.(?:up|down)_proj",
    r"layers.3.mlp.up_proj",
    r"self_attn.o_proj",
    r"q_proj|layers\.0\.self_attn\.k_proj",
    r"layers\.\d{1,1}\.self_attn\..*",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_finds_whole_names_and_ends_behind_a_dot(config, text):
    wanted = {ours for ours, name in NAMES.items() if re.match(rf"(.*\.)?({text})$", name)}
    assert chosen(config, text) == wanted and 0 < len(wanted) < len(NAMES)


def test_expressions_beside_words_and_gguf_s_names(config):
    found = chosen(config, r"attn_q,layers\.(2|3)\.mlp\..*,blk.5.ffn_down,blk.6.ffn_up.weight")
    assert found == {
        name
        for name in NAMES
        if ".attn_q" in name or name.startswith(("blk.2.ffn", "blk.3.ffn"))
        or name in ("blk.5.ffn_down.weight", "blk.6.ffn_up.weight")
    }  # fmt: skip


RANGES = {"3": [3], "1-3,7": [1, 2, 3, 7], "9-": [9, 10, 11], " 0 - 1 ,11": [0, 1, 11]}


@pytest.mark.parametrize("text", RANGES)
def test_layers(config, text):
    layers, given = RANGES[text], LISTS["layers"](text)
    for targets, keys in (("attn_q,ffn_up", ("attn_q", "ffn_up")), (None, MODULES)):
        assert chosen(config, targets, layers=given) == {f"blk.{n}.{key}.weight" for n in layers for key in keys}


CALLED = "matches no matrix of this model; they are called as model.layers.0.self_attn.q_proj is"
REFUSED = {
    "an expression": (r"layers\.12\..*", {}, "--target-modules: .*layers.*12.* matches no matrix"),
    "one of two": (r"q_proj,nothing\..*", {}, f"'nothing.* {CALLED}"),
    "a tensor": ("blk.12.ffn_up.weight", {}, f"'blk.12.ffn_up.weight' {CALLED}"),
    "a layer": ("q_proj", {"layers": ((12, 12),)}, "--layers: the model has layers 0 to 11, got 12"),
    "a range": ("q_proj", {"layers": ((3, 40),)}, "--layers: the model has layers 0 to 11, got 40"),
    "no target there": (r"layers\.2\.mlp\..*", {"layers": ((3, 3),)}, "--layers: none of"),
    "no target in the last": (r"layers\.2\.mlp\..*", {"num_layers": 1}, "--num-layers"),
    "a rank": ("q_proj", {"rank_pattern": (("q_proj", 3), ("w", 4))}, "--rank-pattern: 'w' matches no matrix that is"),
    "an alpha": ("q_proj", {"alpha_pattern": (("v_proj", 3.0),)}, "--alpha-pattern: 'v_proj' matches no matrix that"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_matches_nothing_is_refused_by_name(config, case):
    text, how, words = REFUSED[case]
    with pytest.raises(UsageError, match=words) as caught:
        settled(config, TrainOptions(targets=target_modules(text), **how))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("read", "text", "flag"),
    [
        (target_modules, "layers.(1", "--target-modules: 'layers.\\(1' is no regular expression"),
        (target_modules, "qproj", "--target-modules: 'qproj' is unknown"),
        (rank_patterns, "q_proj", "--rank-pattern: wanted REGEX=NUMBER"),
        (rank_patterns, "q_proj=x", "--rank-pattern: wanted REGEX=NUMBER"),
        (rank_patterns, "q_proj=2.5", "--rank-pattern: wanted REGEX=NUMBER"),
        (rank_patterns, "q_proj=2,", None),
        (rank_patterns, "=2", "--rank-pattern: wanted REGEX=NUMBER"),
        (rank_patterns, "(=2", "--rank-pattern: '\\(' is no regular expression"),
        (alpha_patterns, "q=1,v", "--alpha-pattern: wanted REGEX=NUMBER"),
        (LISTS["layers"], "3-1", "--layers: wanted numbers"),
        (LISTS["layers"], "-3", "--layers: wanted numbers"),
        (LISTS["layers"], "", "--layers: wanted numbers"),
    ],
)
def test_what_is_no_list(read, text, flag):
    if flag is None:
        assert read(text) == (("q_proj", 2),)
        return
    with pytest.raises(UsageError, match=flag):
        read(text)


def test_layers_and_the_last_layers_exclude_each_other():
    with pytest.raises(UsageError, match="--layers and --num-layers are both given"):
        TrainOptions(layers=((1, 1),), num_layers=2)


def test_the_first_pattern_that_matches_gives_rank_and_alpha(config):
    ranks = rank_patterns(r"layers\.1\.self_attn\.q_proj=2,q_proj=3,mlp\..*=5,layers\.\d{1,2}\.mlp\.up_proj=6")
    alphas = alpha_patterns(r"model\.layers\.0\..*=3,v_proj=1e1")
    for rslora in (False, True):
        own = {"ranks": (("attn_k", 7),), "rank_pattern": ranks, "alpha_pattern": alphas}
        options = TrainOptions(rank=4, alpha=8.0, rslora=rslora, **own)
        found, of = pair_ranks(config, options), rank_and_scale("llama", options, 4, options.file_alpha)
        for ours, name in NAMES.items():
            key = ours.split(".")[2]
            rank = 5 if ".mlp." in name else 7 if key == "attn_k" else 4
            rank = {"model.layers.1.self_attn.q_proj": 2}.get(name, 3) if "q_proj" in name else rank
            alpha = 3 if ".layers.0." in name else 10 if "v_proj" in name else 8
            assert found[ours] == rank
            assert of(ours, key) == (rank, pytest.approx(alpha / (math.sqrt(rank) if rslora else rank)))


def test_a_run_writes_patterns_that_give_peft_the_same_matrices_ranks_and_scales(tmp_path):
    """By PEFT's own rule, spelled out here: the first of a table's expressions that matches a module's name."""
    (tmp_path / "d.txt").write_text("a b c d e f g\n" * 20)
    data = ["-m", str(MODEL), "--train-data", str(tmp_path / "d.txt"), "--max-steps", "1", "--ctx-size", "32"]
    patterns = ["--rank", "4", "--rank-pattern", "q_proj=2,up_proj=6", "--alpha-pattern", "q_proj=3"]
    place = ["--target-modules", ".*(q|up|v)_proj", "--lora-format", "peft", "--save-path", str(tmp_path / "p")]
    assert run(command.main, [*data, *patterns, *place, "--checkpoint-out", ""]) == 0
    saved, adapter = json.loads((tmp_path / "p/adapter_config.json").read_text()), load_adapter(tmp_path / "p")

    def by_peft(table, default, module):
        return next((value for key, value in saved[table].items() if re.match(rf"(.*\.)?({key})$", module)), default)

    wanted = {"attn_q": (2, 3), "attn_v": (4, 16), "ffn_up": (6, 16)}
    assert {name.split(".")[2] for name in adapter.pairs} == wanted.keys()
    for name, pair in adapter.pairs.items():
        _, layer, key, _ = name.split(".")
        module, (rank, alpha) = f"model.layers.{layer}.{MODULES[key]}", wanted[key]
        assert by_peft("rank_pattern", saved["r"], module) == pair.rank == rank
        assert by_peft("alpha_pattern", saved["lora_alpha"], module) == alpha
        assert pair.scale == pytest.approx(alpha / rank)
        assert any(module.endswith(f".{target}") for target in saved["target_modules"])


def test_targets_have_no_expressions():
    assert target_modules(",".join(TARGETS)) == tuple(TARGETS)
