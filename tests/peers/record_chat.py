"""Record what transformers' apply_chat_template makes of tests/data/chat/records.jsonl.

    python tests/peers/record_chat.py

Needs transformers, tokenizers and gguf, and the default model, whose vocabulary is taken with each template's own
special tokens behind it. For each template and record: the token ids, and from where to where they are an answer: what
rendering up to the assistant's turn, with the prompt for it, leaves of rendering the turn too, up to the token that
ends it; only where both begin the whole conversation, and where the template writes something of the answer.
null: the template refuses the record.
"""

import copy
import json
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data" / "chat"
# template -> (special tokens, bos, eos, tokens that end a turn)
TEMPLATES = {
    "smollm2": ((), "<|im_start|>", "<|im_end|>", ("<|im_end|>",)),
    "llama3": (("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
               "<|begin_of_text|>", "<|eot_id|>", ("<|eot_id|>",)),
    "llama3_1": (("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
                 "<|begin_of_text|>", "<|eot_id|>", ("<|eot_id|>", "<|eom_id|>")),
    "qwen2_5": ((), "<|endoftext|>", "<|im_end|>", ("<|im_end|>",)),
    "qwen3": ((), "<|endoftext|>", "<|im_end|>", ("<|im_end|>",)),
    "gemma": (("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", ("<end_of_turn>",)),
}  # fmt: skip


def tokenizer_of(metadata, special, bos, eos):
    """Return transformers' tokenizer of a byte-level vocabulary of GGUF metadata, with more special tokens."""
    import tokenizers
    import transformers

    tokens = list(metadata["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    model = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    inner = tokenizers.Tokenizer(model)
    digits, byte_level = tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(False)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    own = [token for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if kind in (2, 3)]
    inner.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in (*own, *special)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos)


def metadata_of(path):
    """Return the vocabulary of a GGUF as a dict of lists."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    wanted = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.chat_template")
    return {key: fields[key].contents() for key in wanted}


def recorded(tokenizer, template, record, ends):
    """Return {"ids", "answers": [[begin, end], ...]} of a record, None where the template refuses it."""
    for messages in (record["messages"], without_null(record["messages"])):
        try:
            return _recorded(tokenizer, template, messages, record.get("tools"), ends)
        except Exception as error:  # whatever a template runs into
            last = error
    print(record["name"], "refused:", str(last)[:80])
    return None


def without_null(messages):
    messages = copy.deepcopy(messages)
    for message in messages:
        if message.get("content", "") is None:
            message["content"] = ""
    return messages


def _recorded(tokenizer, template, messages, tools, ends):
    def text(part, prompt=False):
        return tokenizer.apply_chat_template(
            part, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )

    whole = text(messages)
    ids = tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=True, return_dict=False)
    places = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert len(places) == len(ids)
    end_ids = {tokenizer.convert_tokens_to_ids(end) for end in ends}
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        after = text(messages[: number + 1])
        if number:
            before = text(messages[:number], True)
        else:
            ask = [{"role": "user", "content": "x"}]
            opening = text(ask, True).removeprefix(text(ask))
            before = after[: after.find(opening) + len(opening)]
        said = after[len(before) :]
        for end in ends:
            said = said.replace(end, "")
        if not whole.startswith(after) or not after.startswith(before) or not said.strip():
            continue
        inside = [at for at, (low, high) in enumerate(places) if high > len(before) and low < len(after)]
        begin, end = inside[0], inside[-1] + 1
        end = next((at + 1 for at in reversed(range(begin, end)) if ids[at] in end_ids), end)
        answers.append([begin, end])
    return {"ids": ids, "answers": answers}


def record(model):
    """Return {template: {record's name: what is recorded}}."""
    metadata = metadata_of(model)
    records = [json.loads(line) for line in (DATA / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    result = {}
    for name, (special, bos, eos, ends) in TEMPLATES.items():
        source = metadata["tokenizer.chat_template"]
        if (DATA / f"{name}.jinja").exists():
            source = (DATA / f"{name}.jinja").read_text(encoding="utf-8")
        tokenizer = tokenizer_of(metadata, special, bos, eos)
        result[name] = {row["name"]: recorded(tokenizer, source, row, ends) for row in records}
    return result


if __name__ == "__main__":
    model = Path(__file__).resolve().parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    rows = record(model)
    lines = [
        json.dumps(name)
        + ": {\n"
        + ",\n".join(f" {json.dumps(key)}: {json.dumps(row)}" for key, row in table.items())
        + "}"
        for name, table in rows.items()
    ]
    (DATA / "expected.json").write_text("{\n" + ",\n".join(lines) + "}\n")
