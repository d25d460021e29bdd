"""A sample of `make fuzz`, in a process of its own: a crash there is a failure here and not the end of the tests."""

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.formats.fuzz import damage, read_everything, samples, target_of

ROOT = Path(__file__).resolve().parents[2]


def test_damaged_files_are_read_or_refused():
    command = [sys.executable, "-m", "tests.formats.fuzz", "1500", "suite"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("fuzz: 1500 damaged files, ")


def test_the_samples_are_good_and_damage_is_found(tmp_path):
    """Without this a fuzz that never opens anything, or never damages anything, would pass."""
    outcomes = []
    for number, files in enumerate(samples(tmp_path)):
        place = tmp_path / f"good{number}"
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        target = target_of(place, files)
        assert read_everything(target) == "ok"
        victim = max(place.iterdir(), key=lambda path: path.stat().st_size)
        whole = victim.read_bytes()
        for seed in range(8):
            victim.write_bytes(damage(random.Random(seed), whole))
            outcomes.append(read_everything(target))
    assert outcomes.count("refused") > len(outcomes) // 3
