"""Other forms of the same Hugging Face folders: shards, fused experts, wrappers with images, MXFP4, what is missing."""

import json
import shutil
import struct
from functools import cache

import gguf
import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.model.from_hf import model_from_hf
from tests.model import family_cases as cases
from tests.model import hf
from tests.model.test_family_facts import expected


@cache
def tensors(case):
    return cases.tensors(case, expected(case)["tensors"])


def written(path, case, arrays, **change):
    """A folder of these tensors, its config.json changed; None takes a key away."""
    path.mkdir()
    config = {key: value for key, value in (cases.CASES[case] | change).items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps(hf.tokenizer_json(cases.N_VOCAB)))
    (path / "model.safetensors").write_bytes(arrays if isinstance(arrays, bytes) else hf.safetensors(arrays))
    return path


def converted(folder, outtype=None):
    """({tensor: (type's name, bytes)}, metadata, notes)."""
    out = folder.parent / "out.gguf"
    with HfFolder(folder) as opened:
        metadata, entries, notes = model_from_hf(opened, outtype)
        write_gguf(out, metadata, entries)
    with open_model(out) as file:
        found = {name: (info.type.name, info.shape, file.data(name).tobytes()) for name, info in file.tensors.items()}
        return found, {k: v for k, v in file.metadata.items() if not k.startswith(("tokenizer.", "general."))}, notes


@cache
def plain(case, folder):
    return converted(written(folder / "plain", case, tensors(case)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("forms")


def same(found, case, base):
    shutil.rmtree(base / "plain", ignore_errors=True)
    wanted = plain(case, base)
    assert found[0] == wanted[0]
    np.testing.assert_equal(found[1], wanted[1])


def test_shards_that_cut_through_experts(base, tmp_path):
    arrays, folder = tensors("qwen3moe"), tmp_path / "m"
    written(folder, "qwen3moe", {})
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{i + 1}-of-00003.safetensors": dict(list(arrays.items())[i::3]) for i in range(3)}
    for name, part in parts.items():
        (folder / name).write_bytes(hf.safetensors(part))
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(converted(folder), "qwen3moe", base)


@pytest.mark.parametrize("case", ["qwen2moe", "qwen3moe", "olmoe"])
def test_experts_fused_in_the_folder(case, base, tmp_path):
    """As transformers keeps them in memory: gate's rows above up's, all experts in one tensor."""
    arrays, fused = tensors(case), {}
    for name, values in arrays.items():
        if ".experts." not in name:
            fused[name] = values
    for layer in range(2):
        one = f"model.layers.{layer}.mlp.experts"
        parts = {
            side: np.stack([arrays[f"{one}.{i}.{side}_proj.weight"] for i in range(5)])
            for side in ("gate", "up", "down")
        }
        fused[f"{one}.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        fused[f"{one}.down_proj"] = parts["down"]
    same(converted(written(tmp_path / "m", case, fused)), case, base)


WRAPPERS = {
    "gemma3": ("Gemma3ForConditionalGeneration", "language_model.model.{}"),
    "gemma3 of transformers 5": ("Gemma3ForConditionalGeneration", "model.language_model.{}"),
    "mistral3": ("Mistral3ForConditionalGeneration", "language_model.model.{}"),
}


@pytest.mark.parametrize("form", WRAPPERS)
def test_the_text_model_of_one_with_images(form, base, tmp_path):
    case, (architecture, prefix) = form.split()[0], WRAPPERS[form]
    arrays = {
        (f"language_model.{name}" if name.startswith("lm_head") else prefix.format(name.removeprefix("model."))): values
        for name, values in tensors(case).items()
    }
    for name in ("vision_tower.vision_model.embeddings.patch_embedding.weight", "multi_modal_projector.linear.weight"):
        arrays[name] = np.zeros((4, 4), np.float32)
    text = {key: value for key, value in cases.CASES[case].items() if key != "architectures"}
    folder = written(tmp_path / "m", case, arrays)
    config = {"architectures": [architecture], "model_type": "wrapper", "text_config": text, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    found = converted(folder)
    same(found, case, base)
    assert found[2][-1] == "2 tensors of images left out: text only"


def test_gemma_3_s_settings_that_transformers_leaves_out(base, tmp_path):
    """A wrapper's text_config says only what is not transformers' default."""
    arrays = dict(tensors("gemma3"))
    text = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "hidden_size": 48,
            "intermediate_size": 80, "num_hidden_layers": 6, "sliding_window": 9, "query_pre_attn_scalar": 20,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rms_norm_eps": 1e-5}  # fmt: skip
    folder = written(tmp_path / "m", "gemma3", arrays)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    )
    found = converted(folder)
    found[1]["gemma3.context_length"] = 128
    same(found, "gemma3", base)


def u8(name, values):
    return name, {"dtype": "U8", "shape": list(values.shape)}, values.astype(np.uint8).tobytes()


def test_gpt_oss_s_own_blocks(tmp_path):
    """Codes of neighbours share a byte there; each stands for one of sixteen numbers times a power of two."""
    rng, arrays = np.random.default_rng(3), dict(tensors("gpt-oss"))
    config = {"quantization_config": {"quant_method": "mxfp4"}, "hidden_size": 64, "intermediate_size": 32}
    arrays = {name: values for name, values in arrays.items() if "mlp.experts" not in name}
    shapes = {"gate_up_proj": (5, 64, 64), "down_proj": (5, 64, 32)}
    parts = [(n, {"dtype": "F32", "shape": list(v.shape)}, v.tobytes()) for n, v in widened(arrays, 48, 64).items()]
    wanted = {}
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for layer in range(2):
        for name, (n, n_out, n_in) in shapes.items():
            codes, scales = rng.integers(0, 16, (n, n_out, n_in)), rng.integers(120, 134, (n, n_out, n_in // 32))
            values = table[codes] * np.repeat(2.0 ** (scales - 127), 32, axis=-1)
            packed = (codes[..., ::2] | codes[..., 1::2] << 4).reshape(n, n_out, n_in // 32, 16)
            at = f"model.layers.{layer}.mlp.experts.{name}"
            parts += [u8(f"{at}_blocks", packed), u8(f"{at}_scales", scales)]
            bias = rng.normal(size=(n, n_out)).astype(np.float32)
            parts.append((f"{at}_bias", {"dtype": "F32", "shape": list(bias.shape)}, bias.tobytes()))
            if name == "down_proj":
                wanted[f"blk.{layer}.ffn_down_exps"] = values, bias
            else:  # gate and up in turns
                wanted[f"blk.{layer}.ffn_gate_exps"] = values[:, ::2], bias[:, ::2]
                wanted[f"blk.{layer}.ffn_up_exps"] = values[:, 1::2], bias[:, 1::2]
    found, metadata, _ = converted(written(tmp_path / "m", "gpt-oss", packed_file(parts), **config))
    assert metadata["gpt-oss.expert_feed_forward_length"] == 32
    for name, (values, bias) in wanted.items():
        kind, shape, raw = found[f"{name}.weight"]
        assert (kind, shape) == ("MXFP4", values.shape)
        rows = np.frombuffer(raw, np.uint8).reshape(-1, shape[-1] // 32 * 17)
        np.testing.assert_array_equal(
            gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4).reshape(shape), values.astype(np.float32)
        )
        assert found[f"{name}.bias"] == ("F32", bias.shape, np.ascontiguousarray(bias).tobytes())


def widened(arrays, n, wide):
    """The tensors of a model of n columns with zeros up to `wide`: blocks are of 32."""
    found = {}
    for name, values in arrays.items():
        ends = [0] * values.ndim
        if name.endswith(("norm.weight", "o_proj.bias", "o_proj.weight")):
            ends[0] = wide - n
        elif values.ndim == 2:
            ends[1] = wide - n
        found[name] = np.pad(values, [(0, end) for end in ends])
    return found


def packed_file(parts):
    """The bytes of a safetensors file of (name, entry, raw)."""
    header, data = {}, b""
    for name, entry, raw in parts:
        header[name] = entry | {"data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def test_matrices_fused_in_ernie_s_older_folders(base, tmp_path):
    arrays = {name.replace("model.", "ernie.", 1): values for name, values in tensors("ernie4_5").items()}
    for layer in range(2):
        at = f"ernie.layers.{layer}."
        qkv = [arrays.pop(f"{at}self_attn.{one}_proj.weight") for one in "qkv"]
        arrays[f"{at}self_attn.qkv_proj.weight"] = np.concatenate(qkv)
        gate_up = [arrays.pop(f"{at}mlp.{one}_proj.weight") for one in ("gate", "up")]
        arrays[f"{at}mlp.up_gate_proj.weight"] = np.concatenate(gate_up)
    change = {"architectures": ["Ernie4_5_ForCausalLM"], "tie_word_embeddings": None}
    same(converted(written(tmp_path / "m", "ernie4_5", arrays, **change)), "ernie4_5", base)


def test_biases_of_zero_and_others(base, tmp_path):
    """Cohere's files may hold biases that mean nothing; others would."""
    name = "model.layers.1.self_attn.q_proj.bias"
    zero = tensors("cohere2") | {name: np.zeros(48, np.float32)}
    same(converted(written(tmp_path / "zero", "cohere2", zero)), "cohere2", base)
    other = zero | {name: np.eye(1, 48, dtype=np.float32)[0]}
    with pytest.raises(LlamacyError, match=f"{name}'.*no tensors that a cohere2 model has"):
        converted(written(tmp_path / "other", "cohere2", other))


def test_an_output_matrix_beside_a_tied_embedding(base, tmp_path):
    arrays = tensors("gemma") | {"lm_head.weight": tensors("gemma")["model.embed_tokens.weight"]}
    same(converted(written(tmp_path / "m", "gemma", arrays, tie_word_embeddings=None)), "gemma", base)
    untied = converted(written(tmp_path / "untied", "gemma", arrays, tie_word_embeddings=False))
    assert untied[0]["output.weight"] == untied[0]["token_embd.weight"]


def test_routers_and_biases_stay_f32(tmp_path):
    found, _, _ = converted(written(tmp_path / "m", "qwen2moe", tensors("qwen2moe")), by_name("F16"))
    kinds = {name.removeprefix("blk.0."): kind for name, (kind, _, _) in found.items() if "blk.1." not in name}
    assert {name for name, kind in kinds.items() if kind == "F16"} == {
        "token_embd.weight", "output.weight", *(f"attn_{one}.weight" for one in ("q", "k", "v", "output")),
        *(f"ffn_{one}_{kind}.weight" for one in ("gate", "up", "down") for kind in ("exps", "shexp")),
    }  # fmt: skip
    assert kinds["ffn_gate_inp.weight"] == kinds["ffn_gate_inp_shexp.weight"] == kinds["attn_q.bias"] == "F32"


MISSING = {
    "an expert": ("qwen3moe", "model.layers.1.mlp.experts.3.up_proj.weight", r"ffn_up_exps.weight is without part 3"),
    "a router": ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", r"ffn_gate_inp.weight is missing"),
    "a norm behind": ("gemma2", "model.layers.2.post_feedforward_layernorm.weight", "blk.2.post_ffw_norm.* is missing"),
    "a norm of heads": ("qwen3", "model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight is missing"),
    "a sink": ("gpt-oss", "model.layers.1.self_attn.sinks", "blk.1.attn_sinks.weight is missing"),
    "a norm's bias": ("phi2", "model.layers.1.input_layernorm.bias", "blk.1.attn_norm.bias is missing"),
    "the last norm": ("lfm2", "model.embedding_norm.weight", "token_embd_norm.weight is missing"),
    "a convolution": ("lfm2", "model.layers.0.conv.conv.weight", "blk.0.shortconv.conv.weight is missing"),
    "a second norm": ("stablelm", "model.layers.1.post_attention_layernorm.weight", "blk.1.ffn_norm.weight is missing"),
    "norms of heads": (
        "stablelm-parallel", "model.layers.0.self_attn.q_layernorm.norms.1.weight",
        "attn_q_norm.weight is without part 1",
    ),
    "a fused matrix": ("phi3", "model.layers.1.self_attn.qkv_proj.weight", "blk.1.attn_qkv.weight is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_named(case, tmp_path):
    family, name, words = MISSING[case]
    arrays = {key: values for key, values in tensors(family).items() if key != name}
    assert len(arrays) < len(tensors(family))
    with pytest.raises(LlamacyError, match=words) as caught:
        converted(written(tmp_path / "m", family, arrays))
    assert "\n" not in str(caught.value)


REFUSED = {
    "a dense layer among experts": ("qwen3moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\], wanted \[\]"),
    "GELU where SiLU is meant": ("qwen3", {"hidden_act": "gelu"}, "hidden_act is 'gelu', wanted silu"),
    "SiLU where GELU is meant": ("gemma2", {"hidden_activation": "silu"}, "hidden_activation is 'silu', wanted gelu"),
    "exact GELU": ("starcoder2", {"hidden_act": "gelu"}, "hidden_act is 'gelu', wanted gelu_pytorch_tanh"),
    "another clamp": ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0, wanted 7.0"),
    "longrope elsewhere": (
        "qwen3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        "rope scaling 'longrope' is not supported",
    ),
    "two factors too few": (
        "phi3-long", {"rope_parameters": cases.CASES["phi3-long"]["rope_parameters"] | {"long_factor": [1.0, 2.0]}},
        "long_factor is .*, wanted 4 positive numbers",
    ),
    "layer kinds": ("gemma3", {"layer_types": ["full_attention"]}, "wanted a name for each layer"),
    "another quantisation": ("gpt-oss", {"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
    "no text": ("gemma3", {"text_config": 3}, "text_config is 3, wanted a table"),
    "clipped queries": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0, wanted None"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_would_change_what_is_computed(case, tmp_path):
    family, change, words = REFUSED[case]
    with pytest.raises(LlamacyError, match=words) as caught:
        converted(written(tmp_path / "m", family, tensors(family), **change))
    assert "\n" not in str(caught.value)
