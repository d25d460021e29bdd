"""A sample of `make fuzz`, in a process of its own: a crash there is a failure here and not the end of the tests."""

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.formats.fuzz import read_everything, target_of
from tests.formats.fuzz_samples import samples

ROOT = Path(__file__).resolve().parents[2]


def test_damaged_files_are_read_or_refused():
    command = [sys.executable, "-m", "tests.formats.fuzz", "1500", "suite"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("fuzz: 1500 damaged files, ")


def test_the_samples_are_good_and_damage_is_found(tmp_path, monkeypatch):
    """Without this a fuzz that never opens anything, or never damages anything, would pass."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for number, kind in enumerate(samples(tmp_path)):
        place, refused = tmp_path / f"good{number}", 0
        place.mkdir()
        for name, content in kind.files.items():
            (place / name).write_bytes(content)
        target = target_of(place, kind.files)
        assert set(kind.tasks) <= set(read_everything(target)), sorted(kind.files)
        for victim, ways in kind.ways.items():
            for seed in range(8):
                way = ways[seed % len(ways)]
                (place / victim).write_bytes(way(random.Random(seed), kind.files[victim]))
                refused += not set(kind.tasks) <= set(read_everything(target))
            (place / victim).write_bytes(kind.files[victim])
        assert refused > 1, sorted(kind.files)
