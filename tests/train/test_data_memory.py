"""100,000 samples cost no more memory than 100, in every format; measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FEW, MANY = 100, 100_000
# The index takes 12 bytes per sample, doubled at worst while an array grows; the rest is the allocator's.
ALLOWED = 4 << 20

MEASURE = """
import sys
sys.path.insert(0, {here!r})
from tests.train.fakes import ByteTokenizer
from llamacy.train.data import Encoder, open_data
from llamacy.system import peak_rss_bytes
data = open_data([{path!r}], Encoder(ByteTokenizer(), 4096))
for i in range(0, len(data), 997):
    data[i]
print(len(data), peak_rss_bytes())
"""


def json_line(i):
    return json.dumps({"prompt": f"question {i}?\n", "completion": "an answer of some length " * 3})


FORMATS = {
    "lines": lambda n: (json_line(i) + "\n" for i in range(n)),
    "array": lambda n: ("[,"[i > 0] + json_line(i) + "]" * (i == n - 1) for i in range(n)),
    "instructions": lambda n: (f"### Instruction:\nquestion {i}?\n### Response:\nan answer\n\n" for i in range(n)),
    "text": lambda n: (f"This is line {i} of a text that goes on for the length of a book.\n" for i in range(n)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_memory_does_not_grow_with_the_data(tmp_path, name):
    peaks = {}
    for n in (FEW, MANY):
        path = tmp_path / f"{n}"
        with open(path, "w") as file:
            file.writelines(FORMATS[name](n))
        code = MEASURE.format(path=str(path), here=str(Path(__file__).parents[2]))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        n_samples, peaks[n] = map(int, done.stdout.split())
        assert n_samples == n or name == "text"
    assert peaks[FEW] > 0 and peaks[MANY] - peaks[FEW] < ALLOWED, peaks
