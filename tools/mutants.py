"""Break the program in one line at a time and see that the tests notice: `python tools/mutants.py [--all] [NAME ...]`.

tests/mutants/ has the list: for each mutant a file, a line, what becomes of it, and the tests that must fail then.
All happens in a copy in build/mutants; the project itself is never changed. Lines of pyx/ need their module compiled,
those of a header all that include it, which takes a minute or so each: only with --all or by name.

Exit code 1 where a mutant survives, its tests do not pass without it, or its line is not in its file exactly once.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutants import MUTANTS, changed, misplaced  # noqa: E402  found through the line above
from tools.project_copy import update_copy  # noqa: E402

COPY = ROOT / "build" / "mutants"
SECONDS = 600  # a mutant that makes its tests hang is found by no test


def main():
    """Try the mutants asked for, print a line for each, exit as the result says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--all", action="store_true", help="those of compiled modules too")
    arguments = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no mutant {unknown[0]!r}, wanted of: {', '.join(known)}")
    chosen = [known[name] for name in arguments.names] or [m for m in MUTANTS if arguments.all or not m.modules]
    wrong = [complaint for mutant in chosen for complaint in misplaced(mutant)]
    if wrong:
        sys.exit("\n".join(f"mutants: {complaint}" for complaint in wrong))
    update_copy(COPY, with_kernels=True)
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    code, said = run_tests(tests)
    if code != 0:
        sys.exit(f"{said}\nmutants: the tests fail without any mutant; nothing is known")
    verdicts = {mutant.name: verdict(mutant) for mutant in chosen}
    survivors = [name for name, (killed, _) in verdicts.items() if not killed]
    left = len(MUTANTS) - len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed" + (f", {left} not tried" if left else ""))
    sys.exit(bool(survivors))


def environment():
    """The variables of everything run in the copy: its own modules first, no byte code that could be stale."""
    return {**os.environ, "PYTHONPATH": str(COPY), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(tests):
    """Return pytest's exit code (None where it hangs) and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        done = subprocess.run(
            command, cwd=COPY, env=environment(), timeout=SECONDS, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"no end within {SECONDS} s"
    return done.returncode, done.stdout


def verdict(mutant):
    """Apply one mutant in the copy, run its tests, undo it; return (killed?, how it ended) and print the line."""
    source, compiled = COPY / mutant.file, modules_of(mutant)
    before = {path: path.read_bytes() for path in [source, *compiled]}
    try:
        source.write_text(changed(mutant, source.read_text(encoding="utf-8")), encoding="utf-8")
        built = compile_modules(mutant.modules) if mutant.modules else ""
        code, said = (None, built) if built else run_tests(mutant.tests)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    # 1: tests failed. Any other code (no tests, an import that fails) says nothing of them.
    ended = {0: "SURVIVED", 1: "killed"}.get(code, "BROKEN")
    by = next((line.split(" ")[1] for line in said.splitlines() if line.startswith("FAILED ")), "")
    print(f"{ended:9}{mutant.name}" + (f"    {by}" if code == 1 else ""), flush=True)
    if code != 1:
        print(f"    {mutant.file}: {mutant.old} -> {mutant.new}\n    tests: {' '.join(mutant.tests)}")
        if code != 0:
            print("\n".join(f"    {line}" for line in said.splitlines()[-15:]))
    return code == 1, ended


def modules_of(mutant):
    """The compiled files that a mutant of pyx/ replaces."""
    return [path for name in mutant.modules for path in (COPY / "llamacy" / "kernels").rglob(f"{name}.*.so")]


def compile_modules(names):
    """Compile modules of the copy in place; return "" or what the compiler said."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", "2"], cwd=COPY, text=True,
        env={**environment(), "LLAMACY_ONLY": ",".join(names)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + "\nnot compiled"


if __name__ == "__main__":
    main()
