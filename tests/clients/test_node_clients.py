"""OpenAI's client for Node, unchanged; skipped where there is no Node, or its packages could not be installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = Path(__file__).resolve().parent / "node"


def test_openai(server):
    if shutil.which("node") is None:
        pytest.skip("there is no node (Debian: apt-get install nodejs npm)")
    if not (NODE / "node_modules" / "openai").exists():
        pytest.skip("npm could not install the client (see tests/clients/node/install.log)")
    done = subprocess.run(["node", NODE / "openai.mjs", server], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "all as it has to be" in done.stdout, done.stderr[-3000:]
