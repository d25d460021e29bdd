"""What threads and processes may not do at once with one model is refused in one line, before anything is computed."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import Adapter
from llamacy.formats.lora import LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model.tiny import CONFIG, tokens_of, use_isa, write_llama

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=kernels.available())
def model(tmp_path, monkeypatch, request):
    use_isa(monkeypatch, request.param)
    write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 1), "Q8_0")
    return load_model(tmp_path / "m.gguf", threads=2)


@pytest.fixture
def amid(monkeypatch):
    """A function that lets `act` happen once in another thread, in the midst of a compiled module's next NumPy call."""

    def hook(module, name, act):
        caught = []

        def other():
            try:
                act()
            except Exception as error:
                caught.append(error)

        def call(*args, **kwargs):
            monkeypatch.setattr(module, "np", np)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return getattr(np, name)(*args, **kwargs)

        names = {each: getattr(np, each) for each in dir(np) if not each.startswith("_")}
        monkeypatch.setattr(module, "np", SimpleNamespace(**{**names, name: call}))
        return caught

    return hook


def step_of(session, n=20):
    ids, at = tokens_of(CONFIG, n), np.arange(n)
    return session.step(ids, at, np.zeros(n, int), at)


def adapter(scale=1.0):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(4, 64)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)
    return Adapter("llama", {"blk.0.attn_q.weight": LoraPair(a, b, scale)}, 4.0)


def train_step(model, threads=2):
    ranks = {(layer, slot): (4, 1.0) for layer in range(CONFIG.n_layer) for slot in range(7)}
    return kernels.trainstep.TrainStep(model.weights, ranks, 32, threads)


def train(made):
    ids = tokens_of(CONFIG, 20).astype(np.int32)
    return made.run(ids, np.array([0, 20], np.int32), np.roll(ids, -1), 1.0)


def test_a_second_step_of_a_session_is_refused_and_leaves_the_first_as_it_is(model, amid):
    session, other = model.new_session(1, 32), model.new_session(1, 32)
    wanted = step_of(session)
    caught = amid(kernels.decoder, "empty", lambda: step_of(session, 5))
    np.testing.assert_array_equal(step_of(session), wanted)
    assert len(caught) == 1 and isinstance(caught[0], LlamacyError)
    assert "another thread" in str(caught[0]) and "session of its own" in str(caught[0])
    np.testing.assert_array_equal(step_of(session), wanted)
    # what is refused: one session at a time, not two of one model
    assert not amid(kernels.decoder, "empty", lambda: np.testing.assert_array_equal(step_of(other), wanted))
    np.testing.assert_array_equal(step_of(session), wanted)


def test_a_cache_is_not_read_or_written_during_a_step(model, amid):
    session = model.new_session(1, 32)
    wanted = step_of(session)
    tiles = session.read_cache(0, 20)
    for act in (lambda: session.read_cache(0, 20), lambda: session.write_cache(0, tiles)):
        caught = amid(kernels.decoder, "empty", act)
        np.testing.assert_array_equal(step_of(session), wanted)
        assert len(caught) == 1 and "another thread" in str(caught[0])
        act()


def test_a_step_that_fails_does_not_leave_its_session_busy(model):
    session = model.new_session(1, 32)
    with pytest.raises(ValueError, match="position"):
        session.step([1], [99], [0], [0])
    step_of(session)
    model.add_adapter(adapter())


def test_threads_that_share_a_session_get_right_numbers_or_the_error(model):
    session = model.new_session(1, 32)
    wanted, wrong = step_of(session), []

    def ask():
        for _ in range(100):
            try:
                if not np.array_equal(step_of(session), wanted):
                    wrong.append("numbers")
            except LlamacyError:
                pass

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_second_pass_of_a_trainer_is_refused(model, amid):
    made = train_step(model)
    wanted = train(made)
    caught = amid(kernels.trainstep, "diff", lambda: train(made))
    assert train(made) == wanted
    assert len(caught) == 1 and isinstance(caught[0], LlamacyError)


def test_adapters_do_not_change_during_a_step(model, amid):
    model.add_adapter(adapter())
    session, made = model.new_session(1, 32), train_step(model)
    wanted = step_of(session)
    for act in (
        lambda: model.add_adapter(adapter()),
        lambda: model.set_adapter_scale(0, 0.5),
        lambda: model.weights.set_norm(0, "attn_norm", np.ones(64)),
    ):
        for caught, compute in (
            (amid(kernels.decoder, "empty", act), lambda: step_of(session)),
            (amid(kernels.trainstep, "diff", act), lambda: train(made)),
        ):
            compute()
            assert len(caught) == 1 and isinstance(caught[0], LlamacyError)
            assert "cannot change" in str(caught[0])
    np.testing.assert_array_equal(step_of(session), wanted)


def test_no_step_begins_while_an_adapter_is_added(model, amid):
    session = model.new_session(1, 32)
    caught = amid(kernels.weights, "ascontiguousarray", lambda: step_of(session))
    model.add_adapter(adapter())
    assert len(caught) == 1 and "being changed" in str(caught[0])
    step_of(session)


FORK = """
import os, sys
import numpy as np
from llamacy import kernels
from llamacy.model import load_model
from tests.model.tiny import CONFIG
from tests.model.test_concurrency import step_of, train, train_step

path, threads = sys.argv[1], int(sys.argv[2])
if threads:
    model = load_model(path, threads=threads)
    session, made = model.new_session(1, 32), train_step(model, threads)
    step_of(session), train(made)
x, rows = np.ones((32, 64), np.float32), np.zeros((32, 68), np.uint8)
packed = kernels.matmul.PackedMatrix(rows, 8, 64)
flat = [np.ones(64, np.float32) for _ in range(4)]


def several(n):
    yield "load", lambda: load_model(path, threads=n)
    yield "pack", lambda: kernels.matmul.PackedMatrix(rows, 8, 64, None, n)
    yield "product", lambda: kernels.matmul.matmul(packed, x, "int8", n)
    yield "backward", lambda: kernels.matmul.matmul_backward(packed, x[:, :32].copy(), "int16", n)
    yield "quantize", lambda: kernels.quants.quantize(x, 2, n)
    yield "dequantize", lambda: kernels.quants.dequantize(rows, 8, n)
    yield "finite", lambda: kernels.finite.finite(rows, 8, n)
    yield "adamw", lambda: kernels.adamw.step(*flat, 1, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0, n)
    yield "step", lambda: step_of(load_model(path, threads=n).new_session(1, 32) if n == 1 or not threads else session)
    yield "train", lambda: train(train_step(load_model(path, threads=n), n) if n == 1 or not threads else made)


child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for n in (2, 1):
    for name, act in several(n):
        try:
            act()
            print(n, name, "done", flush=True)
        except BaseException as error:
            print(n, name, type(error).__name__, str(error), flush=True)
os._exit(0)
"""


def forked(path, threads, isa):
    """{(threads, what): what came of it} in a child; `threads` computed in its parent before, 0: nothing did."""
    command = [sys.executable, "-c", FORK, path, str(threads)]
    environment = os.environ | {"LLAMACY_ISA": isa, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True, cwd=ROOT)
    return {tuple(line.split()[:2]): line.split(maxsplit=2)[2] for line in run.stdout.splitlines()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@pytest.mark.parametrize("isa", kernels.available())
def test_after_a_fork_whatever_would_hang_is_refused(tmp_path, isa):
    write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 1), "Q8_0")
    found = forked(tmp_path / "m.gguf", 2, isa)
    assert len(found) == 20
    for (threads, what), outcome in found.items():
        if threads == "2":
            assert outcome.startswith("LlamacyError this process was forked"), what
        else:
            assert outcome == "done", what
    for threads in (0, 1):
        assert set(forked(tmp_path / "m.gguf", threads, isa).values()) == {"done"}
