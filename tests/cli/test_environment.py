"""LLAMA_ARG_*: variables stand for the flags that llama-server gives them to, and flags go before them."""

import csv
import os

import pytest

from llamacy.cli.environment import flag_of
from llamacy.cli.llama_cpp_flags import REASONS, without_effect
from tests.cli.test_llama_cpp_flags import FLAGS
from tests.cli.test_words import refusal
from tools.commands_doc import parser_of


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in os.environ:
        if name.startswith("LLAMA_"):
            monkeypatch.delenv(name)


@pytest.fixture
def parse(monkeypatch):
    """Return a function: (command, variables, line) -> the parsed arguments."""

    def call(command, variables, line=""):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return parser_of(command).parse_args(line.split())

    return call


def variables():
    """Yield (variable, flags) of llama-server."""
    with open(FLAGS) as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["variable"] != "-" and "server" in row["tools"].split(","):
                yield row["variable"], row["flags"].split(",")


def test_variables_are_those_of_llama_server():
    known = parser_of("server")._option_string_actions.keys() | without_effect("server").keys() | REASONS.keys()
    seen = 0
    for name, flags in variables():
        if set(flags) & known and name.startswith("LLAMA_"):
            assert flag_of(name) in flags, name
            assert flag_of(name) in known, name
            seen += 1
    assert seen > 80


@pytest.mark.parametrize(
    ("name", "value", "dest", "wanted"),
    [
        ("LLAMA_ARG_MODEL", "m.gguf", "model", "m.gguf"),
        ("LLAMA_ARG_CTX_SIZE", "0", "ctx_size", 0),
        ("LLAMA_ARG_THREADS", "-1", "threads", -1),
        ("LLAMA_ARG_BATCH", "64", "batch_size", 64),
        ("LLAMA_ARG_N_PREDICT", "77", "n_predict", 77),
        ("LLAMA_ARG_N_PARALLEL", "9", "parallel", 9),
        ("LLAMA_ARG_HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("LLAMA_ARG_PORT", "8123", "port", 8123),
        ("LLAMA_ARG_TIMEOUT", "30", "timeout", 30.0),
        ("LLAMA_ARG_ALIAS", "-name", "alias", "-name"),
        ("LLAMA_ARG_API_KEY_FILE", "keys", "api_key_file", "keys"),
        ("LLAMA_API_KEY", "a,b", "api_key", ["a,b"]),
        ("LLAMA_ARG_API_PREFIX", "/llm/", "api_prefix", "/llm"),
        ("LLAMA_ARG_CACHE_TYPE_K", "q8_0", "cache_type_k", "q8_0"),
        ("LLAMA_ARG_CHAT_TEMPLATE", "chatml", "chat_template", "chatml"),
        ("LLAMA_ARG_CHAT_TEMPLATE_FILE", "x.jinja", "chat_template_file", "x.jinja"),
        ("LLAMA_ARG_CHAT_TEMPLATE_KWARGS", '{"a": 1}', "template_kwargs", {"a": 1}),
        ("LLAMA_ARG_POOLING", "last", "pooling", "last"),
        ("LLAMA_ARG_ROPE_SCALE", "2", "rope_scale", 2.0),
        ("LLAMA_ARG_ROPE_SCALING_TYPE", "none", "rope_scaling", "none"),
        ("LLAMA_ARG_LOAD_MODE", "mlock", "load_mode", "mlock"),
        ("LLAMA_ARG_THINK", "none", "reasoning_format", "none"),
        ("LLAMA_ARG_REASONING", "off", "reasoning", False),
        # switches, on and off
        ("LLAMA_ARG_ENDPOINT_METRICS", "1", "metrics", True),
        ("LLAMA_ARG_ENDPOINT_METRICS", "off", "metrics", False),
        ("LLAMA_ARG_ENDPOINT_SLOTS", "false", "slots", False),
        ("LLAMA_ARG_ENDPOINT_SLOTS", "enabled", "slots", True),
        ("LLAMA_ARG_ENDPOINT_PROPS", "ON", "props", True),
        ("LLAMA_ARG_EMBEDDINGS", "true", "embeddings_only", True),
        ("LLAMA_ARG_CONTEXT_SHIFT", "1", "context_shift", True),
        ("LLAMA_ARG_NO_CONTEXT_SHIFT", "0", "context_shift", False),
        ("LLAMA_ARG_CACHE_PROMPT", "0", "cache_prompt", False),
        ("LLAMA_ARG_UI", "disabled", "no_webui", True),
        ("LLAMA_ARG_NO_MMAP", "0", "no_mmap", True),
        ("LLAMA_ARG_MLOCK", "1", "mlock", True),
    ],
)
def test_a_variable_is_its_flag(parse, capsys, name, value, dest, wanted):
    assert getattr(parse("server", {name: value}), dest) == wanted
    assert capsys.readouterr().err == ""


def test_flags_go_before_variables(parse):
    given = {"LLAMA_ARG_PORT": "1234", "LLAMA_ARG_ENDPOINT_SLOTS": "0", "LLAMA_API_KEY": "one"}
    args = parse("server", given, "--port 99 --slots --api-key two")
    assert (args.port, args.slots, args.api_key) == (99, True, ["one", "two"])
    given = {"LLAMA_ARG_CHAT_TEMPLATE": "chatml", "LLAMA_ARG_CHAT_TEMPLATE_FILE": "x"}
    args = parse("server", given, "--chat-template-file y")
    assert (args.chat_template, args.chat_template_file) == (None, "y")


def test_the_other_commands_take_what_they_have(parse, capsys):
    given = {"LLAMA_ARG_N_PREDICT": "-2", "LLAMA_ARG_PORT": "x", "LLAMA_ARG_NOBODY": "1", "LLAMA_ARG_CTX_SIZE": "64"}
    assert parse("main", given).n_predict == -2
    assert parse("perplexity", {}, "-f x").ctx_size == 64
    assert parse("tokenize", {"LLAMA_ARG_MODEL": "m"}, "-p x").model is None
    assert capsys.readouterr().err == ""


def test_what_has_no_effect_is_in_the_note(parse, capsys):
    given = {"LLAMA_ARG_N_GPU_LAYERS": "99", "LLAMA_ARG_NO_KV_OFFLOAD": "1", "LLAMA_ARG_FLASH_ATTN": "on"}
    parse("server", given, "-cb")
    said = "LLAMA_ARG_FLASH_ATTN=on, LLAMA_ARG_NO_KV_OFFLOAD=1, LLAMA_ARG_N_GPU_LAYERS=99, -cb: no effect here\n"
    assert capsys.readouterr().err == said
    parse("server", {"LLAMA_ARG_SOMETHING": "1", "LLAMA_ARG_PORT": ""})
    assert capsys.readouterr().err.startswith("warning: LLAMA_ARG_SOMETHING: unknown, without effect\n")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("LLAMA_ARG_PORT", "x", "LLAMA_ARG_PORT: wanted a whole number from 0 to 65535, got 'x'"),
        ("LLAMA_ARG_N_PREDICT", "1.5", "LLAMA_ARG_N_PREDICT: wanted a whole number from -1, got '1.5'"),
        ("LLAMA_ARG_POOLING", "rank", "LLAMA_ARG_POOLING: wanted one of mean, last, cls, none, got 'rank'"),
        ("LLAMA_ARG_ENDPOINT_METRICS", "yes", "LLAMA_ARG_ENDPOINT_METRICS: wanted one of 1, on, true, enabled, 0,"),
        ("LLAMA_ARG_CHAT_TEMPLATE_KWARGS", "[]", "LLAMA_ARG_CHAT_TEMPLATE_KWARGS: wanted a JSON object, got '[]'"),
        ("LLAMA_ARG_ROPE_SCALING_TYPE", "su", "LLAMA_ARG_ROPE_SCALING_TYPE: wanted one of none, linear, yarn"),
        ("LLAMA_ARG_HF_REPO", "a/b", "LLAMA_ARG_HF_REPO: nothing is downloaded"),
        ("LLAMA_ARG_MMPROJ", "x", "LLAMA_ARG_MMPROJ: images, sound and video are not built"),
        ("LLAMA_ARG_SPEC_DRAFT_MODEL", "x", "LLAMA_ARG_SPEC_DRAFT_MODEL: models that draft"),
    ],
)
def test_wrong_values_name_the_variable(monkeypatch, capsys, name, value, wanted):
    monkeypatch.setenv(name, value)
    assert wanted in refusal(parser_of("server"), [], capsys)
    parser_of("main")
    with pytest.raises(SystemExit) as exit:
        parser_of("server").parse_args(["--help"])  # help is for those who are wrong
    assert exit.value.code == 0
