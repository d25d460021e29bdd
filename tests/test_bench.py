"""`bench` over a small model: the rows and their figures; and that `make bench` knows the models it measures."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bench.bandwidth import read_bandwidth
from bench.cases import CASES, EXTRA, ROOT
from bench.make_model import N_VOCAB, SHAPES, metadata_of, tensors_of
from bench.run import weight_bytes
from llamacy.cli import bench
from llamacy.cli.run import run
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.types import by_name


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
    kinds = {case.model.rsplit(" ", 1)[0] for case in CASES + EXTRA}
    assert kinds <= {"SmolLM2", *(f"{name} shape" for name in SHAPES)}
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


def test_clients_against_our_server(tiny):
    client = [sys.executable, ROOT / "bench" / "http_clients.py", 3, 5, 2]
    server = [ROOT / "bin" / "server", "-m", tiny, "-np", 2, "-c", 256, "-t", 1, "--port", "PORT"]
    done = subprocess.run([*map(str, client), *map(str, server)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["ts"]) == 2 and min(result["ts"]) > 0
    assert result["peak_rss_bytes"] > 10_000_000
