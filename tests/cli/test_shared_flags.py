"""Flags that several commands share, in all the forms that llama.cpp's tools take."""

import os

import pytest

from llamacy import system
from llamacy.cli import common
from tests.cli.test_words import refusal
from tools.commands_doc import parser_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.gguf", "b.gguf", "odd,name.gguf", "odd:2", "x,y:3"):
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("line", "adapters"),
    [
        ("--lora a.gguf", [("a.gguf", 1.0)]),
        ("--lora a.gguf,b.gguf:0.5", [("a.gguf", 1.0), ("b.gguf", 0.5)]),
        ("--lora odd,name.gguf --lora odd:2", [("odd,name.gguf", 1.0), ("odd:2", 1.0)]),
        ("--lora-scaled a.gguf 0.5", [("a.gguf", 0.5)]),
        ("--lora-scaled a.gguf -5e-1 --lora b.gguf", [("a.gguf", -0.5), ("b.gguf", 1.0)]),
        ("--lora-scaled a.gguf:0.5 --lora b.gguf", [("a.gguf", 0.5), ("b.gguf", 1.0)]),
        ("--lora-scaled a.gguf:0.5,b.gguf:-2", [("a.gguf", 0.5), ("b.gguf", -2.0)]),
        ("--lora-scaled odd:2 3", [("odd:2", 3.0)]),
        ("--lora-scaled x,y:3 4", [("x,y:3", 4.0)]),
        ("--lora-scaled none:2 --lora a.gguf", [("none", 2.0), ("a.gguf", 1.0)]),
    ],
)
def test_adapters_in_all_forms(here, line, adapters):
    for command in ("main", "server", "perplexity"):
        args = parser_of(command).parse_args([*line.split(), *(["-f", "x"] if command == "perplexity" else [])])
        assert args.lora == adapters


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--lora-scaled a.gguf", "argument --lora-scaled: expected 2 arguments"),
        ("--lora-scaled a.gguf --temp 1", "argument --lora-scaled: expected 2 arguments"),
        ("--lora-scaled a.gguf:nan", "wanted a finite number as the scale, got 'nan'"),
        ("--lora-scaled a.gguf:1,b.gguf", "argument --lora-scaled: expected 2 arguments"),
    ],
)
def test_adapters_that_are_wrong(here, line, wanted, capsys):
    assert wanted in refusal(parser_of("main"), line.split(), capsys)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a.b=int:-3", [("a.b", -3)]),
        ("a=int:1,b.c=bool:false,d=float:1e-5", [("a", 1), ("b.c", False), ("d", 1e-5)]),
        ("a=str:x,y=z,b=str:", [("a", "x,y=z"), ("b", "")]),
    ],
)
def test_several_overrides_in_one_word(text, pairs):
    assert common.overrides(text) == pairs
    args = parser_of("main").parse_args(["--override-kv", text, "--override-kv", "z=int:5"])
    assert args.override_kv == [*pairs, ("z", 5)]


@pytest.mark.parametrize("text", ["a", "a=int", "a=int:x", "a=long:1", "=int:1", "a=int:1,b", "a=bool:1"])
def test_overrides_that_are_wrong(text, capsys):
    assert "argument --override-kv: " in refusal(parser_of("main"), ["--override-kv", text], capsys)


def test_threads_of_zero_or_less_are_all_processors(monkeypatch, capsys):
    monkeypatch.setattr(system, "physical_cores", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert [common.fit_threads(n) for n in (None, -1, 0, 3, 4)] == [1, 4, 4, 3, 4]
    assert capsys.readouterr().err == ""
    assert common.fit_threads(5) == 4
    assert "there are 4 processors" in capsys.readouterr().err
    assert parser_of("server").parse_args(["-t", "-1"]).threads == -1
    assert "from -1 to 1024" in refusal(parser_of("server"), ["-t", "-2"], capsys)
