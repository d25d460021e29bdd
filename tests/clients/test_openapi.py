"""Requests made of the server's own description by schemathesis, right and wrong ones: no 5xx, nothing that hangs."""

import re
import subprocess
import sys
from pathlib import Path

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny-q8_0.gguf"
FLAGS = ["--metrics", "--slots", "--props", "-np", "4", "-c", "256"]
SECONDS = 30  # for one request


def test_requests_of_all_kinds_have_an_answer(start, tmp_path):
    """All paths are open, so that not even a 501 may come but for what the description leaves out."""
    folders = ["--lora-dir", tmp_path, "--slot-save-path", f"{tmp_path}/"]
    schemathesis = Path(sys.executable).with_name("schemathesis")
    with start(tmp_path, "-m", TINY, *FLAGS, *folders) as address:
        command = [schemathesis, "run", f"{address}/openapi.json", "--checks", "not_a_server_error", "--no-color"]
        limits = ["--max-examples", "10", "--request-timeout", SECONDS, "--seed", "1", "--workers", "2"]
        done = subprocess.run([*map(str, command), *map(str, limits)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:]
    tested = int(re.search(r"Tested: (\d+)", done.stdout)[1])
    cases = int(re.search(r"(\d+) generated", done.stdout)[1])
    assert tested > 30 and cases > 500, done.stdout[-3000:]
