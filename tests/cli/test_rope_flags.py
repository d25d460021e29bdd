"""--rope-scale and its kin: the model that is opened rotates as a file that says the same."""

from dataclasses import replace

import numpy as np
import pytest

from llamacy.cli import common
from llamacy.cli.main import build_parser
from llamacy.errors import UsageError
from llamacy.kernels.reference import model as twin
from llamacy.model.rope import Rope
from tests.cli.test_words import refusal
from tests.model import tiny


def opened(path, line):
    """Return the model that `main -m path line` opens, in f32."""
    return common.open_model_from(build_parser().parse_args(["-m", str(path), "--activations", "f32", *line.split()]))


@pytest.mark.parametrize(
    ("said", "line", "scale"),
    [
        (1.0, "", 1.0),
        (1.0, "--rope-scale 4", 4.0),
        (1.0, "--rope-freq-scale 0.25", 4.0),
        (2.0, "", 2.0),
        (2.0, "--rope-scaling none", 1.0),
        (2.0, "--rope-scaling none --rope-scale 1", 1.0),
        (2.0, "--rope-scaling linear", 2.0),
        (2.0, "--rope-scaling linear --rope-scale 8", 8.0),
        (2.0, "--rope-freq-scale 0 --rope-freq-base 0", 2.0),
        (2.0, "--rope-scale 3 --rope-freq-scale 0.5", 2.0),
    ],
)
def test_the_logits_are_those_of_a_file_that_says_so(tmp_path, said, line, scale):
    weights = twin.random_weights(tiny.CONFIG, seed=5)
    exact = tiny.write_llama(tmp_path / "m.gguf", replace(tiny.CONFIG, rope_scale=said), weights)
    ids = tiny.tokens_of(tiny.CONFIG, 12)
    wanted = twin.forward(replace(tiny.CONFIG, rope_scale=scale), exact, ids)
    np.testing.assert_allclose(tiny.logits_of(opened(tmp_path / "m.gguf", line), ids), wanted, atol=2e-4)


def test_a_base_and_what_the_file_says_of_another_scaling(tmp_path):
    weights = twin.random_weights(tiny.CONFIG, seed=5)
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 8.0}
    tiny.write_llama(tmp_path / "m.gguf", tiny.CONFIG, weights, change=yarn)
    assert opened(tmp_path / "m.gguf", "--rope-scaling linear").config.rope.factor == 8.0
    config = opened(tmp_path / "m.gguf", "--rope-scaling none --rope-freq-base 5000").config
    assert (config.rope.factor, config.rope.theta) == (1.0, 5000.0)


YARN = "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 64"


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("", {"ext_factor": 1.0}),
        ("--yarn-ext-factor 0.5", {"ext_factor": 0.5}),
        ("--yarn-attn-factor 1.3", {"yarn_attn_factor": 1.3}),
        ("--yarn-beta-slow 2 --yarn-beta-fast 8", {"beta_slow": 2.0, "beta_fast": 8.0}),
        ("--yarn-ext-factor -1 --yarn-attn-factor -1 --yarn-beta-slow -1 --yarn-beta-fast -1 --yarn-orig-ctx 64", {}),
    ],
)
def test_yarn_by_flags(tmp_path, line, change):
    tiny.write_llama(tmp_path / "m.gguf", tiny.CONFIG, twin.random_weights(tiny.CONFIG, seed=5))
    wanted = replace(Rope(16, scaling="yarn", factor=4.0, original=64, trained=256), **change)
    assert opened(tmp_path / "m.gguf", f"{YARN} {line}").config.rope == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--rope-scaling longrope", "wanted one of none, linear, yarn, got 'longrope'"),
        ("--rope-scale -1", "--rope-scale: wanted a number from 0, got '-1'"),
        ("--rope-freq-scale 1e-320", "--rope-freq-scale: wanted a number above 0, got '1e-320'"),
        ("--yarn-ext-factor -2", "--yarn-ext-factor: wanted a number from -1, got '-2'"),
        ("--yarn-orig-ctx 1.5", "--yarn-orig-ctx: wanted a whole number from -1, got '1.5'"),
    ],
)
def test_values_that_cannot_be_are_refused(line, wanted, capsys):
    assert wanted in refusal(build_parser(), line.split(), capsys)


def test_no_scaling_has_no_factor():
    args = build_parser().parse_args(["--rope-scaling", "none", "--rope-scale", "2"])
    with pytest.raises(UsageError, match="--rope-scaling none and --rope-scale are both given"):
        common.rope_overrides(args)
    for words in ("--rope-scaling linear", "--rope-scale 4"):
        args = build_parser().parse_args([*words.split(), "--yarn-beta-fast", "8"])
        with pytest.raises(UsageError, match="--yarn-beta-fast and linear scaling"):
            common.rope_overrides(args)
