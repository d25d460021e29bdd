"""Flags in a TOML file: the same as on the command line, which has the last word, and what a run writes reads back."""

import sys

import pytest

from llamacy.cli.config_file import parsed, written
from llamacy.cli.finetune import build_parser
from llamacy.errors import LlamacyError, UsageError

TOML = """
train-data = ["a.jsonl", "b.jsonl:2"]
learning_rate = 1e-3
epochs = 3
lr-schedule = "wsd"
target-modules = ["attn_q", "attn_v"]
rslora = true
train-on-prompt = true
resume-not = 1
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "flags.toml"

    def parse(text, *argv):
        path.write_text(text, encoding="utf-8")
        return parsed(build_parser(), ["--config", str(path), *argv])

    return parse


def test_flags_of_a_file_are_those_of_a_command_line(config):
    args = config(TOML.replace("resume-not = 1\n", ""))
    line = "--train-data a.jsonl --train-data b.jsonl:2 --learning-rate 1e-3 --epochs 3 --lr-schedule wsd --rslora"
    wanted = build_parser().parse_args([*line.split(), "--target-modules", "attn_q,attn_v", "--train-on-prompt"])
    assert vars(args) | {"config": None} == vars(wanted)


def test_the_command_line_has_the_last_word(config):
    args = config(
        'train-data = ["a"]\nepochs = 3\nmask-prompt = true', "--epochs", "7", "--train-data", "c", "--train-on-prompt"
    )
    assert args.epochs == 7 and args.train_data == ["c"] and args.mask_prompt is False


def test_what_a_run_writes_repeats_it(config, tmp_path):
    words = "--lr 0.001 --rslora --no-checkpointing --max-ram 2G --rank-wq 3 --train-on-prompt --target-modules attn_q"
    more = ["--chat-template-kwargs", '{"think": false, "a": ["é"]}', "--override-kv", "a.b=int:3,c.d=str:x,y",
            "--override-kv", "e=bool:true,f=float:1e-05"]  # fmt: skip
    line = ["--train-data", 'x "y"\\z.jsonl', "--resume", *words.split(), *more]
    parser = build_parser()
    args = parser.parse_args(line)
    again = config(written(parser, args))
    assert vars(again) | {"config": None, "resume": True} == vars(args)


YAML = """
train-data: [a.jsonl, "b.jsonl:2"]
learning_rate: 1e-3
epochs: 3
lr-schedule: wsd
target-modules: [attn_q, attn_v]
rslora: true
shuffle: off
train-on-prompt: yes
"""


def test_yaml_says_the_same(config, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(YAML)
    args = parsed(build_parser(), ["--config", str(path)])
    wanted = config(TOML.replace("resume-not = 1\n", 'shuffle = "off"'))
    assert vars(args) | {"config": None} == vars(wanted) | {"config": None}


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("epochs: 3\nepochs: 4", LlamacyError, "'epochs' stands twice"),
        ("epochs: [", LlamacyError, "not YAML, wanted lines such as"),
        ("- epochs", LlamacyError, "wanted lines such as learning-rate: 1e-3, got ['epochs']"),
        ("", LlamacyError, "got None"),
        ("seed: 2026-01-01", UsageError, "'seed': wanted a text or a number"),
        ("epochs: {a: 1}", UsageError, "'epochs': wanted a text or a number"),
        ("epochs: !!python/object:os.system 3", LlamacyError, "not YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]", UsageError, "'a' is no flag"),
    ],
)
def test_what_is_wrong_in_yaml_is_one_line(tmp_path, text, kind, said):
    path = tmp_path / "flags.yml"
    path.write_text(text)
    with pytest.raises(kind) as caught:
        parsed(build_parser(), ["--config", str(path)])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "f.yaml").write_text("epochs: 3")
    with pytest.raises(LlamacyError, match=r"the pyyaml package: pip install 'llamacy\[yaml\]'"):
        parsed(build_parser(), ["--config", str(tmp_path / "f.yaml")])


BAD = {
    "no TOML": ("learning-rate 3", LlamacyError, "not TOML, wanted lines such as"),
    "no flag": ("learning-rat = 3", UsageError, "'learning-rat' is no flag of finetune"),
    "not kept": ("resume = true", UsageError, "'resume' is no flag of finetune"),
    "no switch": ("rslora = 1", UsageError, "'rslora': wanted true or false, got 1"),
    "a table": ("[epochs]\nn = 1", UsageError, "'epochs': wanted a text or a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_in_the_file_is_one_line(config, case):
    text, kind, wanted = BAD[case]
    with pytest.raises(kind) as caught:
        config(text)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(LlamacyError, match="cannot read --config: No such file"):
        parsed(build_parser(), ["--config", str(tmp_path / "none.toml")])
