"""Plot and page are drawn while the run lasts; the page is one file, needs nothing, and escapes what it shows."""

import html.parser
import math
import os
import re

import pytest

from llamacy.errors import LlamacyError, UsageError
from llamacy.train.comparison import Answers, Comparison, Perplexity, Question
from llamacy.train.job import Job
from llamacy.train.options import TrainOptions
from llamacy.train.report import Report, check_report, page, settings_of
from llamacy.train.state import Progressed
from llamacy.train.watching import INTERVAL, Pictures
from tests.train.test_loop import Bench

EVIL = '<script src="http://x.example/a.js">alert(1)</script>&amp;\x1b\x00\ud800 ⟦'


def progressed(n=40):
    done = Progressed()
    for step in range(n):
        done.add(*((None, None) if step == 7 else (3 - step / n, 1 + step % 3)), 1e-4)
    done.validation = [(20, 2.5), (40, 2.25)]
    return done


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "path", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == self.open.pop(), tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def full():
    question = Question((1,), f"prompt {EVIL}", f"wanted {EVIL}")
    found = Comparison(
        [question, question], True, [Answers(5, [EVIL, "b"], ["c", EVIL]), Answers(9, [EVIL, "b"], ["d", "e"])]
    )
    found.perplexity["training"] = Perplexity(12.3456, math.inf, 3, 9, 70)
    return Report(EVIL, [("steps", EVIL)], [EVIL, "said"], [("--model", EVIL, True)], progressed(), found)


def test_the_page_is_whole_and_nothing_in_it_acts():
    text = page(full())
    text.encode()
    seen = Page(text)
    assert not seen.open and {tag for tag, _ in seen.tags}.isdisjoint({"script", "img", "link", "iframe", "object"})
    names = {name for _, attributes in seen.tags for name in attributes}
    assert names.isdisjoint({"src", "href", "onload", "onerror"}) and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text and "\x1b" not in text and "\x00" not in text
    shown = "".join(seen.text)
    # in the title, heading, picture, facts, data, settings, and of each question twice, the base's or adapter's once
    assert shown.count('<script src="http://x.example/a.js">alert(1)</script>&amp;') == 12
    for part in ("12.35", "inf", "3 of 9", "adapter, step 5", "adapter, step 9", "not learnt", "learning rate"):
        assert part in shown, part


def test_curves_are_in_the_page():
    lines = [attributes["points"].split() for tag, attributes in Page(page(full())).tags if tag == "polyline"]
    assert [len(line) for line in lines] == [39, 39, 2, 40, 39]  # without the skipped step, that has a rate alone
    assert len(Page(page(Report("nothing yet"))).tags) > 10


def test_settings_are_told_from_defaults():
    options = TrainOptions(learning_rate=3e-4, targets=("attn_q", "attn_v"), ranks=(("attn_q", 4),))
    rows = settings_of(Job("m.gguf", options, train_data=("a.jsonl:2",), keep_empty=True), options)
    found = {flag: (value, other) for flag, value, other in rows}
    assert found["--model"] == ("m.gguf", False) and found["--train-data"] == ("a.jsonl:2", True)
    assert found["--learning-rate"] == (3e-4, True) and found["--epochs"] == (2, False)
    assert found["--target-modules"] == ("attn_q, attn_v", True) and found["--rank-wq and so on"] == ("attn_q 4", True)
    assert found["--shuffle"] == ("yes", False) and found["--warmup-steps"] == ("by itself", False)
    assert found["--keep-empty"] == ("yes", True) and "--val-data" not in found


def test_a_page_has_a_page_s_name():
    check_report("a/B.HTML")
    with pytest.raises(UsageError, match="--report: wanted a name ending in .html, got 'run.pdf'"):
        check_report("run.pdf")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_pictures_are_drawn_while_it_trains(tmp_path):
    """At the earliest after an interval, and seldom where drawing takes long."""
    clock, drawn = Clock(), []
    pictures = Pictures(str(tmp_path / "p.svg"), str(tmp_path / "r.html"), pytest.fail, clock)
    bench = Bench(tmp_path, epochs=1)
    draw = pictures.draw

    def slow(done):
        drawn.append((done.step, clock.now))
        draw(done)
        clock.now += 1.0

    def watch(done):
        clock.now += 2.0
        pictures.draw_if_due(done, lambda: [("steps", done.step)])

    pictures.draw, bench.run.watch = slow, watch
    bench.run.go()
    assert drawn == [(3, 6.0)]  # then not before 1 / 0.02 s
    text = (tmp_path / "r.html").read_text()
    assert "<th>steps</th><td>3</td>" in text
    assert re.findall(r"<polyline", (tmp_path / "p.svg").read_text()) == ["<polyline"] * 4
    clock.now += 60
    pictures.draw_if_due(bench.run.done)
    assert len(drawn) == 2


def test_a_full_disk_is_said_once_and_tried_again(tmp_path, monkeypatch):
    clock, said = Clock(), []
    pictures = Pictures(str(tmp_path / "p.svg"), str(tmp_path / "r.html"), said.append, clock)
    fsync = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(3):
        clock.now += INTERVAL + 1
        pictures.draw_if_due(progressed())
    assert len(said) == 1 and re.search("No space left on device.*; training goes on and will try again", said[0])
    assert "No space left" in str(pictures.failure(progressed())) and os.listdir(tmp_path) == []
    monkeypatch.setattr(os, "fsync", fsync)
    clock.now += INTERVAL + 1
    pictures.draw_if_due(progressed())
    assert sorted(os.listdir(tmp_path)) == ["p.svg", "r.html"] and pictures.failure(progressed()) is None
    assert issubclass(LlamacyError, Exception) and len(said) == 1
