"""Filling in the middle of a text: llama.cpp's /infill, for models whose vocabulary has the marks for it."""

from llamacy.server import api, fields
from llamacy.server.errors import HttpError
from llamacy.server.options import read_prompts

FIELDS = {
    "input_prefix": (fields.text, None),
    "input_suffix": (fields.text, None),
    "prompt": (fields.text, ""),
    "input_extra": (fields.items(fields.mapping), ()),
}
# The mark: metadata keys that name it, and its texts in vocabularies, as llama.cpp finds it.
MARKS = {
    "prefix": (("fim_pre_token_id", "prefix_token_id"), ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>",
               "<\uff5cfim\u2581begin\uff5c>", "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>")),
    "suffix": (("fim_suf_token_id", "suffix_token_id"), ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>",
               "<\uff5cfim\u2581hole\uff5c>", "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>")),
    "middle": (("fim_mid_token_id", "middle_token_id"), ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>",
               "<\uff5cfim\u2581end\uff5c>", "\u2581<MID>", "<|code_middle|>", "<|middle|>")),
    "repo": (("fim_rep_token_id",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    "file": (("fim_sep_token_id",), ("<|file_sep|>",)),
}  # fmt: skip


def mark(app, name):
    """Return the id of a mark, None where the model has none."""
    keys, texts = MARKS[name]
    tokenizer = app.model.tokenizer
    for key in keys:
        value = app.model.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(value, int) and 0 <= value < tokenizer.n_vocab:
            return value
    for text in texts:
        ids = tokenizer.encode(text, add_special=False)
        if len(ids) == 1 and tokenizer.token_bytes(ids[0]) == text.encode():
            return ids[0]
    return None


def infill(app, call):
    """Go on between `input_prefix` and `input_suffix`; `prompt`: what the middle begins with."""
    data = fields.mapping("the body", call.json())
    values = fields.read_all(data, FIELDS)
    marks = {name: mark(app, name) for name in MARKS}
    missing = [name for name in ("prefix", "suffix", "middle") if marks[name] is None]
    if missing:
        raise HttpError(501, f"this model cannot fill in: its vocabulary has no mark for {' and '.join(missing)}")
    for name in ("input_prefix", "input_suffix"):
        if values[name] is None:
            raise HttpError(400, f"{name}: wanted a string, got nothing")
    tokenizer = app.model.tokenizer

    def ids(text):
        app.check_length("prompt", text)
        return tokenizer.encode(text, add_special=False, parse_special=False)

    extra = []
    for i, item in enumerate(values["input_extra"]):
        name = fields.text(f"input_extra[{i}].filename", item.get("filename") or "tmp")
        text = fields.text(f"input_extra[{i}].text", item.get("text"))
        head = [marks["file"], *ids(name + "\n")] if marks["file"] is not None else ids(f"\n\n--- {name} ---\n")
        extra += head + ids(text)
    if extra and marks["repo"] is not None:
        extra = [marks["repo"], *ids("myproject\n"), *extra]
    begin = [tokenizer.bos_id] if tokenizer.add_bos else []
    prompt = [
        *begin, *extra, marks["prefix"], *ids(values["input_prefix"]), marks["suffix"], *ids(values["input_suffix"]),
        marks["middle"], *ids(values["prompt"]),
    ]  # fmt: skip
    left = {key: value for key, value in data.items() if key not in FIELDS}
    return api.complete(app, call, left, *read_prompts(app, prompt))


ROUTES = {("POST", "/infill"): infill}
