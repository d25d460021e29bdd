"""Instruction data tokenised for the default model as transformers and TRL tokenise it (recorded; see tests/data)."""

import json
from pathlib import Path

import pytest

from llamacy.default_model import default_model
from llamacy.errors import LlamacyError
from llamacy.formats.model_file import open_model
from llamacy.text.tokenizer import Tokenizer
from llamacy.train.data import Encoder, open_data

DATA = Path(__file__).parents[1] / "data"
ROWS = [json.loads(line) for line in (DATA / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
TOKENS = json.loads((DATA / "sft_tokens.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    try:
        path = default_model()
    except LlamacyError as error:
        pytest.skip(str(error))
    with open_model(path) as file:
        yield Tokenizer.from_metadata(file.metadata)


def as_text(rows):
    """Write the same samples as instruction text, in another spacing than the prompts'."""
    blocks = (row["prompt"].replace(":\n", ":\n\t") + "\t" + row["completion"] + "\n\n" for row in rows)
    return "\n" + "".join(blocks).replace("\n#", "\n\t#")


def as_objects(rows):
    """Write them as instruction and output, in one array."""
    cut = [row["prompt"].removeprefix("### Instruction:\n").removesuffix("\n### Response:\n") for row in rows]
    objects = [{"instruction": text, "output": row["completion"]} for text, row in zip(cut, rows, strict=True)]
    return json.dumps(objects, ensure_ascii=False, indent=2)


FORMS = {
    "lines": lambda rows: "\n".join(json.dumps(row) for row in rows),
    "instruction text": as_text,
    "array of instructions": as_objects,
}


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_the_recorded_ones_in_every_form(tmp_path, tokenizer, form):
    (tmp_path / "data").write_text(FORMS[form](ROWS), encoding="utf-8")
    data = open_data([tmp_path / "data"], Encoder(tokenizer, 512))
    assert len(data) == len(TOKENS) == 8
    for i, row in enumerate(TOKENS):
        sample, n_prompt = data[i], len(row["prompt"])
        assert sample.ids.tolist() == row["prompt"] + row["completion"]
        assert not sample.trained[:n_prompt].any() and sample.trained[n_prompt:].all()


def test_a_long_text_in_windows_is_the_text_tokenised_at_once(tmp_path, tokenizer):
    text = "".join(f"Line {i} of a text.\n\n  Indented, with 中文 and 123456 numbers; it's fine\n" for i in range(6000))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    data = open_data([tmp_path / "long.txt"], Encoder(tokenizer, 256))
    ids = [token for i in range(len(data)) for token in data[i].ids.tolist()]
    assert ids == tokenizer.encode(text, add_special=False)
