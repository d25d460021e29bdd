"""Results of `make bench` in the docs: the table, the picture, and the page as the file that it names says."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from bench import report
from bench.cases import CASES

RESULT = {
    "name": "generation of 64, a <model>",
    "unit": "tokens/s",
    "peer": "llama.cpp",
    "medians": {"llamacy": 90.0, "llama.cpp": 45.0},
    "ratio": 2.0,
    "aim": 1.7,
    "bytes_per_token": 200_000_000,
    "peak_rss_bytes": {"llamacy": 210_400_000, "llama.cpp": 400_000_000},
    "samples": {"llamacy": [90.0], "llama.cpp": [45.0]},
}
BOTH = RESULT | {
    "medians": RESULT["medians"] | {"ik_llama.cpp": 60.0},
    "also": {"ik_llama.cpp": {"ratio": 1.5, "aim": 1}},
    "read_bytes_per_second": 40e9,
    "peak_rss_bytes": RESULT["peak_rss_bytes"] | {"ik_llama.cpp": 300_000_000},
    "peak_aim_bytes": 250e6,
}
ALONE = RESULT | {"name": "without a peer", "peer": None, "medians": {"llamacy": 7.0}, "ratio": None}
CONTENT = {
    "time": "2030-01-02T03:04:05Z",
    "machine": {"cpu": "A CPU", "threads": 2, "isa": "avx2", "read_bytes_per_second": 20e9},
    "versions": {"llamacy": "1", "commit": "abc", "python": "3.11", "torch": "2"},
    "results": [RESULT, ALONE | {"bytes_per_token": None, "peak_rss_bytes": {}}],
}


def test_the_table():
    head, rule, row, alone = report.table(CONTENT["results"], 20e9).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1:] == ["90.00 tokens/s", "45.00 tokens/s, llama.cpp", "2.00x", "1.7x", "210 MB / 400 MB", "90%", "-"]
    assert [cell.strip() for cell in alone.split("|")[2:-1]] == ["7.00 tokens/s", "-", "-", "-", "-", "-", "-"]
    assert len({len(line) for line in (head, rule, row, alone)}) == 1


def test_a_second_peer_has_a_row_and_a_bar_of_its_own():
    _, _, first, second = report.table([BOTH], 20e9).splitlines()
    cells = [cell.strip() for cell in first.split("|")[2:-1]]
    assert cells[1:] == ["45.00 tokens/s, llama.cpp", "2.00x", "1.7x", "210 MB (<= 250) / 400 MB", "45%", "-"]
    cells = [cell.strip() for cell in second.split("|")[1:-1]]
    assert cells == ["", "", "60.00 tokens/s, ik_llama.cpp", "1.50x", "1x", "/ 300 MB", "", ""]
    root = ElementTree.fromstring(report.picture(CONTENT | {"results": [BOTH]}))
    spaces = "{http://www.w3.org/2000/svg}"
    _, bar, _, other, _ = root.findall(f"{spaces}rect")
    assert float(other.get("width")) == pytest.approx(0.75 * float(bar.get("width")), abs=0.2)
    assert "… ik_llama.cpp" in [text.text for text in root.findall(f"{spaces}text")]


def test_the_page_is_filled_again_and_again():
    page = f"# Title\n\n{report.BEGIN}{report.END}\nThe rest.\n"
    once = report.filled(page, [CONTENT])
    assert "## A CPU, avx2\n\n2 threads, reading 20.0 GB/s" in once and once.endswith("\nThe rest.\n")
    assert "| A CPU, avx2 |" in once
    assert report.filled(once, [CONTENT]) == once


def test_the_picture_has_a_bar_as_long_as_the_ratio():
    root = ElementTree.fromstring(report.picture(CONTENT))
    spaces = "{http://www.w3.org/2000/svg}"
    _, bar, _ = root.findall(f"{spaces}rect")
    line = root.find(f"{spaces}line")
    one = float(line.get("x1")) - report.LEFT
    assert float(bar.get("width")) == pytest.approx(2 * one, abs=0.2)
    assert "generation of 64, a <model>" in [text.text for text in root.findall(f"{spaces}text")]


def test_the_docs_show_the_results_that_they_name():
    page = report.PAGE.read_text("utf-8")
    names = re.findall(r"\(\.\./bench/results/([\d-]+\.json)\)", page)
    contents = [json.loads((report.RESULTS / name).read_text()) for name in names]
    assert names == [f"{report.stem_of(content)}.json" for content in contents] and names
    assert page == report.filled(page, contents), "run `make report`"
    for content in contents:
        assert report.picture_path(content).read_text("utf-8") == report.picture(content), "run `make report`"
    assert set(report.DOCS.glob("*.svg")) >= {report.picture_path(content) for content in contents}
    (mine,) = [one for one in contents if report.processor(one["machine"]) == report.README_PROCESSOR]
    for readme in report.READMES:
        text = readme.read_text("utf-8")
        assert text == report.filled_readme(text, mine["results"]), "run `make report`"


def test_each_kind_of_processor_keeps_its_table(tmp_path, monkeypatch):
    for name in ("RESULTS", "DOCS"):
        monkeypatch.setattr(report, name, tmp_path)
    page, readme = tmp_path / "page.md", tmp_path / "readme.md"
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "READMES", [readme])
    monkeypatch.setattr(report, "README_PROCESSOR", "A CPU, avx2")
    monkeypatch.setattr(report, "IN_README", [RESULT["name"]])
    page.write_text(f"{report.BEGIN}{report.END}")
    readme.write_text("| | llamacy | p | |\n|---|---|---|---|\n| a | 1 | 1 | 1x |\n")

    def keep(stem, median, **more):
        result = RESULT | {"medians": {"llamacy": median, "llama.cpp": 45.0}}
        machine = CONTENT["machine"] | more
        content = CONTENT | {"time": stem, "machine": machine, "results": [result]}
        (tmp_path / f"{stem}.json").write_text(json.dumps(content))
        report.write(report.newest())

    keep("2030-01-01-00-00", 60.0)
    keep("2030-01-02-00-00", 70.0, isa="avx512")
    keep("2030-01-03-00-00", 80.0, isa="avx512", extensions=["amx_int8"])
    text = page.read_text()
    assert re.findall("^## (.*)$", text, re.M) == [
        "A CPU, avx2", "A CPU, avx512", "A CPU, avx512 + amx_int8",
    ]  # fmt: skip
    assert [f"{n}.00 tokens/s" in text for n in (60, 70, 80)] == [True, True, True]
    assert "| 60 |" in readme.read_text()
    keep("2030-01-04-00-00", 61.0)
    text = page.read_text()
    assert [f"{n}.00 tokens/s" in text for n in (60, 61, 70, 80)] == [False, True, True, True]
    assert len(list(tmp_path.glob("performance-*.svg"))) == 3 and "| 61 |" in readme.read_text()


def test_a_readme_keeps_its_words_and_gets_the_figures():
    assert set(report.IN_README) <= {case.name for case in CASES}
    rows = ["| 快 | 1, 2 MB | 3, 4 MB, llama.cpp 0.3 | 9.99x |", "| after | 0.50 s | 1 s, llama.cpp | 2.00x |"]
    text = "\n".join(["| a | 7 |", "| | llamacy | 对手 | |", "|---|---|---|---|", *rows, "", "| 5 | 6 |", ""])
    first = RESULT | {"name": report.IN_README[0], "medians": {"llamacy": 90.4, "llama.cpp": 9.04}}
    found = report.filled_readme(text, [first]).splitlines()
    assert found[3] == "| 快 | 90, 210 MB | 9, 400 MB, llama.cpp 0.3 | 2.00x |"
    assert found[:3] + found[4:] == text.splitlines()[:3] + text.splitlines()[4:]


def test_a_part_of_the_measures_is_not_put_into_the_docs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.newest() == {}
    for stem, partial in (
        ("2030-01-01-00-00", {}),
        ("2030-01-02-00-00", {"partial": False}),
        ("2031", {"partial": True}),
    ):
        (tmp_path / f"{stem}.json").write_text(json.dumps(CONTENT | {"time": stem} | partial))
    (found,) = report.newest().values()
    assert found["time"] == "2030-01-02-00-00"
    (found,) = report.newest(CONTENT | {"time": "named"}).values()
    assert found["time"] == "named"


def test_a_file_without_results_is_one_line():
    for name in ("/nonexistent.json", "README.md"):
        done = subprocess.run(
            [sys.executable, "bench/report.py", name], cwd=report.ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.startswith(f"report: {name}: ") and done.stderr.count("\n") == 1
