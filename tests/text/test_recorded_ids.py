"""Ids that other programs gave, exactly: llama.cpp's test strings, transformers' ids for SmolLM2."""

import json

import pytest

from llamacy.text.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


def strings_and_ids(folder, name):
    strings = (folder / "strings.inp").read_bytes().decode().split(SEPARATOR)[:-1]
    lines = (folder / f"{name}.out").read_text().splitlines()
    assert len(strings) == len(lines) == 46
    return [(text, [int(token) for token in line.split()]) for text, line in zip(strings, lines, strict=True)]


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm"])
def test_every_line_of_llama_cpps_strings(name, data, recorded):
    tokenizer = recorded(name)
    for text, ids in strings_and_ids(data / "tokenizers", name):
        assert tokenizer.encode(text, add_special=False) == ids, text


def test_smollm2_prompts(data, smollm2_metadata):
    tokenizer = Tokenizer.from_metadata(smollm2_metadata)
    for prompt, ids in json.loads((data / "tokenizers" / "smollm2_prompts.json").read_text()):
        assert tokenizer.encode(prompt) == ids, prompt
        assert tokenizer.decode(ids) == prompt


def test_smollm2_training_samples(data, smollm2_metadata):
    tokenizer = Tokenizer.from_metadata(smollm2_metadata)
    samples = [json.loads(line) for line in (data / "sft.jsonl").read_text().splitlines()]
    recorded_ids = json.loads((data / "sft_tokens.json").read_text())
    for sample, ids in zip(samples, recorded_ids, strict=True):
        assert tokenizer.encode(sample["prompt"]) == ids["prompt"]
        assert tokenizer.encode(sample["completion"]) + [tokenizer.eos_id] == ids["completion"]


def test_smollm2_facts(smollm2_metadata):
    tokenizer = Tokenizer.from_metadata(smollm2_metadata)
    assert (tokenizer.n_vocab, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    assert (tokenizer.model, tokenizer.pre, tokenizer.add_bos, tokenizer.add_eos) == ("gpt2", "smollm", False, False)
    assert tokenizer.eog_ids == {0, 2, 4}  # <|endoftext|>, <|im_end|>, <reponame>: llama.cpp's choice
    assert tokenizer.is_special(2) and not tokenizer.is_special(504)
    assert tokenizer.token_bytes(2) == b"<|im_end|>" and tokenizer.token_bytes(504) == b"The"
