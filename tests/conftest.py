"""What holds for every test: signals as a terminal's program finds them, and no test left out unseen in CI."""

import os
import signal

import pytest

# Why a test may be left out where CI is set: what no machine of CI could change.
SKIPS_IN_CI = ("reads /proc", "tells of itself in /proc", "the system refuses to lock memory", "there is no Chromium")


def pytest_configure(config):
    """Undo what nohup and a shell's `&` do to signals: ignored ones stay so in every child, and tests send them.

    A handler that does nothing keeps nohup's promise for the tests themselves; children start with the default.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def fail_if_skipped_in_ci(report):
    """Make a skip a failure where the variable CI is set; a file, say, that could not be fetched is no reason."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in SKIPS_IN_CI):
        report.outcome, report.longrepr = "failed", f"{reason}: in CI no test may be skipped"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Tests and their fixtures."""
    outcome = yield
    fail_if_skipped_in_ci(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Whole modules."""
    outcome = yield
    fail_if_skipped_in_ci(outcome.get_result())
