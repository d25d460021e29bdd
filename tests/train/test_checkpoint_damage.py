"""Every field of a checkpoint put wrong in every way: one line that names the file, or a run that is the same."""

import copy
import json
import math
import os

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train import checkpoint
from llamacy.train.checkpoint import how_far, load_checkpoint, save_checkpoint
from llamacy.train.loop import FIXED, Run
from llamacy.train.options import TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.state import COURSE, LOSSES, load_state
from llamacy.train.trainer import Trainer
from tests.model.tiny import CONFIG, tokens_of, write_llama
from tests.train.test_loop import Bench, samples

STRANGE = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    1.5,
    math.nan,
    -math.inf,
    "x",
    "é\n\x1b[2J" * 100,
    [],
    [[]],
    {},
    {"a": {}},
    [1, 2],
]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """(path of a checkpoint of 10 steps with two measurements, its values, its arrays)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand files that need not last
    bench = Bench(tmp_path / "run", validation=samples(3, seed=5), ids={"validation": 4}, epochs=1, eval_every=5)
    bench.run.go()
    path = bench.outputs.checkpoint
    values, arrays = load_checkpoint(path)
    assert values["progressed"]["step"] == 10 and len(values["progressed"]["validation"]) == 2
    return tmp_path / "damaged.gguf", values, arrays


def resumed(path, folder):
    """The state of a run that went on from `path`, as something to compare; LlamacyError when it would not."""
    bench = Bench(folder / "run", validation=samples(3, seed=5), ids={"validation": 4}, epochs=1, eval_every=5)
    bench.run.resume(path)
    state = {name: np.asarray(value).tobytes() for name, value in bench.trainer.state().items()}
    return state, repr(bench.run.done)


def places_in(value, path=()):
    """Yield the path of every value inside a tree of lists and tables, the tree itself too."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def changed(values, path, change):
    """A copy of the tree in which change(holder, key) was done at `path`."""
    whole = {"": copy.deepcopy(values)}
    holder, keys = whole, ("", *path)
    for key in keys[:-1]:
        holder = holder[key]
    change(holder, keys[-1])
    return whole.get("", {})


def assert_refused_or_same(path, folder, wanted, what):
    try:
        found = resumed(path, folder)
    except LlamacyError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 700, what
        return True
    assert found == wanted, what
    return False


def test_every_value_in_every_wrong_way(tmp_path, saved):
    path, values, arrays = saved
    save_checkpoint(path, values, arrays)
    wanted, refused, tried = resumed(path, tmp_path), 0, 0

    def put(value):
        return lambda holder, key: holder.__setitem__(key, value)

    for place in places_in(values):
        # another number here means other samples, on which the best is forgotten; there it could have been measured
        if place in (("validation",), ("progressed", "validation", 1, 1)):
            continue
        changes = [("is missing", lambda holder, key: holder.pop(key))]
        changes += [(f"is {value!r:.40}", put(value)) for value in STRANGE]
        for what, change in changes:
            save_checkpoint(path, changed(values, place, change), arrays)
            refused += assert_refused_or_same(path, tmp_path, wanted, f"{place} {what}")
            tried += 1
        inner = values
        for key in place:
            inner = inner[key]
        if isinstance(inner, (dict, list)):
            more = (lambda held: held.update(later=1)) if isinstance(inner, dict) else (lambda held: held.append(7))
            grown = lambda holder, key, more=more: more(holder[key])  # noqa: E731
            save_checkpoint(path, changed(values, place, grown), arrays)
            assert assert_refused_or_same(path, tmp_path, wanted, f"{place} has more")
    # only what happens to be the same value again may pass
    assert tried > 500 and refused > 0.97 * tried


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 10**400, -(10**400), "1", None, True, [1.5]], ids=lambda value: f"{value!r:.9}"
)
def test_a_validation_loss_is_a_finite_number(tmp_path, saved, value):
    path, values, arrays = saved
    for place in (0, 1):
        wrong = copy.deepcopy(values)
        wrong["progressed"]["validation"][place][1] = value
        save_checkpoint(path, wrong, arrays)
        with pytest.raises(LlamacyError, match="a loss of validation: wanted a finite number"):
            resumed(path, tmp_path)


def test_every_array_in_every_wrong_way(tmp_path, saved):
    path, values, arrays = saved
    save_checkpoint(path, values, arrays)
    wanted = resumed(path, tmp_path)
    for name, array in arrays.items():
        nan, infinite = array.copy(), array.copy()
        nan.flat[-1], infinite.flat[0] = math.nan, math.inf
        wrong = [nan, infinite, array[:-1], np.append(array, array[:1]), array.reshape(1, -1), array.astype(np.float64),
                 array.view(np.int32), array.view(np.uint32), array[:0]]  # fmt: skip
        for each in wrong:
            save_checkpoint(path, values, arrays | {name: each})
            assert assert_refused_or_same(path, tmp_path, wanted, f"{name} {each.dtype} {each.shape}")
        save_checkpoint(path, values, {key: value for key, value in arrays.items() if key != name})
        assert assert_refused_or_same(path, tmp_path, wanted, f"without {name}")
    save_checkpoint(path, values, arrays | {"more": np.zeros(2, np.float32)})
    assert assert_refused_or_same(path, tmp_path, wanted, "one more")


FILES = {
    "a later version": ({"version": 4}, "checkpoint version 4, wanted at most 3; it is from a later llamacy"),
    "a version in words": ({"version": "2"}, "version: wanted a whole number from 1, got '2'"),
    "version true": ({"version": True}, "version: wanted a whole number from 1, got True"),
    "version 0": ({"version": 0}, "version: wanted a whole number from 1, got 0"),
    "no version": ({"version": None}, "wanted a checkpoint that bin/finetune wrote"),
    "another type": ({"type": [1, 2]}, "its type is"),
    "values a number": ({"values": 3}, "values: wanted a text"),
    "no values": ({"values": None}, "values: wanted a text"),
    "values a list": ({"values": "[1]"}, "JSON holds a list, wanted an object"),
    "values half": ({"values": '{"n_steps": '}, "damaged JSON"),
    "values twice": ({"values": '{"n_steps": 1, "n_steps": 2}'}, "a key stands twice"),
    "endless nesting": ({"values": '{"a":' * 100000}, "nested too deep"),
    "endless digits": ({"values": '{"a": ' + "9" * 100000 + "}"}, "damaged JSON"),
    "no dtypes": ({"dtypes": None}, "dtypes: wanted a text"),
    "a dtype of another kind": ({"dtypes": '{"w": ["float32"]}'}, "'w' is F32, wanted"),
    "an unknown dtype": ({"dtypes": '{"w": "object"}'}, "'w' is F32, wanted 'object'"),
    "a dtype of another size": ({"dtypes": '{"w": "float64"}'}, "'w' is F32, wanted F64"),
    "a dtype without a tensor": ({"dtypes": '{"w": "float32", "v": "float32"}'}, "'v' is a type alone"),
    "a tensor without a dtype": ({"dtypes": "{}"}, "'w' is a tensor alone"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_such_checkpoint(tmp_path, case):
    change, words = FILES[case]
    about = {"type": "checkpoint", "version": 3, "values": "{}", "dtypes": '{"w": "float32"}'} | change
    names = {key: f"llamacy.checkpoint.{key}" for key in about} | {"type": "general.type"}
    metadata = {names[key]: value for key, value in about.items() if value is not None}
    metadata["llamacy.checkpoint.digest"] = "0" * 32
    write_gguf(tmp_path / "c.gguf", metadata, [("w", by_name("F32"), (2,), bytes(8))])
    with pytest.raises(LlamacyError) as caught:
        load_state(tmp_path / "c.gguf", FIXED)
    assert words in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_any_bit_of_the_content_that_flips_is_found(tmp_path, saved):
    path, values, arrays = saved
    save_checkpoint(path, values, arrays)
    with open_model(path) as file:
        spans = [(info.offset, info.nbytes) for info in file.tensors.values()]
    good = path.read_bytes()
    at = good.index(json.dumps(values).encode())
    spans.append((at, len(json.dumps(values))))
    for start, length in spans:
        for place in (start, start + length // 2, start + length - 1):
            bad = bytearray(good)
            bad[place] ^= 1
            path.write_bytes(bad)
            with pytest.raises(LlamacyError, match="damaged"):
                load_checkpoint(path)


def test_a_checkpoint_of_the_first_version_is_gone_on_from(tmp_path, saved, monkeypatch):
    """Without the model's, the pairs' and the validation data's ids, and data with its split as one number."""
    path, values, arrays = saved
    save_checkpoint(path, values, arrays)
    wanted = resumed(path, tmp_path)
    old = copy.deepcopy(values)
    del old["validation"]
    for name in ("model", "pairs", "val_split"):
        del old["fixed"][name]
    monkeypatch.setattr(checkpoint, "VERSION", 1)
    save_checkpoint(path, old, arrays)
    monkeypatch.undo()
    with open_model(path) as file:
        assert file.metadata["llamacy.checkpoint.version"] == 1
    assert resumed(path, tmp_path) == wanted and how_far(path) == (10, 10)
    for broken in ({"fixed": 3}, {"fixed": {}}, {"progressed": None}):
        monkeypatch.setattr(checkpoint, "VERSION", 1)
        save_checkpoint(path, old | broken, arrays)
        monkeypatch.undo()
        with pytest.raises(LlamacyError, match="the checkpoint is damaged: "):
            resumed(path, tmp_path)


def test_a_checkpoint_of_the_second_version_is_gone_on_from(tmp_path, saved, monkeypatch):
    """Which knew nothing of skipped steps, and kept the losses only."""
    path, values, arrays = saved
    save_checkpoint(path, values, arrays)
    state, done = resumed(path, tmp_path)
    old = copy.deepcopy(values)
    for name in ("n_skipped", "n_astray", "known_from"):
        del old["progressed"][name]
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    save_checkpoint(path, old, {name: row for name, row in arrays.items() if name not in COURSE or name == LOSSES})
    monkeypatch.undo()
    again, found = resumed(path, tmp_path)
    assert again == state and found != done and "grad_norms=array('f', [nan, nan" in found
    bench = Bench(tmp_path / "run", validation=samples(3, seed=5), ids={"validation": 4}, epochs=2, eval_every=5)
    bench.run.resume(path)
    bench.run.go()
    norms = bench.run.done.grad_norms
    assert np.isnan(norms[:10]).all() and np.isfinite(norms[10:]).all() and len(norms) == 20
    bench.run.resume(bench.outputs.checkpoint)  # what it wrote reads back
    assert bench.run.done.known_from == 10


def test_how_far_of_a_damaged_one(tmp_path, saved):
    path, values, arrays = saved
    for broken in ({"progressed": []}, {"n_steps": "x"}, {"progressed": {"step": 1.5}}, {"progressed": None}):
        save_checkpoint(path, values | broken, arrays)
        with pytest.raises(LlamacyError, match="does not say how far"):
            how_far(path)


def test_the_real_trainer_s_state(tmp_path):
    """Moments that are no squares, of another rank, of another type: refused, and the trainer stays as it was."""
    write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 1))
    model = load_model(tmp_path / "m.gguf", threads=1)
    data = [Sample(tokens_of(CONFIG, 9).astype(np.int32), np.arange(9) > 0)]

    def run_of(rank):
        options = TrainOptions(n_ctx=64, epochs=2, rank=rank, targets=("attn_v",))
        trainer = Trainer(model, options)
        trainer.init_lora(rank, 16.0, options.targets, 1)
        bench = Bench(tmp_path / "run")
        return Run(trainer, data, options, bench.outputs, bench.run.progress)

    run = run_of(2)
    run.go()
    values, arrays = load_checkpoint(run.outputs.checkpoint)
    assert set(arrays) == {"lora.params", "adamw.m", "adamw.v", *COURSE} and values["trainer"] == {"n_steps": 2}
    path = tmp_path / "c.gguf"
    cases = {
        "adamw.v: wanted squares, got a number below 0": (values, arrays | {"adamw.v": -arrays["adamw.v"]}),
        "trainer's n_steps: wanted 2, as the progress says, got 7": (values | {"trainer": {"n_steps": 7}}, arrays),
        "adamw.m: wanted finite float32 numbers": (values, arrays | {"adamw.m": arrays["adamw.m"].view(np.int32)}),
        "lora.params has shape": (values, arrays | {"lora.params": arrays["lora.params"][:-16]}),
    }
    for words, content in cases.items():
        save_checkpoint(path, *content)
        other = run_of(2)
        before = other.trainer.state()["lora.params"].copy()
        with pytest.raises(LlamacyError, match=words):
            other.resume(path)
        np.testing.assert_array_equal(other.trainer.state()["lora.params"], before)
    text = json.dumps(values)
    assert "NaN" not in text and run_of(2).resume(run.outputs.checkpoint) is None
