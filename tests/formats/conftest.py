"""Where the sample files are; the project's folder on the path, so that tests find each other's helpers."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def data():
    """The folder of recorded files; tests/data/README.md says where each comes from."""
    return ROOT / "tests" / "data"
