"""`bench` over a small model: the rows and their figures; and that `make bench` knows the models it measures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import peer_ik_llama_cpp, real_models, report
from bench import run as bench_run
from bench.bandwidth import read_bandwidth
from bench.cases import CASES, GEMMA, INSTRUCTIONS, PEFT, QWEN, REAL, ROOT, Case, Peer, samples_file
from bench.make_model import N_VOCAB, SHAPES, metadata_of, tensors_of
from bench.run import weight_bytes
from llamacy.cli import bench
from llamacy.cli.run import run
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path, metadata_of("tiny"), tensors_of("tiny", by_name("Q4_0"), np.random.default_rng(1)))
    return str(path)


def test_rows_of_every_kind(tiny, capsys):
    sizes = ["-p", "8,0", "-n", "3", "-d", "0,5", "-np", "1,2", "--train", "--batch-size", "2", "--ctx-size", "16"]
    assert run(bench.main, ["-m", tiny, *sizes, "-r", "2", "-t", "1", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    suffixes = ["", " x2", " @ d5", " x2 @ d5"]
    assert [row["test"] for row in rows] == [f"{kind}{s}" for s in suffixes for kind in ("pp8", "tg3")] + [
        "train 2x16 r8"
    ]
    for row in rows:
        n_tokens = row["n_parallel"] * (row["n_prompt"] + row["n_gen"] + row["n_train"])
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["samples_ts"] == pytest.approx([n_tokens * 1e9 / ns for ns in row["samples_ns"]], rel=1e-3)
        assert row["avg_ts"] == pytest.approx(np.mean(row["samples_ts"]))
        assert row["stddev_ts"] == pytest.approx(np.std(row["samples_ts"], ddof=1))
        assert row["n_threads"] == 1
        assert row["peak_rss_bytes"] > 10_000_000


def test_epochs_over_data_are_told_in_samples(tiny, tmp_path, capsys):
    data = tmp_path / "three.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": n}) + "\n" for n in ("a", "bb", "ccc")))
    sizes = ["--train-data", str(data), "-p", "0", "-n", "0", "--batch-size", "2", "-r", "2", "-t", "1"]
    assert run(bench.main, ["-m", tiny, *sizes, "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["test"] == "train three.jsonl x2 r8" and row["unit"] == "samples"
    assert row["samples_ts"] == pytest.approx([3e9 / ns for ns in row["samples_ns"]], rel=1e-3)
    assert run(bench.main, ["-m", tiny, *sizes]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("|")[6].strip().endswith(" samples/s")


def test_peers_read_the_same_samples(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.cases.WORK", tmp_path)
    samples = json.loads(samples_file(Path(tiny)).read_text())
    with open_model(tiny) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
        for line, (ids, learnt) in zip(INSTRUCTIONS.read_text("utf-8").splitlines(), samples, strict=True):
            answer = [i for i, one in zip(ids, learnt, strict=True) if one and i != tokenizer.eos_id]
            assert (
                b"".join(map(tokenizer.token_bytes, answer)).decode().replace("▁", " ").strip()
                == json.loads(line)["output"]
            )
            assert not learnt[0]


def test_the_table(tiny, capsys):
    assert run(bench.main, ["-m", tiny, "-p", "4", "-n", "2", "-r", "1", "-t", "1"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["model", "size", "params", "threads", "test", "t/s"]
    assert set(rule) <= set("|- ")
    assert [row.split("|")[5].strip() for row in rows] == ["pp4", "tg2"]


def test_nothing_to_measure_is_wrong_usage(tiny, capsys):
    assert run(bench.main, ["-m", tiny, "-p", "0", "-n", "0"]) == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_the_cases_name_models_that_can_be_made():
    kinds = {case.model.rsplit(" ", 1)[0] for case in CASES}
    assert kinds - {name.rsplit(" ", 1)[0] for name in REAL} <= {"SmolLM2", *(f"{name} shape" for name in SHAPES)}
    assert set(REAL.values()) == set(real_models.MODELS) and set(REAL) <= {case.model for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case.ours[0] == "bin/bench"], ids=lambda case: case.name)
def test_our_side_of_each_case_parses(case):
    arguments = [str(part).format(model="m.gguf", threads=2, repetitions=2) for part in case.ours[1:]]
    assert bench.build_parser().parse_args(arguments).output == "json"


def test_a_token_reads_all_weights_but_the_table_of_embeddings(tiny):
    n_embd, n_ff, n_layer, n_head, n_head_kv, _ = SHAPES["tiny"]
    matrices = n_layer * (2 * n_embd**2 + 2 * n_embd**2 * n_head_kv // n_head + 3 * n_embd * n_ff) + n_embd * N_VOCAB
    assert weight_bytes(tiny) == matrices * 18 // 32 + 4 * n_embd * (2 * n_layer + 1)


def test_the_read_bandwidth_is_that_of_this_world():
    assert 1e8 < read_bandwidth(2, megabytes=16, rounds=2) < 1e13


@pytest.mark.parametrize("wrong", ["0", "-1", "two"])
def test_a_wrong_number_of_threads_is_one_line(wrong):
    done = subprocess.run([sys.executable, ROOT / "bench/bandwidth.py", wrong], capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and message.startswith("bandwidth.py: error: ") and wrong in message


LLAMA_BENCH = """#!/bin/sh
echo "$@" >>{log}
case "$*" in *"-rtr 1"*) speeds=30,50,40 ;; *) speeds=20,10,30 ;; esac
echo "[{{\\"samples_ts\\": [$speeds], \\"build_commit\\": \\"abc1234\\"}}]"
"""


def test_the_better_mode_of_ik_llama_cpp_counts(tmp_path):
    program, log = tmp_path / "llama-bench", tmp_path / "log"
    program.write_text(LLAMA_BENCH.format(log=log))
    program.chmod(0o755)
    found = peer_ik_llama_cpp.speed(str(program), "m.gguf", 0, 32, 4096, 2, 3)
    assert found["ts"] == [30, 50, 40] and found["mode"] == "-rtr 1" and found["peak_rss_bytes"] > 0
    assert log.read_text().splitlines() == [
        f"-m m.gguf -p 0 -n 0 -gp 4096,32 -t 2 -r 3 -rtr {mode} -o json" for mode in (0, 1)
    ]
    assert peer_ik_llama_cpp.version(str(program), "m.gguf") == "abc1234"


def test_a_failing_peer_is_said_with_its_last_line(tmp_path):
    program = tmp_path / "llama-bench"
    program.write_text("#!/bin/sh\necho loading >&2; echo cannot open m.gguf >&2; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(SystemExit, match="^cannot open m.gguf$"):
        peer_ik_llama_cpp.version(str(program), "m.gguf")


SIDE = """import json, sys
name, log = sys.argv[1:3]
open(log, "a").write(name)
print(json.dumps({"ts": {"o": [4.0, 8.0, 6.0], "t": [3.0], "k": [2.0]}[name], "peak_rss_bytes": ord(name)}))
"""


def test_a_case_is_measured_in_turns_with_both_peers(tiny, tmp_path, monkeypatch):
    script, log = tmp_path / "side.py", tmp_path / "log"
    script.write_text(SIDE)
    ours, theirs, ik = ((str(script), name, str(log)) for name in "otk")
    monkeypatch.setattr(bench_run, "model_file", lambda name, python: tiny)
    peers = (Peer("llama.cpp", theirs, 2), Peer("ik_llama.cpp", ik, 2.5))
    case = Case("a case", "tiny", ours, peers, peak_aim=100)
    found = bench_run.measure(case, 3, 1, sys.executable, 1, "llama-bench")
    assert log.read_text() == "otk" + "kto" + "otk"
    assert found["medians"] == {"llamacy": 6, "llama.cpp": 3, "ik_llama.cpp": 2} and found["ratio"] == 2
    assert found["also"] == {"ik_llama.cpp": {"ratio": 3, "aim": 2.5}}
    assert found["peak_rss_bytes"] == {"llamacy": ord("o"), "llama.cpp": ord("t"), "ik_llama.cpp": ord("k")}
    assert len(found["samples"]["llamacy"]) == 9 and found["peak_aim_bytes"] == 100
    alone = bench_run.measure(case, 1, 1, sys.executable, 1, None)
    assert alone["also"] == {} and set(alone["medians"]) == {"llamacy", "llama.cpp"}
    assert alone["processor"] == report.processor(bench_run.machine(1)) and bench_run.kernels.isa in alone["processor"]
    other = bench_run.measure(case, 1, 1, sys.executable, 1, "llama-bench", "^llama")
    assert (other["peer"], other["ratio"], other["aim"], other["also"]) == ("ik_llama.cpp", 3, 2.5, {})
    none = bench_run.measure(case, 1, 1, sys.executable, 1, None, "llama")
    assert (none["peer"], none["ratio"], none["aim"]) == (None, None, None)
    log.write_text("")
    monkeypatch.setattr(bench_run, "LONG", 0)  # a peer that takes long has one turn
    bench_run.measure(case, 3, 1, sys.executable, 1, None)
    assert log.read_text() == "ot" + "o" + "o"


def test_each_row_of_training_is_compared_with_peft_in_all_precisions():
    rows = [case for case in CASES if case.name.startswith("training") and case.peers]
    assert len(rows) >= 6 and {QWEN, GEMMA} <= {case.model for case in rows}
    for case in rows:
        assert [peer.name for peer in case.peers] == list(PEFT.values())
        assert [peer.command[-1] for peer in case.peers] == ["f32", "bf16", "nf4"]


def test_a_timed_case_counts_the_whole_process_and_its_memory(tiny, tmp_path, monkeypatch):
    slow, fast = tmp_path / "slow.py", tmp_path / "fast.py"
    slow.write_text("import time; kept = bytearray(200_000_000); time.sleep(0.4)")
    fast.write_text("")
    monkeypatch.setattr(bench_run, "model_file", lambda name, python: tiny)
    case = Case("a case", "tiny", (str(fast),), (Peer("llama.cpp", (str(slow),), 2),), timed=True)
    found = bench_run.measure(case, 1, 1, sys.executable, 1, None)
    assert found["unit"] == "s" and found["medians"]["llama.cpp"] > 0.4
    assert found["ratio"] == pytest.approx(found["medians"]["llama.cpp"] / found["medians"]["llamacy"])
    assert found["peak_rss_bytes"]["llama.cpp"] > 200_000_000


def test_a_case_too_large_for_the_machine_is_left_out(monkeypatch, capsys):
    names = [case.name for case in bench_run.chosen("", False)]
    monkeypatch.setattr(bench_run, "memory_bytes", lambda: 8e9)
    fewer = [case.name for case in bench_run.chosen("", False)]
    assert set(fewer) == {case.name for case in CASES if case.memory <= 8e9} <= set(names)
    assert "left out: training 1 x 512, r 8, 7B shape Q4_0 (wants 12 GB of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--only nothing-like-it", "nothing to measure: --only 'nothing-like-it'"),
        ("--only (", "wanted a regular expression, got '('"),
        ("--rounds 0", "wanted a whole number from 1, got '0'"),
        ("-t 0", "wanted a whole number from 1, got '0'"),
        ("--ik-llama-bench /", "--ik-llama-bench /: no such program"),
        ("--peer-python /nonexistent", "--peer-python /nonexistent: No such file or directory; `make bench` makes"),
        ("--peer-python /bin/false", "--peer-python /bin/false: ended with 1; `make bench` makes"),
    ],
)
def test_wrong_usage_of_make_bench_is_one_line(flags, words, capsys, monkeypatch):
    monkeypatch.setattr(bench_run, "bandwidth_now", lambda threads: 1e9)
    try:
        code = run(bench_run.main, flags.split())
    except SystemExit as end:
        code = end.code
    message = capsys.readouterr().err.splitlines()
    assert code == 2 and words in message.pop() and all(line.startswith("left out: ") for line in message)


def test_results_are_kept_whole_or_marked_as_a_part(tiny, tmp_path, monkeypatch, capsys):
    script = tmp_path / "side.py"
    script.write_text('print(\'{"ts": [2.0], "peak_rss_bytes": 5}\')')
    peer = Peer("llama.cpp", (str(script),), 1)
    cases = [Case(name, "a tiny", (str(script),), (peer,)) for name in ("one", "two")]
    for name, value in (
        ("CASES", cases), ("model_file", lambda name, python: tiny), ("bandwidth_now", lambda threads: 1e9),
        ("peer_versions", lambda python: {"torch": "2"}), ("ROOT", tmp_path), ("RESULTS", tmp_path / "results"),
        ("stem_of", lambda content: str(len(found))),
    ):  # fmt: skip
        monkeypatch.setattr(bench_run, name, value)
    found = []
    for flags in ([], ["--quick"], ["--only", "two"]):
        assert run(bench_run.main, ["--peer-python", sys.executable, "--rounds", "1", "-t", "1", *flags]) == 0
        found.append(json.loads((tmp_path / "results" / f"{len(found)}.json").read_text()))
    assert [content["partial"] for content in found] == [False, True, True]
    assert [[result["name"] for result in content["results"]] for content in found] == [["one", "two"]] * 2 + [["two"]]
    assert {"cpu", "threads", "isa", "read_bytes_per_second"} <= set(found[0]["machine"])
    assert {"llamacy", "commit", "python", "torch"} <= set(found[0]["versions"])


def test_without_git_or_history_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_run, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert bench_run.commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench_run.commit() == "unknown"


def test_clients_against_our_server(tiny):
    client = [sys.executable, ROOT / "bench" / "http_clients.py", 3, 5, 2]
    server = [ROOT / "bin" / "server", "-m", tiny, "-np", 2, "-c", 256, "-t", 1, "--port", "PORT"]
    done = subprocess.run([*map(str, client), *map(str, server)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["ts"]) == 2 and min(result["ts"]) > 0
    assert result["peak_rss_bytes"] > 10_000_000


def test_values_of_several_words_and_ranges(tiny, capsys):
    words = ["-p", "4", "-p", "6-10+2", "-n", "1-4*2", "-pg", "3,2", "-t", "1", "-r", "1", "--no-warmup", "-o", "jsonl"]
    assert run(bench.main, ["-m", tiny, *words]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["test"] for row in rows] == ["pp4", "pp6", "pp8", "pp10", "tg1", "tg2", "tg4", "pp3+tg2"]
    assert [row["samples_ts"][0] * row["samples_ns"][0] / 1e9 for row in rows] == pytest.approx(
        [4, 6, 8, 10, 1, 2, 4, 5], rel=1e-3
    )


def test_rows_for_several_numbers_of_threads_as_csv(tiny, capsys, monkeypatch):
    import csv

    monkeypatch.setattr("llamacy.cli.bench.fit_threads", lambda n: n)
    used = []
    monkeypatch.setattr(bench, "measure", lambda model, row, *more: used.append(model.threads) or row.fill([1.0], 1))
    assert run(bench.main, ["-m", tiny, "-p", "2", "-n", "0", "-t", "1,2", "-r", "1", "-o", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["n_threads"] for row in rows] == ["1", "2"] and used == [1, 2]
    assert {row["test"] for row in rows} == {"pp2"} and float(rows[0]["avg_ts"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "8-4"], "wanted a range that grows"),
        (["-n", "0-4*2"], "wanted a range that grows"),
        (["-p", "1-9999"], "wanted at most 1000 values"),
        (["-pg", "5"], "wanted PP,TG such as 512,128, got '5'"),
        (["-pg", "5,0"], "wanted a whole number from 1, got '0'"),
        (["-t", "1,x"], "wanted a whole number from -1, got 'x'"),
    ],
)
def test_wrong_values(words, message, capsys):
    with pytest.raises(SystemExit):
        bench.build_parser().parse_args(words)
    assert message in capsys.readouterr().err
