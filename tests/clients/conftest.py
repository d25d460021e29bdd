"""A server with the default model for other people's clients, in an environment of their own (`make test-clients`)."""

import contextlib
import re
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def pytest_ignore_collect(collection_path, config):
    """Leave this folder out unless an argument of the run lies in it; None lets pytest decide as usual."""
    asked = (Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args)
    return None if any(path.is_relative_to(HERE) for path in asked) else True


@contextlib.contextmanager
def running(folder, *flags):
    """Start a server with some flags; give its address. It has to end well, with no failure of its own in its log."""
    log = folder / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen([ROOT / "bin" / "server", "--port", "0", *flags], stderr=file, cwd=ROOT)
    try:
        address = None
        while address is None:
            assert process.poll() is None, log.read_text()
            found = re.search(r"listening on (http://\S+)", log.read_text())
            address = found and found[1]
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text() and "internal error" not in log.read_text()


@pytest.fixture(scope="session")
def start():
    """See running()."""
    return running


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a running server."""
    with running(tmp_path_factory.mktemp("server"), "-c", "2048", "-np", "4", "--metrics") as address:
        yield address
