"""finetune from Python: the adapter is the command's, records from anywhere, callbacks, stops, what is refused."""

import json
import warnings

import numpy as np
import pytest

import llamacy
from llamacy.formats.adapter import load_adapter
from tests.server.test_server_command import MODEL
from tests.test_overflow import command

RECORDS = [{"instruction": f"Say {word}.", "output": word * 3} for word in ("yes", "no", "maybe", "perhaps")] * 2
HOW = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 2, "rank": 4, "alpha": 8.0, "threads": 2}


def same(one, other):
    assert one.pairs.keys() == other.pairs.keys()
    for name, pair in one.pairs.items():
        np.testing.assert_array_equal(pair.a, other.pairs[name].a)
        np.testing.assert_array_equal(pair.b, other.pairs[name].b)


@pytest.fixture(scope="module")
def result():
    return llamacy.finetune(MODEL, RECORDS, **HOW)


def test_it_is_the_command_s_run(result, tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    done = command(
        "finetune", "-m", MODEL, "--train-data", tmp_path / "d.jsonl", "--epochs", 2, "--learning-rate", "5e-3",
        "-t", 2, "--batch-size", 2, "--rank", 4, "--lora-alpha", 8, "--outdir", tmp_path,
        "--log-json", tmp_path / "l.jsonl",
    )  # fmt: skip
    assert done.returncode == 0
    same(result.adapter, load_adapter(tmp_path / "adapter.bin"))
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert result.losses == pytest.approx([line["loss"] for line in lines if "loss" in line], rel=1e-6)
    assert (result.steps, result.ended, result.path) == (8, "end", None)


def test_data_of_all_kinds(result, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    numbers = [{**record, "n": np.float32(3)} for record in RECORDS]
    for data in (path, str(path), [path], iter(RECORDS), tuple(numbers)):
        same(llamacy.finetune(MODEL, data, **HOW).adapter, result.adapter)


def test_saved_in_every_format(result, tmp_path):
    for name, format in (("a.gguf", "gguf"), ("a.bin", "ggla"), ("p", "peft"), ("m", "mlx")):
        path = result.save(tmp_path / name, format)
        same(load_adapter(path, result.base), result.adapter)
    result.plot(tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    with pytest.raises(llamacy.LlamacyError, match="unknown, wanted one of"):
        result.save(tmp_path / "x", "onnx")


def test_it_answers_otherwise(result):
    prompt = "### Instruction:\nSay yes.\n\n### Response:\n"
    with llamacy.load(MODEL) as model:
        before = model.score(prompt + "yesyesyes").total
        model.adapters.add(result)
        assert model.score(prompt + "yesyesyes").total > before + 1


def test_a_callback_sees_and_stops(tmp_path):
    seen = []
    result = llamacy.finetune(MODEL, RECORDS, **HOW, callback=lambda step: seen.append(step) or step.step == 3)
    assert (result.ended, result.steps, len(result.losses)) == ("stopped", 3, 3)
    assert [(step.step, step.n_steps, step.epoch) for step in seen] == [(1, 8, 1), (2, 8, 1), (3, 8, 1)]
    assert [step.loss for step in seen] == pytest.approx(result.losses)

    def broken(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llamacy.finetune(MODEL, RECORDS, **HOW, callback=broken, output=tmp_path)


def test_going_on(result, tmp_path):
    stopped = llamacy.finetune(MODEL, RECORDS, **HOW, output=tmp_path, callback=lambda step: step.step == 3)
    assert stopped.path == str(tmp_path / "adapter.bin")
    whole = llamacy.finetune(MODEL, RECORDS, **HOW, output=tmp_path, resume=True)
    same(whole.adapter, result.adapter)
    again = llamacy.finetune(MODEL, RECORDS, init=result, epochs=1, learning_rate=1e-9, threads=2)
    assert again.adapter.pairs["blk.0.attn_q.weight"].rank == 4
    assert again.losses[0] < result.losses[0] - 0.5


def test_validation():
    result = llamacy.finetune(MODEL, RECORDS, validation=RECORDS[:2], **HOW)
    assert len(result.validation) == 2 and result.best_step in (4, 8)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rank": 0}, "^rank: wanted from 1"),
        ({"learning_rate": -1}, "^learning_rate: wanted"),
        ({"targets": ["attn_x"]}, "'attn_x' is unknown"),
        ({"resume": True}, "resume: wanted the output"),
        ({"data": []}, "data: wanted paths or records, got none"),
        ({"data": [3]}, "data: record 1: wanted a dict, got int"),
        ({"data": [RECORDS[0], {"x": object()}]}, "data: record 2: cannot be written"),
        ({"data": [*RECORDS[:2], {"zzz": 1}]}, "data: record 3: missing keys"),
        ({"data": "/no/such/file"}, "/no/such/file"),
        ({"validation": [{"zzz": 1}]}, "validation: record 1"),
        ({"model": "/no/model"}, "cannot be opened"),
    ],
)
def test_what_is_wrong_is_one_line_in_python_s_words(how, said):
    with pytest.raises(llamacy.LlamacyError, match=said) as caught:
        llamacy.finetune(**{"model": MODEL, "data": RECORDS, **how})
    assert "\n" not in str(caught.value) and "--rank" not in str(caught.value)


def test_unknown_names_are_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        llamacy.finetune(MODEL, RECORDS, lr=1)


def test_warnings_are_warnings(tmp_path):
    data = [*RECORDS, {"instruction": "Say nothing.", "output": ""}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llamacy.finetune(MODEL, data, **HOW, max_steps=1)
    assert not [each for each in caught if "\n" in str(each.message)]
