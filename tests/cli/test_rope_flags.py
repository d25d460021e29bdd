"""--rope-scale and its kin: the model that is opened rotates as a file that says the same."""

from dataclasses import replace

import numpy as np
import pytest

from llamacy.cli import common
from llamacy.cli.main import build_parser
from llamacy.errors import UsageError
from llamacy.kernels.reference import model as twin
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


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--rope-scaling yarn", "wanted none or linear, for no other scaling is built, got 'yarn'"),
        ("--rope-scale -1", "--rope-scale: wanted a number from 0, got '-1'"),
        ("--rope-freq-scale 1e-320", "--rope-freq-scale: wanted a number above 0, got '1e-320'"),
        (
            "--yarn-ext-factor 1",
            "unrecognized arguments: --yarn-ext-factor 1; of the scalings of positions",
        ),
    ],
)
def test_scalings_that_are_not_built_are_refused(line, wanted, capsys):
    assert wanted in refusal(build_parser(), line.split(), capsys)


def test_no_scaling_has_no_factor():
    args = build_parser().parse_args(["--rope-scaling", "none", "--rope-scale", "2"])
    with pytest.raises(UsageError, match="--rope-scaling none and --rope-scale are both given"):
        common.rope_overrides(args)
