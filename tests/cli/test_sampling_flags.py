"""The flags of sampling and grammars: every field has one, and what is wrong is said in one line."""

import dataclasses

import pytest

from llamacy.cli import sampling_flags
from llamacy.cli.main_flags import build_parser
from llamacy.cli.run import run
from llamacy.cli.sampling_flags import SAMPLING_FLAGS, format_from, sampling_from
from llamacy.errors import LlamacyError, UsageError
from llamacy.generate.samplers import DEFAULT_ORDER
from llamacy.generate.samplers.params import LIMITS, SamplingParams
from tests.generate.test_main_cli import main  # noqa: F401  a fixture


def parsed(*argv):
    return build_parser().parse_args(list(argv))


def test_without_flags_everything_is_the_default():
    assert sampling_from(parsed()) == SamplingParams()
    assert ";".join(DEFAULT_ORDER) == sampling_flags.ORDER and format_from(parsed()) is None


def test_every_field_has_a_flag_with_its_limits(capsys):
    fields = {field: flags for flags, field, *_ in SAMPLING_FLAGS}
    assert set(fields) == set(LIMITS) - {"n_probs"}
    for field, (kind, low, high) in LIMITS.items():
        if field == "n_probs":
            continue
        for flag in fields[field]:
            value = {"mirostat": "2"}.get(field, "1")
            assert getattr(sampling_from(parsed(flag, value)), field) == kind(value)
        outside = [str(low - 1)] if low is not None else []
        outside += [str(high + 1)] if high is not None else []
        for value in [*outside, "x"]:
            with pytest.raises(SystemExit) as exit:
                parsed(fields[field][0], value)
            assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        (["--samplers", "top_k;temperature"], {"samplers": ("top_k", "temperature")}),
        (["--sampling-seq", "kt"], {"samplers": ("top_k", "temperature")}),
        (["--samplers", ""], {"samplers": ()}),
        (["--dry-sequence-breaker", "none"], {"dry_sequence_breakers": ()}),
        (["--dry-sequence-breaker", r"\n", "--dry-sequence-breaker", "-"], {"dry_sequence_breakers": ("\n", "-")}),
        (["--top-nsigma", "1.5", "--ignore-eos"], {"top_n_sigma": 1.5, "ignore_eos": True}),
        (["-l", "5+1.5", "-l", "6-inf"], {"logit_bias": ((5, 1.5), (6, float("-inf")))}),
        (["--mirostat-lr", "0.2", "--mirostat-ent", "3"], {"mirostat_eta": 0.2, "mirostat_tau": 3.0}),
    ],
)
def test_flags_as_fields(argv, fields):
    assert sampling_from(parsed(*argv)) == dataclasses.replace(SamplingParams(), **fields)


def test_an_unknown_sampler_is_named(capsys):
    with pytest.raises(SystemExit) as exit:
        parsed("--samplers", "top_k;mirrorstat")
    assert exit.value.code == 2
    assert "--samplers/--sampling-seq/--sampler-seq: wanted names of penalties, dry, " in (
        err := capsys.readouterr().err
    )
    assert "got 'mirrorstat'" in err and err.count("\n") == 1


def test_a_bias_for_a_token_that_does_not_exist(main):  # noqa: F811
    code, out, err = main("-p", "Hi", "-l", "999+1")
    assert (code, out) == (2, "") and "--logit-bias: wanted a token id from 0 to 263, got 999" in err


def test_a_text_follows_its_grammar(main, tmp_path):  # noqa: F811
    assert main("-p", "Hi", "--grammar", 'root ::= "he" "l"*', "-n", "5")[1] == "Hihelll\n"
    path = tmp_path / "g.gbnf"
    path.write_bytes('\ufeffroot ::= "hel" | "x"\r\n'.encode())
    assert main("-p", "Hi", "--grammar-file", str(path))[1] == "Hihel\n"
    path.write_text('{"const": "hello"}')
    assert main("-p", "Hi", "-jf", str(path))[1] == 'Hi"hello"\n'
    assert main("-p", "Hi", "-j", '{"const": 5}')[1] == "Hi5\n"
    # In a chat each answer is held to it anew.
    out = main("-cnv", "--chat-template", "chatml", "--grammar", 'root ::= "yes"', stdin=b"one\ntwo\n")[1]
    assert out.count("yes") == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grammar", "root ::= ("], "--grammar: line 1, column 10: this parenthesis is not closed"),
        (["--grammar", "x ::= y"], "--grammar: wanted a rule 'root'"),
        (["-j", "{"], "--json-schema: wanted JSON, got '{'"),
        (["-j", '{"not": {}}'], "--json-schema: schema: no value is valid under its conditions"),
        (["-j", "[" * 100_000], "--json-schema: "),
        (["-j", "{}", "--grammar", 'root ::= "a"'], "--grammar and --json-schema are both given: name one"),
    ],
)
def test_a_wrong_grammar_is_one_line_before_the_model_loads(argv, message, capfd, monkeypatch):
    from llamacy.cli import main as command

    monkeypatch.setattr(command, "open_model_from", None)
    code = run(command.main, ["-p", "x", *argv])
    err = capfd.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_wrong_file_is_named(tmp_path):
    path = tmp_path / "g.gbnf"
    for data, message in [
        (b"root ::=\xff", "wanted UTF-8 text"),
        (b"root ::= x", f"--grammar-file {path}: the rule 'x'"),
    ]:
        path.write_bytes(data)
        with pytest.raises(LlamacyError) as caught:
            format_from(parsed("--grammar-file", str(path)))
        assert message in str(caught.value) and not isinstance(caught.value, UsageError)


def test_the_server_has_them_as_defaults_of_requests():
    from llamacy.cli import server
    from llamacy.server.app import Application

    argv = ["--temp", "0", "--samplers", "kt", "-n", "7", "-l", "5-inf", "--mirostat", "2"]
    args = server.build_parser().parse_args(argv)
    app = Application("x", defaults=server.defaults_of(args), format=format_from(args))
    defaults = {name: default for name, (_, default, *_) in app.options.items()}
    expected = {"temperature": 0.0, "samplers": ("top_k", "temperature"), "n_predict": 7, "mirostat": 2, "top_p": 0.95}
    assert {name: defaults[name] for name in expected} == expected
    assert app.defaults["logit_bias"] == ((5, float("-inf")),)
    assert "n_predict" not in server.defaults_of(server.build_parser().parse_args([]))
