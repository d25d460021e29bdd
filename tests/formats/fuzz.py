"""Damaged files against every reader: `python -m tests.formats.fuzz 100000 [SEED]`.

Each round takes a good file (fuzz_samples.py), damages it (fuzz_damage.py) and opens it as everything that it could be:
a model (also run for one token), an adapter (also applied, merged and written again), a checkpoint to go on from, a
chat template to render, a Hugging Face folder to convert, a vocabulary, a file for bin/info. Whatever is not a result
or a LlamacyError of one line is a failure: the file is kept and the round printed, so that
`python -m tests.formats.fuzz 1 SEED:ROUND` repeats it. The process may take 100 MB more than
it has each thousand rounds: an allocation of another order than the file's few kilobytes is a MemoryError; no round
may take ten seconds.
"""

import contextlib
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from llamacy.cli.info import describe, report_lines
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import FORMATS, fitted, load_adapter, save_adapter
from llamacy.formats.hf_folder import HfFolder, is_model_folder
from llamacy.formats.imatrix import read_imatrix
from llamacy.formats.merge import merged
from llamacy.formats.model_file import open_model
from llamacy.model import load_model
from llamacy.model.from_hf import model_from_hf
from llamacy.text import chat
from llamacy.text.tokenizer import Tokenizer
from llamacy.train.checkpoint import how_far
from tests.formats.fuzz_samples import checkpoint_run, samples

SECONDS = 10
# A template may take a second of processor time, which on a busy machine is many by the clock.
TEMPLATE_SECONDS = 100
ADDRESSES = 100 << 20
AFRESH = 1000  # rounds after which the limit is set anew: a heap of thousands of damaged files has holes
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi \x1b é"}]
TALK += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "{{ x }}"}]


def target_of(place, files):
    """Return the path to open of `files` in the folder `place`: a part of a split model stands for all."""
    names = sorted(files)
    return place / names[0] if len(names) == 1 or names[0].startswith("m-") else place


def read_everything(path):
    """Open `path` as all that it could be and use what is found; return the names of the tasks that could."""
    special = ("folder",) if is_model_folder(path) else ("template",) if path.suffix == ".jinja" else None
    wanted = special or [name for name in TASKS if name not in ("folder", "template")]
    return [name for name in wanted if _outcome(TASKS[name], path) == "ok"]


def _outcome(task, path):
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            task(path)
        for warning in caught:
            assert issubclass(warning.category, UserWarning), warning.message
            _check_line(str(warning.message))
    except LlamacyError as error:
        _check_line(str(error))
        return "refused"
    return "ok"


def _check_line(message):
    assert message and message.isprintable(), f"not one printable line: {message!r}"
    assert len(message) <= 2000, f"{len(message)} characters: {message[:200]!r}"


def _as_model(path):
    with open_model(path) as model:
        for value in model.metadata.values():
            _touch(value)
        for name, info in model.tensors.items():
            data = model.data(name)
            assert data.shape == (info.n_rows, info.row_bytes) and data.nbytes == info.nbytes
            int(data.sum())


def _touch(value):
    if isinstance(value, np.ndarray):
        value.tobytes()
    elif not isinstance(value, (str, bool, int, float)):
        for item in value:
            _touch(item)


def _as_adapter(path):
    """Load, apply, merge, and write again in another format and back."""
    adapter = load_adapter(path)
    for pair in adapter.pairs.values():
        assert pair.a.dtype == pair.b.dtype == np.float32
        assert pair.a.shape[0] == pair.b.shape[1] == pair.rank > 0
        assert isinstance(pair.scale, float)
    base = path.parent / "base.gguf" if path.is_dir() else path.parents[1] / "base.gguf"
    with open_model(base) as file, np.errstate(all="ignore"):
        for _, _, _, content in merged(file, [(adapter, 1.0)])[1]:
            content()
        adapter = fitted(adapter, file)
        with tempfile.TemporaryDirectory() as folder:
            format = list(FORMATS)[len(adapter.pairs) % len(FORMATS)]
            save_adapter(Path(folder, "a"), adapter, format, file.metadata)
            load_adapter(Path(folder, "a"), file.metadata)
    model = load_model(base, threads=1)
    model.add_adapter(adapter)
    with contextlib.suppress(FloatingPointError, ArithmeticError):
        model.new_session(1, 16).step([0], [0], [0], [0])


def _as_checkpoint(path):
    how_far(path)
    run = checkpoint_run(path.parent)
    run.resume(path)
    done = run.done
    assert len(done.losses) == done.step >= done.best_step and all(step <= done.step for step, _ in done.validation)
    assert all(np.isfinite(array).all() for array in (run.trainer.w, run.trainer.m))


def _as_template(path):
    _render(chat.template_for({}, str(path)))


def _render(template):
    assert isinstance(chat.render(TALK, template, bos="<s>", eos="</s>"), str)


def _as_running(path):
    """Load the model and run it for one token, on one thread."""
    with open_model(path) as model:
        if "general.architecture" not in model.metadata:
            return
    model = load_model(path, threads=1)
    logits = model.new_session(1, 16).step([0], [0], [0], [0])
    assert logits.shape == (1, model.config.n_vocab)


def _as_words(path):
    with open_model(path) as model:
        _use(Tokenizer.from_metadata(model.metadata))
        _render(chat.template_for(model.metadata))


def _use(tokenizer):
    ids = tokenizer.encode("abc \u2581ab<end>\n123 \U0001f642")
    assert all(0 <= token < tokenizer.n_vocab for token in ids)
    tokenizer.decode(ids)


def _as_folder(path):
    with HfFolder(path) as folder:
        metadata, tensors, _ = model_from_hf(folder)
        for name, quant_type, shape, data in tensors:
            content = data() if callable(data) else data
            assert content.nbytes == quant_type.row_bytes(int(np.prod(shape))), name
        for key, value in metadata.items():
            assert isinstance(key, str)
            _touch(value)
        _use(Tokenizer.from_metadata(metadata))


def _as_imatrix(path):
    for values in read_imatrix(path).columns.values():
        assert values.dtype == np.float32 and values.ndim == 2 and (values >= 0).all()


def _as_info(path):
    for line in report_lines(describe(os.fspath(path))):
        assert line.isprintable(), repr(line)


TASKS = {
    "model": _as_model,
    "running": _as_running,
    "words": _as_words,
    "imatrix": _as_imatrix,
    "adapter": _as_adapter,
    "checkpoint": _as_checkpoint,
    "info": _as_info,
    "folder": _as_folder,
    "template": _as_template,
}


def run(rounds, seed, only=None, limit=lambda: None):
    """Do `rounds` rounds; return how many files were still readable. Raises what should not have been raised."""
    readable = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        kinds = samples(folder)
        for round_ in range(rounds) if only is None else [only]:
            if round_ % AFRESH == 0:
                limit()
            rng = random.Random(f"{seed}:{round_}")
            good, ways, _ = rng.choice(kinds)
            victim = rng.choice(sorted(ways))
            files = good | {victim: rng.choice(ways[victim])(rng, good[victim])}
            place = folder / "x"
            place.mkdir()
            for name, content in files.items():
                (place / name).write_bytes(content)
            target = target_of(place, files)
            signal.alarm(TEMPLATE_SECONDS if "t.jinja" in files or "v.gguf" in files else SECONDS)
            try:
                readable += bool(read_everything(target))
            except BaseException:
                _keep(files, seed, round_)
                raise
            signal.alarm(0)
            shutil.rmtree(place)
    return readable


def _keep(files, seed, round_):
    kept = Path(tempfile.mkdtemp(prefix="llamacy-fuzz-"))
    for name, content in files.items():
        (kept / name).write_bytes(content)
    print(f"fuzz: round {seed}:{round_} failed, its files are in {kept}", file=sys.stderr)


def _too_long(*_):
    raise AssertionError("a file took too long")


def _limit_memory():
    """Let the process have ADDRESSES bytes of addresses more than now, where the system tells how many it has.

    Not under a sanitizer (tools/sanitize.py), which takes many terabytes of them.
    """
    statm = Path("/proc/self/statm")
    if statm.exists() and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(argv):
    """Run as a command: rounds, then a seed or SEED:ROUND."""
    rounds = int(argv[0]) if argv else 1000
    seed, _, only = (argv[1] if len(argv) > 1 else "1").partition(":")
    faulthandler.enable()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _too_long)
    os.fsync = lambda descriptor: None  # files that need not last
    start = time.monotonic()
    readable = run(rounds, seed, int(only) if only else None, _limit_memory)
    print(f"fuzz: {rounds} damaged files, {readable} still readable, no failure, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
