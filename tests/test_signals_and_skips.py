"""The rules of tests/conftest.py, in a pytest of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"
TESTS = """
import signal, subprocess, sys
import pytest

def test_children_die_of_signals():
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        child.stdout.readline()
        child.send_signal(number)
        assert child.wait(30) == -number

def test_itself_does_not():
    if signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        signal.raise_signal(signal.SIGHUP)
"""
SKIPPED = {
    "by a mark": "import pytest\n@pytest.mark.skipif(True, reason='REASON')\ndef test(): pass\n",
    "by a fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('REASON')\ndef test(f): pass\n",
    "in the test": "import pytest\ndef test(): pytest.skip('REASON')\n",
    "as a module": "import pytest\npytest.skip('REASON', allow_module_level=True)\n",
    "for a package": "import pytest\ndef test(): pytest.importorskip('no_such_module', reason='REASON')\n",
}


@pytest.fixture
def run(tmp_path):
    """A function (test's text, CI): pytest's exit code and output in a folder with these rules."""
    (tmp_path / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def call(text, ci, **options):
        (tmp_path / "test_it.py").write_text(text)
        environment = {**os.environ, "CI": "true" if ci else "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, **options)
        return done.returncode, done.stdout

    return call


@pytest.mark.parametrize("how", SKIPPED)
def test_a_skip_is_a_failure_in_ci(run, how):
    text = SKIPPED[how].replace("REASON", "a file is not there")
    code, said = run(text, ci=True)
    assert code in (1, 2) and "a file is not there: in CI no test may be skipped" in said
    code, said = run(text, ci=False)
    assert code in (0, 5) and "1 skipped" in said


def test_a_skip_that_no_machine_of_ci_can_change_is_none(run):
    code, said = run(SKIPPED["in the test"].replace("REASON", "the system refuses to lock memory"), ci=True)
    assert code == 0 and "1 skipped" in said


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP,), (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)])
def test_signals_that_were_ignored_reach_children(run, ignored):
    def ignore():
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    code, said = run(TESTS, ci=False, preexec_fn=ignore)
    assert code == 0, said
