"""`finetune`'s flags, files, words and exit codes, over a real vocabulary and a trainer of four numbers."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy.cli import finetune as command
from llamacy.cli.run import run
from llamacy.formats.adapter import load_adapter, save_adapter
from llamacy.formats.lora import LoraPair
from llamacy.model.loading import Loading
from llamacy.train import budget
from llamacy.train import finetune as training
from llamacy.train.options import TARGETS, TrainOptions
from tests.train.fakes import FakeTrainer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
QUESTIONS = (ROOT / "examples" / "finetune-data.txt").read_text(encoding="utf-8")


class Recorded(FakeTrainer):
    """Remembers how it was set up; `interrupt_at` raises the signal in that step."""

    last = None
    interrupt_at = signum = None

    def __init__(self, model, options, pack_tokens):
        super().__init__()
        self.model, self.options = model, options
        Recorded.last = self

    def init_lora(self, rank, alpha, targets, seed, init_from, num_layers):
        self.setup = (rank, alpha, targets, seed, init_from)

    def keep_prefix(self, folder):
        self.kept_in = folder

    def step(self, micro_batches, lr):
        if self.n_steps + 1 == Recorded.interrupt_at:
            signal.raise_signal(Recorded.signum)
        return super().step(micro_batches, lr)


@pytest.fixture
def finetune(monkeypatch, capfd, tmp_path):
    """Return a function: arguments -> (exit code, stdout, stderr), run in a folder of its own with the data there."""
    monkeypatch.setattr(Loading, "load", lambda self, path, note: SimpleNamespace(path=path))
    monkeypatch.setattr(training, "Trainer", Recorded)
    monkeypatch.setattr(sys, "argv", ["finetune"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune-data.txt").write_text(QUESTIONS, encoding="utf-8")

    def call(*argv, interrupt_at=None, signum=signal.SIGINT):
        Recorded.last, Recorded.interrupt_at, Recorded.signum = None, interrupt_at, signum
        try:
            code = run(command.main, ["-m", str(MODEL), "--sample-prompts", "0", *map(str, argv)])
        except SystemExit as exit:
            code = exit.code
        return code, *capfd.readouterr()

    return call


def step_of(path):
    return load_adapter(path).metadata["llamacy.step"]


def test_no_data_named_trains_on_the_sample_data(finetune):
    code, out, err = finetune()
    assert (code, out) == (0, "") and "notes.jsonl: 200 samples (JSON lines)" in err
    usual = tuple(name for name in TARGETS if not name.endswith("_exps"))  # experts are adapted where they are named
    assert Recorded.last.setup == (8, 16.0, usual, 42, None)
    assert Recorded.last.options == TrainOptions(n_ctx=Recorded.last.options.n_ctx, checkpointing=False)
    assert step_of("adapter/adapter.bin") == 400 and os.path.exists("adapter/checkpoint.gguf")
    assert (
        "adapter: adapter/adapter.bin, of step 400" in err
        and f"./bin/main -m {MODEL} --lora adapter/adapter.bin" in err
    )


ORIGINAL = [
    ("-t 4 -p 32 --train-data ./finetune-data.txt --save-path ./lora-adapter.bin", "lora-adapter.bin", 2),
    (
        "--train-data finetune-data.txt --outdir adapter --lora-out adapter.bin --epochs 2 --batch-size 1 "
        "--learning-rate 1e-4 --save-every 1",
        "adapter/adapter.bin",
        4,
    ),
]


@pytest.mark.parametrize(("line", "adapter", "n_steps"), ORIGINAL)
def test_the_command_lines_people_know(finetune, line, adapter, n_steps):
    code, _, err = finetune(*line.split())
    assert code == 0, err
    assert step_of(adapter) == n_steps


FLAGS = [
    ("-b 3 --grad-accumulation 2 --epochs 5", {"batch_size": 3, "grad_acc": 2, "epochs": 5}),
    ("--epochs 5 --adam-iter 7", {"epochs": 5, "max_steps": 7}),
    ("--batch 3 --grad_acc 2 --max_steps 7", {"batch_size": 3, "grad_acc": 2, "max_steps": 7}),
    ("--lr 3e-4 --lr-schedule linear --warmup 3", {"learning_rate": 3e-4, "lr_schedule": "linear", "warmup_steps": 3}),
    ("--adam-alpha 2e-4 --weight-decay 0.1 --beta1 0.8 --beta2 0.9 --adam-eps 1e-6 --adam-gclip 0",
     {"learning_rate": 2e-4, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9, "adam_eps": 1e-6, "max_grad_norm": 0.0}),
    ("--lora-r 4 --lora-alpha 32 --rslora --target-modules q_proj,v_proj",
     {"rank": 4, "alpha": 32.0, "rslora": True, "targets": ("attn_q", "attn_v")}),
    ("--lora-dropout 0.1 --rank-wq 4 --rank-w2 1", {"lora_dropout": 0.1, "ranks": (("attn_q", 4), ("ffn_down", 1))}),
    ("--rank_wk 2 --rank-wv 3 --rank-wo 5 --rank-w1 6 --rank-w3 7",
     {"ranks": (("attn_k", 2), ("attn_v", 3), ("attn_output", 5), ("ffn_gate", 6), ("ffn_up", 7))}),
    ("--use-checkpointing --max-ram 4G", {"checkpointing": True}),
    ("--no-checkpointing", {}),
    ("--train-on-prompt --shuffle off -s 7", {"mask_prompt": False, "shuffle": False, "seed": 7}),
    ("--train-on-prompt --mask-prompt", {"mask_prompt": True}),
    ("-c 100 --num-layers 1", {"n_ctx": 100, "num_layers": 1}),
    ("--save-every 0 --save-every-steps 3", {"save_every": 0, "save_every_steps": 3}),
    ("--val-split 0.5 --eval-every 2 --early-stop 3", {"val_split": 0.5, "eval_every": 2, "early_stop": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "changed"), FLAGS)
def test_flags_become_options(finetune, line, changed):
    code, _, err = finetune("--train-data", "finetune-data.txt", *line.split())
    assert code == 0, err
    options = Recorded.last.options
    n_ctx = changed.get("n_ctx", options.n_ctx)
    # by default there is memory enough to keep activations
    assert options == TrainOptions(**{"checkpointing": False, **changed, "n_ctx": n_ctx})
    assert Recorded.last.setup[1] == options.file_alpha


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--rank 0", "--rank: wanted from 1 to 4096, got 0"),
        ("--lr 0", "--learning-rate: wanted a number above 0, got 0.0"),
        ("--lr nan", "--learning-rate: wanted a number above 0, got nan"),
        ("--epochs two", "--epochs/-epochs: invalid int value: 'two'"),
        ("--batch-size 0", "--batch-size: wanted 1 or more, got 0"),
        ("--lr-schedule step", "--lr-schedule: invalid choice: 'step'"),
        ("--target-modules attn", "--target-modules: 'attn' is unknown"),
        ("--lora-format onnx", "--lora-format: wanted one of gguf"),
        ("--plot loss.pdf", "--plot: wanted a name ending in .svg or .png"),
        ("--early-stop 2", "--early-stop and --eval-every need --val-data or --val-split"),
        ("--val-split 0.1 --val-data finetune-data.txt", "--val-data and --val-split are both given"),
        ("--lora-dropout 1", "--lora-dropout: wanted 0 or more and below 1, got 1.0"),
        ("--max-ram 3X", "--max-ram: wanted a size such as 512M or 2.5G, got '3X'"),
        ("--max-ram -1G", "--max-ram: "),
        ("--rank-wq 0", "--rank-wq: wanted a whole number from 1 to 4096, got '0'"),
        ("--show-sample 0", "--show-sample: wanted 1 or more, got 0"),
        ("-c 1", "--ctx-size: wanted 2 or more, got 1"),
        ("--epoch 3", "unrecognized arguments: --epoch 3; did you mean --epochs?"),
        ("--learning-rte=3", "unrecognized arguments: --learning-rte=3; did you mean --learning-rate?"),
        ("--frobnicate 3", "unrecognized arguments: --frobnicate 3 (see"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(finetune, flags, wanted):
    code, out, err = finetune("--train-data", "finetune-data.txt", *flags.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and wanted in err and err.startswith("finetune: ")
    assert Recorded.last is None


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--train-data missing.txt", "missing.txt: no such file"),
        ("--train-data empty.txt", "empty.txt: the file is empty"),
        ("--train-data broken.jsonl", "broken.jsonl:2: broken JSON"),
        ("--outdir file", "cannot write there: "),
        ("--log-json nofolder.txt/log", "choose another --log-json"),
        ("--plot nofolder.txt/x.svg", "choose another --plot"),
        ("--init-lora finetune-data.txt", "finetune-data.txt"),
        ("--resume", "adapter/checkpoint.gguf: no checkpoint there; leave --resume away"),
        ("-c 16", "no usable sample"),
        ("--max-ram 1K", "--max-ram 1K: the run needs "),
        ("--val-data missing.txt", "missing.txt: no such file"),
    ],
)
def test_what_cannot_work_is_told_before_training(finetune, tmp_path, flags, wanted):
    for name, text in {
        "empty.txt": "",
        "broken.jsonl": '{"text": "a"}\n{"text"\n',
        "file": "",
        "nofolder.txt": "",
    }.items():
        (tmp_path / name).write_text(text)
    words = flags.split()
    code, out, err = finetune(*([] if "--train-data" in words else ["--train-data", "finetune-data.txt"]), *words)
    lines = [line for line in err.splitlines() if line.startswith("finetune: ")]
    assert (code, out, len(lines)) == (1, "", 1) and wanted in lines[0] and "Traceback" not in err
    assert Recorded.last is None


def test_a_model_that_is_none_is_told(finetune, tmp_path):
    code, _, err = finetune("-m", "finetune-data.txt", "--train-data", "finetune-data.txt")
    assert code == 1 and err.count("\n") == 1 and "finetune-data.txt" in err


def test_more_layers_than_the_model_has_are_all_of_them(finetune):
    code, _, err = finetune("--train-data", "finetune-data.txt", "--num-layers", 99)
    assert code == 0 and "--num-layers 99 is more than the model has: all 2 are trained" in err
    assert Recorded.last.options.num_layers == 2
    assert "is more than" not in finetune("--train-data", "finetune-data.txt", "--num-layers", 2)[2]


def test_a_context_beyond_the_models_is_cut_to_it(finetune):
    code, _, err = finetune("--train-data", "finetune-data.txt", "-c", 10**6)
    assert code == 0 and re.search(r"--ctx-size 1000000 is more than the model has: (\d+) is used", err)
    most = Recorded.last.options.n_ctx
    assert finetune("--train-data", "finetune-data.txt", "-c", 0)[0] == 0 and Recorded.last.options.n_ctx == most


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_saved_and_goes_on(finetune, signum, code):
    line = ["--train-data", "finetune-data.txt", "--epochs", 10, "--log-json", "log.json"]
    assert finetune(*line, "--outdir", "whole", "--log-json", "whole.json")[0] == 0
    whole = Recorded.last
    got, _, err = finetune(*line, interrupt_at=7, signum=signum)
    assert got == code and "stopping after this step" in err and "with --resume goes on" in err
    assert step_of("adapter/adapter.bin") == 7
    assert finetune(*line, "--resume")[0] == 0
    assert step_of("adapter/adapter.bin") == 20
    assert Recorded.last.w.tobytes() == whole.w.tobytes()
    logs = [[json.loads(row) for row in Path(name).read_text().splitlines()] for name in ("log.json", "whole.json")]
    assert [row["step"] for row in logs[0]] == list(range(1, 21))
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_a_run_that_nobody_can_read_is_saved(tmp_path):
    """`finetune 2>&1 | tee log`: Ctrl-C ends `tee` first."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from llamacy.cli.entry import finetune; raise SystemExit(finetune())"
    line = ["-m", MODEL, "--max-steps", "2", "--outdir", tmp_path]
    # with Python's own buffers, whatever the tests are started with
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code, *map(str, line)]
    done = subprocess.run(command, stdout=writer, stderr=writer, cwd=ROOT, env=buffered)
    os.close(writer)
    assert done.returncode == 0 and step_of(tmp_path / "adapter.bin") == 2


def test_a_new_run_tells_what_it_replaces(finetune):
    line = ["--train-data", "finetune-data.txt", "--epochs", 10]
    finetune(*line, interrupt_at=7)
    code, _, err = finetune(*line, "--max-steps", 9)
    assert code == 0
    assert "adapter/checkpoint.gguf: of a run that was stopped at step 7 of 20; --resume goes on with it" in err
    assert "of a run" not in finetune(*line, "--max-steps", 9)[2]


def test_a_disk_too_full_for_the_adapter_is_told_before_training(finetune, monkeypatch):
    line = ["--train-data", "finetune-data.txt", "--max-steps", 1]
    assert "are free there" not in finetune(*line)[2]
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 10))
    code, _, err = finetune(*line)
    assert code == 0 and "warning: adapter/adapter.bin: 10K are free there, the run will save " in err


def test_a_table_is_learnt_row_by_row_as_often_as_its_weight_says(finetune, tmp_path):
    (tmp_path / "data.CSV").write_text("question,answer\nWho?,Me.\nWhat?,\n")
    code, _, err = finetune("--train-data", "data.CSV:3", "--epochs", 1)
    assert code == 0 and "data.CSV: 1 sample (table, columns between commas), 3 times each" in err
    assert "training 3 steps" in err and "1 sample skipped" in err
    code, _, err = finetune("--train-data", "data.CSV", "--epochs", 1, "--keep-empty", "--max-samples", 9)
    assert code == 0 and "data.CSV: 2 samples (table" in err and "training 2 steps" in err
    assert "an epoch: 2 samples, " in err and "the first sample, what is learnt of it in ⟦⟧:\n  | " in err
    assert re.search(r"adapter: [\d,]+ trained parameters, \d+\.\d\d % of the matrices' [\d,]+; at most", err)


def test_a_checkpoint_of_other_data_is_told_without_numbers(finetune, tmp_path):
    assert finetune("--train-data", "finetune-data.txt", "--max-steps", 1)[0] == 0
    (tmp_path / "other.txt").write_text("Once upon a time.")
    code, _, err = finetune("--train-data", "other.txt", "--resume")
    assert code == 1 and "the checkpoint was made with other data; give the same --train-data" in err


def test_llama_cpps_names_are_filled_in(finetune):
    flags = (
        "--checkpoint-in chk-LATEST.gguf --checkpoint-out chk-ITERATION.gguf --lora-out lora-ITERATION.bin --outdir ."
    )
    code, _, err = finetune("--train-data", "finetune-data.txt", *flags.split())
    assert code == 0 and "chk-LATEST.gguf: no checkpoint there yet, starting anew" in err
    names = sorted(name for name in os.listdir() if name.startswith(("chk", "lora")))
    adapters = ["lora-2.bin", "lora-4.bin", "lora-LATEST.bin", "lora-LATEST.bin.toml"]  # the last: the run's flags
    assert names == ["chk-2.gguf", "chk-4.gguf", "chk-LATEST.gguf", *adapters]
    code, _, err = finetune("--train-data", "finetune-data.txt", *flags.split(), "--epochs", 3)
    assert code == 0 and "chk-LATEST.gguf: going on from step 4" in err and step_of("lora-6.bin") == 6


def test_an_adapter_to_start_from_sets_rank_scale_and_matrices(finetune):
    finetune("--train-data", "finetune-data.txt", "--outdir", "first")
    adapter = load_adapter("first/adapter.bin")
    adapter.pairs["blk.0.attn_q.weight"].scale = 3.0
    save_adapter("start.gguf", adapter)
    code, _, err = finetune("--train-data", "finetune-data.txt", "--init-lora", "start.gguf")
    assert code == 0, err
    rank, alpha, targets, _, start = Recorded.last.setup
    assert (rank, alpha, targets) == (1, 3.0, ("blk.0.attn_q.weight",))
    assert list(start.pairs) == ["blk.0.attn_q.weight"] and "samples: rank 1, alpha 3," in err
    assert finetune("--train-data", "finetune-data.txt", "--init-lora", "start.gguf", "--num-layers", 2)[0] == 0
    assert Recorded.last.setup[2] == ("attn_q",)
    pair = adapter.pairs["blk.0.attn_q.weight"]
    wide = LoraPair(np.ones((3, pair.a.shape[1]), np.float32), np.ones((pair.b.shape[0], 3), np.float32), 1.0)
    adapter.pairs |= {"blk.0.attn_k.weight": pair, "blk.1.attn_k.weight": pair, "blk.0.attn_v.weight": wide}
    save_adapter("mixed.gguf", adapter)
    code, _, err = finetune("--train-data", "finetune-data.txt", "--init-lora", "mixed.gguf")
    assert code == 0 and "samples: ranks 1 to 3, alpha 3," in err
    assert (Recorded.last.options.rank, Recorded.last.options.ranks) == (1, (("attn_v", 3),))
    assert Recorded.last.setup[2] == ("attn_k", "blk.0.attn_q.weight", "blk.0.attn_v.weight")
    adapter.pairs["blk.1.attn_v.weight"] = pair
    save_adapter("mixed.gguf", adapter)
    assert finetune("--train-data", "finetune-data.txt", "--init-lora", "mixed.gguf")[0] == 0
    assert (Recorded.last.options.ranks, Recorded.last.setup[1]) == ((), 3.0)
    line = ["--train-data", "finetune-data.txt", "--init-lora", "mixed.gguf"]
    for flags, wanted in [
        (["--rank", 1], "--rank: mixed.gguf has ranks 1, 3; leave ranks away"),
        (["--lora-alpha", 16], "--lora-alpha and --rslora: mixed.gguf has scales of its own; leave them away"),
        (["--rslora"], "--lora-alpha and --rslora: mixed.gguf has scales of its own; leave them away"),
    ]:
        code, _, err = finetune(*line, *flags)
        assert code == 2 and wanted in err
    assert finetune("--train-data", "finetune-data.txt", "--init-lora", "start.gguf", "--lora-alpha", 3)[0] == 0
    code, _, err = finetune("--train-data", "finetune-data.txt", "--init-lora", "start.gguf", "--rank", 4)
    assert code == 2 and "start.gguf has rank 1" in err


def test_a_plot_and_validation(finetune):
    code, _, err = finetune("--train-data", "finetune-data.txt", "--val-split", "0.5", "--plot", "loss.svg")
    assert code == 0 and "validation loss" in err and "the best by validation loss" in err
    assert Path("loss.svg").read_text().startswith("<svg")
    Path("one.txt").write_text("hello")
    code, _, err = finetune("--train-data", "one.txt", "--val-split", "0.5")
    assert code == 1 and "wanted 2 samples or more to split, got 1" in err


def test_samples_are_shown_as_text_and_as_tokens_and_nothing_is_trained(finetune, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "Hi", "completion": "鱼"}\n')
    code, out, err = finetune("--train-data", "data.jsonl", "--show-sample", 5)
    assert code == 0 and "data.jsonl: 1 sample" in err
    head, *text = out.splitlines()
    assert re.fullmatch(r"sample 1 of 1: \d+ tokens, \d+ trained \(⟦⟧\)", head) and text == ["  | <s> Hi⟦ 鱼</s>⟧"]
    code, out, err = finetune("--train-data", "data.jsonl", "--show-sample", 5, "--verbose")
    lines = out.splitlines()
    assert re.fullmatch(r"sample 1 of 1: \d+ tokens, \d+ trained \(\*\)", lines[0])
    assert lines[1] == "       1 '<s>'" and not lines[2].startswith("*") and lines[-1] == "*      2 '</s>'"
    trained = [line.split(maxsplit=2)[2] for line in lines if line.startswith("*")]
    assert len(trained) == int(re.search(r"(\d+) trained", lines[0])[1])
    assert Recorded.last is None and not os.path.exists("adapter")


@pytest.mark.parametrize(("flags", "n_warnings"), [([], 1), (["--chat-template", "chatml"], 0)])
def test_messages_are_written_by_a_chat_template(finetune, tmp_path, flags, n_warnings):
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"messages": messages}))
    code, out, err = finetune("--train-data", "chat.jsonl", "--show-sample", 1, "-v", *flags)
    rows = [(line[0], ast.literal_eval(line.split(maxsplit=2)[2] if line[0] == "*" else line.split(maxsplit=1)[1]))
            for line in out.splitlines()[1:]]  # fmt: skip
    text = {mark: "".join(piece for got, piece in rows if got == mark) for mark in "* "}
    assert code == 0 and text["*"].strip().startswith("Two.<|im_end|>") and "assistant" in text[" "]
    assert err.count("warning: the model has no chat template: using chatml") == n_warnings
    assert finetune("--train-data", "chat.jsonl", *flags)[0] == 0
    assert load_adapter("adapter/adapter.bin").metadata["llamacy.prompt_template"] == "chat"


def test_what_the_template_is_given_besides(finetune, tmp_path):
    """A record's own values go first."""
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ mood }}{{ m.content }}{% endfor %}")
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    records = [{"messages": messages}, {"messages": messages, "chat_template_kwargs": {"mood": "B"}}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = ["--train-data", "chat.jsonl", "--verbose", "--show-sample", 2, "--chat-template", "t.jinja"]
    _, out, _ = finetune(*words, "--chat-template-kwargs", '{"mood": "A"}')
    pieces = [line.split(maxsplit=2 if line[0] == "*" else 1)[-1] for line in out.splitlines()]
    said = "".join(ast.literal_eval(piece) if piece[0] in "'\"" else "|" for piece in pieces)
    assert [part.count("A") for part in said.split("|")[1:]] == [2, 0], said
    assert [part.count("B") for part in said.split("|")[1:]] == [0, 2]
    assert finetune(*words, "--chat-template-kwargs", "[1]")[0] == 2


def test_the_adapter_says_how_it_came_to_be(finetune):
    finetune("--train-data", "finetune-data.txt")
    metadata = load_adapter("adapter/adapter.bin").metadata
    assert metadata["llamacy.prompt_template"] == "instruct" and metadata["llamacy.n_samples"] == 2
    assert metadata["general.base_model.count"] == 1


def test_help_and_wrong_usage_need_no_numpy():
    import subprocess

    code = "import sys; sys.modules['numpy'] = None\nfrom llamacy.cli.finetune import main\nmain(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "--train-data FILE" in done.stdout


def test_what_is_said_before_the_first_step(finetune, tmp_path):
    """One short report: samples, tokens, what is learnt of them, duplicates, parameters, memory, time, a sample."""
    rows = ['{"prompt": "Hi", "completion": "鱼"}'] * 3 + ['{"prompt": "Bye", "completion": "%s"}' % ("go " * 40)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    code, _, err = finetune("--train-data", "data.jsonl", "-c", 30, "--val-split", "0")
    said = err[: err.index("epoch 1/2  step 1/8")]
    assert code == 0 and "data.jsonl: 4 samples (JSON lines)" in said and "1 sample longer than the context" in said
    assert re.search(r"an epoch: 4 samples, \d+ tokens \(mean \d+, longest 30\), \d+ % of them learnt; dupl.*: 2", said)
    assert re.search(r"adapter: [\d,]+ trained parameters, [\d.]+ % of .*; at most [\d.]+[MG] of memory", said)
    assert re.search(r"time: about 0:0\d, at \d+ tokens/s as one pass took just now", said)
    assert "training 8 steps of 1 x 1 samples" in said and "  | <s> Hi⟦ 鱼</s>⟧" in said
    code, _, err = finetune("--train-data", "data.jsonl", "--verbose")
    assert "\n*      2 '</s>'\n" in err[: err.index("step 1/8")] and "⟦" not in err
