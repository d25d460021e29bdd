"""The default model brought to where the commands look for it, and the question whether to, at a terminal."""

import sys

from llamacy.cli.run import say
from llamacy.default_model import fetch_target
from llamacy.library.fetching import MEGABYTES, SHA256, fetch, sha256_of


def bring(target):
    """Fetch to `target` unless it is there, telling the terminal how far it is."""
    if sha256_or_none(target) == SHA256:
        say(f"{target}: is there already")
        return
    say(f"fetching the default model ({MEGABYTES} MB) to {target}")
    fetch(target, _show if sys.stderr.isatty() else lambda done, total: None)
    if sys.stderr.isatty():
        say("")


def sha256_or_none(path):
    try:
        return sha256_of(path)
    except OSError:
        return None


def _show(done, total):
    of = f" of {total / 1e6:.0f}" if total else ""
    print(f"\r{done / 1e6:.0f}{of} MB ", end="", file=sys.stderr, flush=True)


def offer():
    """Ask at a terminal whether to fetch the missing model; return whether it is there now."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"The default model is not there. Fetch it now ({MEGABYTES} MB)? [Y/n] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
        return False
    bring(str(fetch_target()))
    return True
