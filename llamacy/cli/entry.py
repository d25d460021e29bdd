"""Where every command starts: the scripts in bin/ call `launch`, the installed console scripts the functions below."""

import importlib
import os
import sys
import warnings
from functools import partial
from pathlib import Path

from llamacy.cli.run import run, say
from llamacy.errors import LlamacyError, one_line

ROOT = Path(__file__).resolve().parents[2]


def launch(command):
    """Run a command for a script in bin/, in the project's own .venv where there is one; return the exit code."""
    venv = ROOT / ".venv"
    python = venv / "bin" / "python"
    # -I keeps the caller's PYTHONPATH and user packages out; it also marks that this was done, so it is done once.
    if not sys.flags.isolated and Path(sys.prefix) != venv and os.access(python, os.X_OK):
        os.execv(python, [str(python), "-I", *sys.argv])
    return start(command)


def start(command):
    """Import `llamacy.cli.<command>` and run its `main`; return the exit code."""
    # Matrix products are our own: NumPy's pool of BLAS threads would cost 30 ms at the start and be idle.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    warnings.showwarning = lambda message, *_: say(one_line(f"{command}: warning: {message}"))
    return run(partial(_import_and_run, command))


def _import_and_run(command, argv):
    from llamacy.default_model import NoDefaultModel

    try:
        main = importlib.import_module(f"llamacy.cli.{command.replace('-', '_')}").main
        try:
            return main(argv)
        except NoDefaultModel:
            from llamacy.cli.offer import offer

            if not offer():
                raise
            return main(argv)
    except ImportError as error:
        missing = error.name or ""
        if missing.startswith("llamacy.kernels"):
            what = "the compiled kernels are missing or cannot be loaded"
        elif isinstance(error, ModuleNotFoundError) and missing.split(".")[0] != "llamacy":
            what = f"{sys.executable} has no module {missing}"
        else:
            raise
        raise LlamacyError(f"{what}: run `make` in {ROOT}, or `pip install .` there") from error


main = partial(start, "main")
finetune = partial(start, "finetune")
server = partial(start, "server")
perplexity = partial(start, "perplexity")
evaluate = partial(start, "evaluate")
tokenize = partial(start, "tokenize")
convert = partial(start, "convert")
export_lora = partial(start, "export-lora")
fetch = partial(start, "fetch")
info = partial(start, "info")
bench = partial(start, "bench")
quantize = partial(start, "quantize")
