"""Which type a mix gives each tensor: against what llama.cpp's own quantiser chose for a model of 24 layers."""

import json
from pathlib import Path

import pytest

from llamacy.formats.layout import TensorInfo
from llamacy.formats.types import by_name
from llamacy.model.mixes import FALLBACKS, MIXES, Wishes, choose_types, fitting, mix_name
from tests.data.record_mixes import FILE_TYPES, MODELS, metadata_of, shapes_of

RECORD = json.loads((Path(__file__).resolve().parents[1] / "data" / "mixes.json").read_text())


def info(name, shape, kind="F16"):
    return TensorInfo(name, by_name(kind), tuple(shape), 0, 0)


def tensors_of(shapes):
    return [info(name, shape, "F16" if len(shape) > 1 else "F32") for name, shape in shapes.items()]


def names(chosen):
    return {name: taken.name for name, (taken, _) in chosen.items()}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("mix", FILE_TYPES)
def test_types_are_those_that_llama_cpp_chose(mix, case):
    shapes, metadata = shapes_of(*MODELS[case]), metadata_of(*MODELS[case][:-1])
    found = names(choose_types(tensors_of(shapes), metadata, MIXES[mix]))
    chosen = RECORD["models"][case][mix]
    assert found == {name: RECORD["types"][letter] for name, letter in zip(shapes, chosen, strict=True)}


def test_file_types_are_llama_cpps():
    assert {mix: MIXES[mix].file_type for mix in FILE_TYPES} == FILE_TYPES


def test_every_base_and_rule_names_a_type_and_a_fallback_fits():
    for mix in MIXES.values():
        for name in (mix.base, *(name for rules in mix.rules.values() for name, _ in rules)):
            assert fitting(by_name(name), 1024) is by_name(name)
            assert fitting(by_name(name), 96).block_size in (1, 32)
            assert fitting(by_name(name), 33).block_size == 1
    assert all(by_name(name).block_size == 256 for name in FALLBACKS)


SMALL = [
    info("token_embd.weight", (64, 512)),
    info("output.weight", (64, 512)),
    info("output_norm.weight", (512,), "F32"),
]
SMALL += [info(f"blk.{i}.{name}", (512, 512)) for i in range(16) for name in ("attn_v.weight", "ffn_down.weight")]
COUNTS = {"llama.block_count": 16, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 8}


def chosen(mix, **wishes):
    return names(choose_types(SMALL, COUNTS, MIXES[mix], Wishes(**wishes)))


def test_wishes():
    assert chosen("Q4_K_M")["output.weight"] == "Q6_K"
    assert chosen("Q4_K_M", leave_output=True)["output.weight"] == "F16"
    assert chosen("Q4_K_M", output_type="Q8_0")["output.weight"] == "Q8_0"
    assert chosen("Q4_K_M", embedding_type="Q3_K")["token_embd.weight"] == "Q3_K"
    assert set(chosen("Q4_K_M", pure=True).values()) == {"Q4_K", "F32"}
    assert set(chosen("F16").values()) == {"F16", "F32"}


def test_an_importance_matrix_changes_the_start():
    assert [chosen(mix)["blk.1.ffn_down.weight"] for mix in ("IQ4_XS", "Q4_0", "Q5_0")] == ["Q5_K", "Q4_0", "Q5_0"]
    with_one = [chosen(mix, by_importance=True)["blk.1.ffn_down.weight"] for mix in ("IQ4_XS", "Q4_0", "Q5_0")]
    assert with_one == ["IQ4_XS", "Q4_1", "Q5_1"]


def test_a_shared_embedding_is_treated_as_the_output():
    tied = [each for each in SMALL if each.name != "output.weight"]
    found = names(choose_types(tied, COUNTS, MIXES["Q4_K_S"], Wishes(output_type="Q5_0")))
    assert found["token_embd.weight"] == "Q5_0"
    assert names(choose_types(tied, COUNTS, MIXES["Q4_K_S"]))["token_embd.weight"] == "Q6_K"


def test_experts_and_what_is_never_quantised():
    more = [info("blk.0.ffn_gate_exps.weight", (4, 64, 512)), info("blk.0.ffn_gate_inp.weight", (4, 512))]
    more += [info("blk.0.attn_q.bias", (512,), "F32"), info("position_embd.weight", (64, 512)), info("v.a", (64, 512))]
    found = names(choose_types(SMALL + more, COUNTS, MIXES["MXFP4_MOE"]))
    assert found["blk.0.ffn_gate_exps.weight"] == "MXFP4" and found["blk.0.attn_v.weight"] == "Q8_0"
    kept = ("blk.0.ffn_gate_inp.weight", "position_embd.weight", "v.a")
    assert [found[name] for name in kept] == ["F16"] * 3
    assert found["blk.0.attn_q.bias"] == "F32"
    eight = names(choose_types(SMALL, COUNTS | {"llama.expert_count": 8}, MIXES["Q4_K_M"]))
    assert eight["blk.7.attn_v.weight"] == "Q8_0"


def test_odd_metadata_does_not_matter():
    for heads in ("many", None, [8, 8], 0, -1):
        metadata = {
            "llama.block_count": 16,
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": heads,
        }
        assert set(names(choose_types(SMALL, metadata, MIXES["Q4_K_M"])).values()) == {"Q4_K", "Q6_K", "F32"}


@pytest.mark.parametrize(
    ("text", "name"),
    [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("15", "Q4_K_M"), ("iq4_nl", "IQ4_NL"), ("bf16", "BF16"), ("0", "F32")],
)
def test_names_of_mixes(text, name):
    assert mix_name(text) == name


@pytest.mark.parametrize("text", ["", "Q9", "Q4", "99", "IQ2_XXS", "²"])
def test_unknown_names(text):
    assert mix_name(text) is None
