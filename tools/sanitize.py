"""Run the compiled code under the address and undefined-behaviour sanitizers: `python tools/sanitize.py [PYTEST ...]`.

A copy of the project in build/sanitized is compiled with -fsanitize=address,undefined for the best instruction set of
this machine, the tests of TESTS run on it (or what pytest's arguments say), and every command once. Exit code 1 where
either failed or a sanitizer reported anything. gcc and its libasan are needed.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamacy.kernels.isas import lacking, of_this_machine  # noqa: E402  found through the line above
from tools.project_copy import update_copy  # noqa: E402

COPY = ROOT / "build" / "sanitized"
REPORTS = COPY / "reports"
# -fsanitize=undefined means what C leaves undefined; unsigned numbers that wrap are not that.
SANITIZE = "-fsanitize=address,undefined -fno-omit-frame-pointer"
TESTS = ["tests/kernels", "tests/formats", "tests/model/test_forward.py", "tests/model/test_adapters.py"]
TESTS += ["tests/train/test_trainstep.py", "tests/text/test_tokenizer.py", "tests/generate/test_sampler.py"]
# The whole story by bin/'s commands: finetune, main, server, perplexity.
TESTS += ["tests/test_end_to_end.py"]
# These measure or limit memory, of which a sanitizer takes more.
WITHOUT = [
    "tests/formats/test_fuzz.py",
    "tests/model/test_forward.py::test_read_without_a_mapping_the_file_shrinks_as_the_weights_grow",
]
MODEL, ADAPTER, TEXT = "tests/data/tiny-q8_0.gguf", "tests/data/tiny-adapter-ggla.bin", "examples/finetune-data.txt"
COMMANDS = [
    ["info", MODEL],
    ["tokenize", "-m", MODEL, "-f", TEXT, "--ids"],
    ["quantize", "--allow-requantize", MODEL, "OUT/q.gguf", "Q4_0"],
    ["convert", "tests/data/tiny.ggmlv3.q4_0.bin", "OUT/c.gguf"],
    ["convert", ADAPTER, "OUT/a.gguf"],
    ["export-lora", "-m", MODEL, "--lora", ADAPTER, "-o", "OUT/m.gguf"],
    ["bench", "-m", MODEL, "-p", "64", "-n", "16", "-r", "1"],
    ["bench", "-m", MODEL, "--train", "--ctx-size", "64", "-r", "1"],
    ["main", "-m", "OUT/q.gguf", "-p", "This License", "-n", "16", "--lora", ADAPTER],
    ["main", "-m", "OUT/c.gguf", "-p", "This License", "-n", "16"],
    ["perplexity", "-m", "OUT/m.gguf", "-f", "tests/data/golden/gpl3.txt", "-c", "128", "--chunks", "2"],
]


def main(pytest_arguments):
    """Build, run, tell; return the exit code."""
    isa = next(name for name in of_this_machine() if not lacking(name))
    update_copy(COPY, with_kernels=False)
    build(isa)
    REPORTS.mkdir(exist_ok=True)
    for old in REPORTS.iterdir():
        old.unlink()
    variables = sanitized(isa)
    chosen = pytest_arguments or TESTS + [word for test in WITHOUT for word in ("--deselect", test)]
    # Undefined behaviour is told on the true stderr, which pytest would keep to itself.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", *chosen]
    failed = subprocess.run(command, cwd=COPY, env=variables, check=False).returncode != 0
    if not pytest_arguments:
        fuzz = [sys.executable, "-m", "tests.formats.fuzz", "2000"]
        failed |= (
            sum(run(words, variables) for words in [fuzz, *([f"bin/{name}", *more] for name, *more in COMMANDS)]) > 0
        )
    found = reports()
    for name, content in found:
        print(f"\n---- {name}\n{content}")
    print(f"sanitize: {len(found) or 'no'} reports of addresses" + (", and something failed" if failed else ""))
    return 1 if failed or found else 0


def build(isa):
    """Compile the copy's modules in place: those of one instruction set and the common ones."""
    # -O1: checked code of -O3 takes minutes more to compile
    variables = os.environ | {
        "LLAMACY_BUILD_ISA": isa,
        "LLAMACY_CFLAGS": f"{SANITIZE} -O1 -g1 -w",
        "LDFLAGS": f"{SANITIZE} {os.environ.get('LDFLAGS', '')}",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", str(os.cpu_count() or 1)]
    subprocess.run(command, cwd=COPY, env=variables, check=True)


def sanitized(isa):
    """The variables of a process that loads modules built so."""
    where = [
        subprocess.check_output(["gcc", f"-print-file-name={name}.so"], text=True) for name in ("libasan", "libubsan")
    ]
    log = f"log_path={REPORTS / 'report'}:allocator_may_return_null=1"
    return os.environ | {
        "LD_PRELOAD": " ".join(path.strip() for path in where),
        # Python frees little of its own at exit.
        "ASAN_OPTIONS": f"detect_leaks=0:{log}",
        # gcc's writes no log beside the other one: whatever does something undefined is aborted and so fails
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
        "PYTHONMALLOC": "malloc",  # its own allocator hides where objects end
        "PYTHONPATH": str(COPY),
        "LLAMACY_ISA": isa,
    }


def run(words, variables):
    """Run a command, "OUT" in its words being a folder for files; return whether it failed."""
    (COPY / "out").mkdir(exist_ok=True)
    words = [str(word).replace("OUT", str(COPY / "out")) for word in words]
    done = subprocess.run(
        words, cwd=COPY, env=variables, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"{'FAILED' if done.returncode else 'ran':7}{' '.join(words).replace(str(COPY), '')}", flush=True)
    if done.returncode:
        print(done.stdout)
    return done.returncode != 0


def reports():
    """Return [(file's name, content)] of what the address sanitizer found; that memory was refused is no finding."""
    texts = [(path.name, path.read_text(errors="replace")) for path in sorted(REPORTS.iterdir())]
    return [(name, text) for name, text in texts if "ERROR: " in text]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
