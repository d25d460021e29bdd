"""The sample data and the guide's: what the script makes, nothing of the held-out notes in it, every answer right."""

import importlib.util
import json
import re

import pytest

from llamacy.train.prepare import SAMPLE_DATA, sample_data
from tests.server.test_server_command import MODEL, ROOT

spec = importlib.util.spec_from_file_location("notes", ROOT / "examples" / "notes.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_the_sample_data_is_the_script_s(tmp_path):
    script.write(tmp_path)
    assert (tmp_path / "notes.jsonl").read_bytes() == SAMPLE_DATA.read_bytes()
    assert sample_data() and len(list(tmp_path.iterdir())) == 8
    told = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in tmp_path.iterdir()}
    kept = [set(told[name]) for name in ("notes", "notes-validation", "notes-held-out")]
    assert [len(each) for each in kept] == [200, 60, 60] and not (
        kept[0] & kept[1] | kept[0] & kept[2] | kept[1] & kept[2]
    )
    assert not set(told["dates"]) & set(told["dates-pairs-held-out"])
    assert not set(told["capitals"]) & set(told["capitals-validation"])


def test_preferred_dates_have_their_day_first():
    for pair in script.pairs(40, 4):
        day, month = re.search(r" (\d+)/(\d+)/2027", pair["instruction"]).groups()
        assert f"2027-{int(month):02}-{int(day):02}" in pair["chosen"]
        assert f"2027-{int(day):02}-{int(month):02}" in pair["rejected"] != pair["chosen"]


def test_every_answer_says_what_its_note_does():
    """Read with patterns of the test's own: day, month, year, time, and both names literally."""
    for record in [*script.notes(200, 1), *script.notes(60, 3, script.HELD_OUT)]:
        text, facts = record["instruction"], json.loads(record["output"])
        year, month, day = facts["date"].split("-")
        assert facts["what"] in text and facts["who"] in text and facts["time"].lstrip("0") in text
        if "年" in text:
            assert f"{year}年{int(month)}月{int(day)}日" in text
        else:
            name = re.search("|".join(script.MONTHS), text)[0]
            assert script.MONTHS.index(name) == int(month) - 1 and re.search(rf"\b{int(day)}\b", text) and year in text


@pytest.mark.filterwarnings("ignore:the first loss")
def test_the_whole_script_runs(tmp_path, monkeypatch, capsys):
    """On a model of two layers, with a few records of each kind: all files, adapters, pictures and tables."""
    monkeypatch.setattr("llamacy.default_model.default_model", lambda: str(MODEL))
    few = script.notes, script.pairs, script.capitals
    monkeypatch.setattr(script, "notes", lambda n, *more: few[0](4, *more))
    monkeypatch.setattr(script, "pairs", lambda n, *more: few[1](2, *more))
    monkeypatch.setattr(script, "capitals", lambda text: few[2](text)[:2])
    script.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count("| model") == 3 and out.count("notes.gguf") == 3 and "validation loss by step" in out
    assert {"notes.gguf", "dates.gguf", "notes.svg", "dates.svg", "capitals.svg"} <= {
        p.name for p in tmp_path.iterdir()
    }
