"""`main`'s flags, output and errors, over a model without weights."""

import ast
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llamacy import default_model, system
from llamacy.cli import common, prompt
from llamacy.cli import main as command
from llamacy.cli.run import run
from llamacy.errors import LlamacyError, UsageError
from tests.generate.fakes import FakeModel


class Stdout(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")

    @property
    def text(self):
        return self.buffer.getvalue().decode("utf-8", "surrogateescape")


@pytest.fixture
def main(monkeypatch, capfd):
    """Return a function: arguments -> (exit code, stdout, stderr); the model answers `answer`."""

    def call(*argv, answer=b"hello", prompt_length=3, n_ctx_train=4096, stdin=b""):
        model = FakeModel(answer=answer, prompt_length=prompt_length, n_ctx_train=n_ctx_train)
        monkeypatch.setattr(command, "open_model_from", lambda args: model)
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", Stdout())
        monkeypatch.setattr(sys, "argv", ["main"])
        try:
            code = run(command.main, list(argv))
        except SystemExit as exit:
            code = exit.code
        return code, sys.stdout.text, capfd.readouterr().err

    return call


def test_the_prompt_is_echoed_and_the_text_follows(main):
    code, out, err = main("-p", "Hi")
    assert (code, out) == (0, "Hihello\n")
    assert "prompt: 3 tokens" in err and "generation: 6 tokens" in err and "load: " in err and "seed: " in err


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (["-p", "Hi", "--no-display-prompt"], "hello\n"),
        (["-p", "Hi", "--no_display_prompt", "-n", "3"], "hel\n"),
        (["-p", "Hi", "-n", "0"], "Hi\n"),
        (["-p", "Hi", "--stop", "llo"], "Hihe\n"),
        (["-p", "Hi", "-r", "zz", "-r", "lo"], "Hihel\n"),
        (["-p", r"\n", "-e", "-n", "1"], "\nh\n"),
        (["-p", r"\n", "-n", "1"], "\\nh\n"),
    ],
)
def test_flags(main, argv, out):
    prompt_length = 2 if "-e" in argv else 3
    assert main(*argv, prompt_length=prompt_length)[:2] == (0, out)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("é\n\n", "é\n"),
        ("é\r\n", "é"),
        ("é\n\r\n", "é\n"),
        ("\ufeffé\r\n", "é"),
        ("é\ufeff", "é\ufeff"),
        ("é\r", "é\r"),
        ("\n", ""),
    ],
)
def test_what_an_editor_adds_to_a_file_is_no_prompt(main, tmp_path, data, text):
    file = tmp_path / "prompt.txt"
    file.write_bytes(data.encode())
    size = 1 + len(text.encode())
    assert main("-f", str(file), prompt_length=size)[:2] == (0, f"{text}hello\n")
    # the same from a pipe, with or without being asked for
    for more in ((), ("-f", "-")):
        assert main(*more, stdin=data.encode(), prompt_length=size)[:2] == (0, f"{text}hello\n")
    # and as it stands where every byte counts
    size = 1 + len(data.encode())
    assert main("-bf", str(file), prompt_length=size)[:2] == (0, f"{data}hello\n")


def test_files_that_are_no_text(main, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"abc\xff")
    code, out, err = main("-f", str(file))
    assert (code, out) == (1, "") and f"{file}: wanted UTF-8 text, got other bytes at offset 3" in err
    code, out, err = main(stdin=b"abc\xff")
    assert (code, out) == (1, "") and "standard input: wanted UTF-8 text, got other bytes at offset 3" in err
    assert main("-bf", str(file), prompt_length=5)[1] == "abc\udcffhello\n"


def test_characters_stream_whole_and_stdout_is_utf8(main, monkeypatch):
    pieces = []
    monkeypatch.setattr(command, "show", pieces.append)
    main("-p", "Hi", answer="aé日\U0001f600".encode())
    assert [piece for piece in pieces if piece] == ["Hi", "a", "é", "日", "\U0001f600", "\n"]
    monkeypatch.undo()


def test_an_unfinished_character_at_the_end(main):
    assert main("-p", "Hi", answer=b"a\xe6\x97", n_ctx_train=64)[1] == "Hia\ufffd\n"


@pytest.mark.parametrize("stdin", [b"", None], ids=["empty", "closed"])
def test_no_prompt_begins_a_text(main, stdin):
    assert main(prompt_length=1, stdin=stdin)[:2] == (0, "hello\n")
    assert main("-f", "-", prompt_length=1, stdin=stdin)[:2] == (0, "hello\n")


def test_a_terminal_or_a_prompt_leaves_stdin_alone(main, monkeypatch):
    assert main("-p", "Hi", stdin=b"other")[1] == "Hihello\n"
    assert main("-p", "", prompt_length=1, stdin=b"other")[1] == "hello\n"
    monkeypatch.setattr(prompt, "_is_piped", lambda: False)
    assert main(prompt_length=1, stdin=b"other")[1] == "hello\n"


def test_what_is_piped(monkeypatch):
    for stdin, piped in (
        (None, False),
        (SimpleNamespace(isatty=lambda: True), False),
        (SimpleNamespace(isatty=lambda: False), True),
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert prompt._is_piped() == piped
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    assert not prompt._is_piped()


def test_escapes_are_read_in_piped_prompts_too(main):
    assert main("-e", stdin=rb"\n", prompt_length=2)[1] == "\nhello\n"
    assert main("-e", "--no-escape", stdin=rb"\n", prompt_length=3)[1] == "\\nhello\n"


def test_the_prompt_is_never_cut(main):
    code, out, err = main("-p", "x" * 50, "-c", "20")
    assert (code, out) == (1, "")
    assert "wanted fewer than 20 tokens (the context size), got 51; shorten it or raise --ctx-size" in err
    assert err.count("\n") == 1


def test_a_full_context_is_reported(main):
    code, out, err = main("-p", "Hi", "-c", "6", "-n", "-1")
    assert (code, out) == (0, "Hihell\n") and "the context of 6 tokens is full" in err


def test_verbose_prompt_lists_the_tokens_on_stderr(main):
    _, out, err = main("-p", "Hi", "--verbose-prompt")
    assert out == "Hihello\n" and "72 -> 'H'" in err and "105 -> 'i'" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--top-p", "2"], "--top-p: wanted a number from 0 to 1, got '2'"),
        (["-n", "x"], "-n/--n-predict/--predict: wanted a whole number from -2, got 'x'"),
        (["--temp", "nan"], "wanted a number, got 'nan'"),
        (["--nonsense"], "--nonsense"),
        (["-p", "a", "-f", "b"], "--prompt and --file are both given"),
        (["--lora-scaled", "a", "x"], "wanted a finite number as the scale, got 'x'"),
        (["--logit-bias", "x+1"], "wanted ID+BIAS"),
    ],
)
def test_wrong_usage_is_one_line_and_2(main, argv, message):
    code, out, err = main(*argv)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_missing_prompt_file_is_one_line_and_1(main):
    code, _, err = main("-f", "/nonexistent/prompt.txt")
    assert code == 1 and "/nonexistent/prompt.txt" in err and err.count("\n") == 1


def test_an_interrupt_ends_the_line_and_is_130(main, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    from llamacy.generate.engine import Engine

    monkeypatch.setattr(Engine, "run", interrupted)
    assert main("-p", "Hi")[:2] == (130, "Hi\n")


def test_help_lists_every_flag_of_the_contract(main):
    code, out, _ = main("--help")
    flags = """-m --model -p --prompt -f --file -n --n-predict -c --ctx-size -b --batch-size -t --threads -s --seed -e
        --escape --temp --temperature --top-k --top-p --min-p --typical --repeat-penalty --repeat-last-n
        --presence-penalty --frequency-penalty --logit-bias --ignore-eos -r --reverse-prompt --stop --lora
        --lora-adapter --lora-scaled --no-display-prompt --verbose-prompt --no-mmap --mlock --activations"""
    parser = command.build_parser()
    assert code == 0
    assert set(flags.split()) <= set(parser._option_string_actions)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\nb\tc\\n\"\'\r", "a\nb\tc\\n\"'\r"),
        (r"\xe6\x97\xa5", "日"),
        (r"\q\x1", r"\q\x1"),
        ("日", "日"),
        ("\\", "\\"),
    ],
)
def test_escapes(text, expected):
    assert command.unescape(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.gguf", ("a.gguf", 1.0)),
        ("dir/a.gguf:0.5", ("dir/a.gguf", 0.5)),
        ("dir/a.gguf:-1e-1", ("dir/a.gguf", -0.1)),
        ("C:\\a.gguf", ("C:\\a.gguf", 1.0)),
        ("C:\\a.gguf:2", ("C:\\a.gguf", 2.0)),
        ("C:2", ("C:2", 1.0)),
        ("a:b.gguf", ("a:b.gguf", 1.0)),
        (":0.5", (":0.5", 1.0)),
    ],
)
def test_adapter_and_scale(text, expected):
    assert common.adapter_and_scale(text) == expected


def test_an_existing_file_with_a_colon_wins(tmp_path):
    path = tmp_path / "a:0.5"
    path.touch()
    assert common.adapter_and_scale(str(path)) == (str(path), 1.0)
    assert common.adapter_and_scale(f"{path}:0.25") == (str(path), 0.25)
    with pytest.raises(UsageError, match="wanted a finite number as the scale, got 'inf'"):
        common.adapter_and_scale("a.gguf:inf")


def test_adapters_keep_their_order():
    parser = command.build_parser()
    args = parser.parse_args(["--lora", "aa:0.5", "--lora-scaled", "bb", "2", "--lora-adapter", "cc"])
    assert args.lora == [("aa", 0.5), ("bb", 2.0), ("cc", 1.0)]
    assert parser.parse_args([]).lora == []


def test_the_default_model_is_named_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(default_model.llamacy, "__file__", str(tmp_path / "llamacy" / "__init__.py"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(LlamacyError, match="llamacy-fetch"):
        default_model.default_model()
    cached = tmp_path / "home" / ".cache" / "llamacy" / default_model.MODEL_NAME
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert default_model.default_model() == str(cached)


def test_physical_cores_are_between_one_and_all():
    import os

    assert 1 <= system.physical_cores() <= os.cpu_count()


@pytest.mark.parametrize("words", [["--mlock"], ["--load-mode", "mlock"], ["-lm", "mmap+mlock"]])
def test_mlock_goes_on_where_it_is_refused(monkeypatch, capsys, words):
    import ctypes

    import llamacy.model.loading

    opened = []
    monkeypatch.setattr(llamacy.model.loading, "load_model", lambda path, **more: opened.append(more["mmap"]))
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **more: SimpleNamespace(mlockall=lambda flags: -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: 12)
    common.open_model_from(command.build_parser().parse_args(["-m", "x", *words]))
    assert "warning: --mlock: Cannot allocate memory; going on without it" in capsys.readouterr().err
    assert opened == [words[-1] != "mlock"]


LOADING = {
    "": True,
    "--no-mmap": False,
    "-lm none": False,
    "-lm dio": False,
    "-lm auto": True,
}


@pytest.mark.parametrize(("line", "mapped"), LOADING.items())
def test_how_a_model_is_loaded(monkeypatch, capsys, line, mapped):
    import llamacy.model.loading

    opened = []
    monkeypatch.setattr(llamacy.model.loading, "load_model", lambda path, **more: opened.append(more["mmap"]))
    common.open_model_from(command.build_parser().parse_args(["-m", "x", *line.split()]))
    assert opened == [mapped] and capsys.readouterr().err == ""


LOCKED = """
import mmap
import sys
from llamacy.system import lock_memory
apart, kept = mmap.mmap(-1, 300 << 20), bytearray(b"x") * (50 << 20)
print("--mlock" * bool(lock_memory()), file=sys.stderr)
print({line.split()[0]: int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("Vm")})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mlock_brings_nothing_into_memory():
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, check=True)
    if "--mlock" in done.stderr:
        pytest.skip("the system refuses to lock memory")
    megabytes = ast.literal_eval(done.stdout)
    assert 50 < megabytes["VmRSS:"] < 300 < megabytes["VmLck:"]


def test_more_context_than_trained_is_a_warning(capsys):
    model = SimpleNamespace(config=SimpleNamespace(n_ctx_train=100, n_ctx_plain=100))
    assert common.context_of(SimpleNamespace(ctx_size=200), model) == 200
    assert "above the model's 100" in capsys.readouterr().err
    assert common.context_of(SimpleNamespace(ctx_size=0), model) == 100
    assert common.context_of(SimpleNamespace(ctx_size=None), model) == 100


@pytest.mark.parametrize("text", ["-text", "--no-display-prompt", "-p", "- a list", "a=b", "--no_mmap"])
def test_a_prompt_may_begin_with_a_dash(main, text):
    assert main("-p", text, "-n", "5", prompt_length=len(text) + 1)[:2] == (0, f"{text}hello\n")
    assert main("--prompt", text, "--stop", "-o", "-n", "5", prompt_length=len(text) + 1)[1] == f"{text}hello\n"


def test_a_prompt_that_is_missing_is_wrong_usage(main):
    assert main("-p")[0] == 2


def test_drafts_give_the_same_text_and_are_counted(main):
    answer, prompt = b"and so on " * 12, ("-p", "and so on ", "-n", "100")
    plain, drafted = (main(*prompt, *more, answer=answer, prompt_length=11) for more in ((), ("--draft-lookup", "6")))
    assert plain[1] == drafted[1] == "and so on " + answer[:100].decode() + "\n"
    assert "drafted right" in drafted[2] and "drafted" not in plain[2]


def test_a_full_context_stops_or_shifts(main):
    more = ("-p", "Hi", "-n", "50", "-c", "16", "--ignore-eos")
    stopped, shifted = main(*more, answer=b"x" * 99), main(*more, "--context-shift", "--keep", "2", answer=b"x" * 99)
    assert stopped[1] == "Hi" + 14 * "x" + "\n"
    assert "context of 16 tokens is full" in stopped[2]
    assert "50 tokens" in shifted[2] and "full" not in shifted[2]
