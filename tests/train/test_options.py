"""Options are checked when they are made, and each message names the flag."""

import math
from dataclasses import fields

import pytest

from llamacy.errors import UsageError
from llamacy.train.options import USUAL, TrainOptions, target_modules

BAD = {
    "n_ctx": (1, 0, -5),
    "batch_size": (0, -1),
    "grad_acc": (0,),
    "epochs": (0,),
    "max_steps": (0, -1),
    "seed": (-1, 1 << 63),
    "learning_rate": (0, -1e-4, math.nan, math.inf),
    "method": ("ppo", ""),
    "beta": (0, -1, math.nan),
    "lr_schedule": ("cosin", ""),
    "warmup_steps": (-1,),
    "warmup_ratio": (-0.1, 1.0, math.nan),
    "min_lr_ratio": (-0.1, 1.0),
    "decay_ratio": (-0.1, 1.0),
    "loraplus_ratio": (0, -1, math.nan, math.inf),
    "neftune_alpha": (-1, math.nan),
    "init_weights": ("svd", ""),
    "save_total_limit": (0, -1),
    "weight_decay": (-0.1, math.nan, math.inf),
    "beta1": (1.0, -0.1, math.nan),
    "beta2": (1.0, math.nan),
    "adam_eps": (0, math.nan),
    "max_grad_norm": (-1, math.nan),
    "rank": (0, 4097),
    "alpha": (0, -1, math.nan),
    "targets": ((), ("attn_x",)),
    "lora_dropout": (1.0, -0.1, math.nan),
    "ranks": ((("attn_q", 0),), (("attn_x", 4),)),
    "rank_pattern": ((("q_proj", 0),), (("q_proj", 4097),), (("q_proj", 2.5),)),
    "alpha_pattern": ((("q_proj", 0),), (("q_proj", math.inf),)),
    "num_layers": (0, -1),
    "save_every": (-1,),
    "save_every_steps": (-1,),
    "val_split": (1.0, -0.1, math.nan),
    "eval_every": (-1,),
    "early_stop": (-1,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_out_of_range_names_its_flag(name, value):
    flag = next(row.metadata["flag"] for row in fields(TrainOptions) if row.name == name)
    with pytest.raises(UsageError, match=f"^{flag}: wanted .+, got "):
        TrainOptions(**{name: value})


def test_every_option_with_a_range_is_covered():
    assert {row.name for row in fields(TrainOptions) if row.metadata["test"]} == set(BAD)


# of latent attention and convolutions
WITHOUT_METAS_NAME = {
    *("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b"),
    *("shortconv.in_proj", "shortconv.out_proj"),
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all-linear", USUAL),
        ("q_proj,v_proj", ("attn_q", "attn_v")),
        ("ffn_down, attn_q", ("attn_q", "ffn_down", "ffn_down_shexp")),
        ("wq,wk,wv,wo,wqkv,w1,w2,w3", tuple(name for name in USUAL if name not in WITHOUT_METAS_NAME)),
        ("kv_b_proj,q_a_proj", ("attn_q_a", "attn_kv_b")),
        ("in_proj,out_proj", ("attn_output", "shortconv.in_proj", "shortconv.out_proj")),
        ("Q_PROJ,attn_q.weight", ("attn_q",)),
    ],
)
def test_targets_have_everyones_names(text, wanted):
    assert target_modules(text) == wanted


@pytest.mark.parametrize("text", ["", ",", "q_prj", "attn_q,lm_head"])
def test_unknown_targets_are_named(text):
    with pytest.raises(UsageError, match="--target-modules: .*wanted all-linear or of attn_q"):
        target_modules(text)


def test_rslora_scales_by_the_root_of_the_rank():
    assert TrainOptions(rank=16, alpha=8).file_alpha == 8
    assert TrainOptions(rank=16, alpha=8, rslora=True).file_alpha == 32
