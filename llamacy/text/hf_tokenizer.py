"""A Hugging Face folder's tokenizer as GGUF metadata: tokens, types, merges or scores, special tokens, templates.

Which keys are written, and what wins where files disagree, follows llama.cpp's converter (conversion/base.py and
gguf-py's vocab.py), so that its tools find what they expect.
"""

import re

import numpy as np

from llamacy.errors import shown
from llamacy.formats.strings import StringArray
from llamacy.text.pretokenizer_names import pretokenizer_name
from llamacy.text.sentencepiece import BPE, is_sentencepiece, read_sentencepiece

JSON, CONFIG, MODEL = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
ADDED = "added_tokens.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIALS = ("bos", "eos", "unk", "sep", "pad", "mask")
# Added tokens that are control tokens although their files do not say so.
_SEEM_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\u2581"
# Special tokens that llama.cpp's converter gives a family whatever its files say, where the vocabulary has them.
OWN_SPECIALS = {
    "glm4": {"eos": "<|endoftext|>", "eot": "<|user|>", "unknown": "<|endoftext|>", "bos": "<|endoftext|>"},
    "gemma": {
        "prefix": "<|fim_prefix|>", "middle": "<|fim_middle|>", "suffix": "<|fim_suffix|>",
        "fsep": "<|file_separator|>", "eot": "<end_of_turn>",
    },
}  # fmt: skip
# Families that begin no text with a token, and granite's small models by their vocabulary.
_WITHOUT_BOS = {"phi2": None, "granite": 49152, "granitemoe": 49152, "llama": 49152}
# Scores of tokens that are never merged into.
_ADDED_SCORE, _PADDING_SCORE = -1000.0, -10000.0
_MAX_TOKENS = 1 << 21


def tokenizer_metadata(folder, n_vocab, config, family=None):
    """Return the tokenizer.* metadata of an open HfFolder whose model has `n_vocab` rows.

    config: config.json's values; family: general.architecture, whose own special tokens are set besides.
    """
    settings = folder.json(CONFIG, optional=True)
    parsed = folder.json(JSON, optional=True)
    if not 0 < n_vocab <= _MAX_TOKENS:
        raise folder.error("config.json", f"a vocabulary of {n_vocab} tokens", "the file is damaged")
    pieces = folder.bytes(MODEL, 1 << 26) if folder.has(MODEL) else b""
    if is_sentencepiece(pieces):
        vocabulary = _from_sentencepiece(folder, n_vocab, pieces, _added(folder, parsed, settings))
    elif parsed:
        vocabulary = _from_json(folder, n_vocab, parsed)
    else:
        raise folder.error("", f"has neither {JSON} nor {MODEL}", "download the tokenizer's files too")
    special = _special_ids(folder, parsed, settings, config, n_vocab)
    defaults = {key: value for key, value in vocabulary.pop("ids", {}).items() if value is not None}
    adds = _added_at_the_ends(parsed, settings)
    found = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("sep", "seperator"), ("pad", "padding"),
                      ("mask", "mask")):  # fmt: skip
        token = special.get(name, defaults.get(name))
        if token is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = token
    found |= {f"tokenizer.ggml.add_{name}_token": value for name, value in adds.items()}
    if family in _WITHOUT_BOS and _WITHOUT_BOS[family] in (None, n_vocab):
        found["tokenizer.ggml.add_bos_token"] = False
    known = {text: token for token, text, _ in _added(folder, parsed, settings)}
    for key, text in OWN_SPECIALS.get(family, {}).items():
        if text in known:
            found[f"tokenizer.ggml.{key}_token_id"] = known[text]
    if found["tokenizer.ggml.model"] == "gpt2":
        found["tokenizer.ggml.pre"] = pretokenizer_name(parsed, found)
    return found | _templates(folder, settings)


# ---- vocabularies ----


class _Tokens:
    """The tokens by id while they are gathered; what nobody names is padding."""

    def __init__(self, folder, name, n_vocab):
        self.folder, self.name = folder, name
        self.texts, self.types = [None] * n_vocab, np.full(n_vocab, UNUSED, np.int32)
        self.scores = np.full(n_vocab, _PADDING_SCORE, np.float32)

    def put(self, token, text, kind, score=0.0):
        """Set token id `token`, checked; `text` is str or bytes."""
        if type(token) is not int or not 0 <= token < len(self.texts) or not isinstance(text, (str, bytes)):
            what = f"token {shown(text)} has the id {shown(token)}, wanted 0 to {len(self.texts) - 1}"
            raise self.folder.error(self.name, what, "the tokenizer is another model's, or damaged")
        self.texts[token] = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        self.types[token], self.scores[token] = kind, score

    def put_added(self, added):
        """Set the added tokens [(id, text, special)]: control tokens and such as are matched in any text."""
        for token, text, special in added:
            if special or (isinstance(text, str) and _SEEM_SPECIAL.fullmatch(text)):
                self.put(token, text, CONTROL, _ADDED_SCORE)
            else:
                text = text.replace(_SPACE, " ") if isinstance(text, str) else text
                self.put(token, text, USER_DEFINED, _ADDED_SCORE)

    def array(self):
        """Return all texts as a StringArray."""
        return StringArray.of(b"[PAD%d]" % i if text is None else text for i, text in enumerate(self.texts))


def _added(folder, parsed, settings):
    """Return [(id, text, special)] of the added tokens in any of the files that tell them."""
    entries = parsed.get("added_tokens") or []
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, list) or not isinstance(decoder, dict):
        raise folder.error(JSON, "its added tokens are no list", "the file is damaged")
    found = {}
    if not parsed:
        entries = [{"id": token, "content": text} for text, token in folder.json(ADDED, optional=True).items()]
    numbered = [(int(token) if re.fullmatch("[0-9]{1,9}", token) else token, entry) for token, entry in decoder.items()]
    for token, entry in [(entry.get("id"), entry) for entry in entries if isinstance(entry, dict)] + numbered:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(token) is not int:
            raise folder.error(JSON, f"an added token is {shown(entry)}", "the file is damaged")
        found[token] = (token, entry["content"], bool(entry.get("special")))
    return list(found.values())


def _from_sentencepiece(folder, n_vocab, content, added):
    model = read_sentencepiece(content, f"{folder.path}/{MODEL}")
    if model.model_type != BPE:
        raise folder.error(MODEL, "is a unigram model", "wanted one of kind BPE, as llama's")
    tokens = _Tokens(folder, MODEL, n_vocab)
    for i, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.types, strict=True)):
        if i < n_vocab:
            tokens.put(i, piece, kind if NORMAL <= kind <= BYTE else NORMAL, score)
    # What the model itself says of <unk>, <s> and </s> stays: <unk> is unknown, not control.
    fixed = {i for i, kind in enumerate(model.types) if kind in (UNKNOWN, CONTROL)}
    tokens.put_added([entry for entry in added if entry[0] not in fixed])
    known = {name: token if 0 <= token < n_vocab else None for name, token in model.ids.items()}
    return _scored(tokens, model.add_dummy_prefix) | {"ids": known}


def _from_json(folder, n_vocab, parsed):
    model = parsed.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise folder.error(JSON, f"a tokenizer of kind {shown(kind)}", "wanted BPE, as llama-family models have")
    tokens, merges = _Tokens(folder, JSON, n_vocab), _merges(folder, model)
    for text, token in model["vocab"].items():
        tokens.put(token, text, NORMAL)
    tokens.put_added(_added(folder, parsed, {}))
    if not model.get("byte_fallback"):
        return {"model": "gpt2", "tokens": tokens.array(), "token_type": tokens.types, "merges": merges}
    for token, text in enumerate(tokens.texts):
        if text is not None and tokens.types[token] == NORMAL and _BYTE_TOKEN.fullmatch(text):
            tokens.types[token] = BYTE
    unknown = model["vocab"].get(str(model.get("unk_token")))
    if unknown is not None:
        tokens.types[unknown] = UNKNOWN
    _score_by_merges(tokens, model["vocab"], merges)
    return _scored(tokens, _prepends_space(parsed)) | {"ids": {"unk": unknown}}


def _scored(tokens, add_space_prefix):
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens.array(),
        "scores": tokens.scores,
        "token_type": tokens.types,
        "add_space_prefix": bool(add_space_prefix),
    }


def _merges(folder, model):
    """Return the merges as "left right"; in the newer form, of pairs, a space inside becomes what stands for it."""
    merges = model.get("merges", [])
    if isinstance(merges, list) and all(isinstance(merge, str) for merge in merges):
        return StringArray.of(merges)
    pairs = merges if isinstance(merges, list) else [None]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise folder.error(JSON, f"a merge is {shown(pair)}, wanted two texts", "the file is damaged")
    return StringArray.of(" ".join(part.replace(" ", "\u0120") for part in pair) for pair in pairs)


def _score_by_merges(tokens, vocabulary, merges):
    """Give each token the score that makes merging by score do what merging by rank does: earlier is higher.

    Of the merges that give one token only the first counts; tokens that no merge gives stay at 0 and are never merged.
    """
    for rank in range(len(merges)):
        token = vocabulary.get(merges[rank].replace(" ", "", 1))
        if isinstance(token, int) and tokens.scores[token] == 0:
            tokens.scores[token] = -1.0 - rank


def _prepends_space(parsed):
    """Tell whether the tokenizer puts a space before a text."""
    steps = [parsed.get("normalizer"), parsed.get("pre_tokenizer")]
    while steps:
        step = steps.pop()
        if not isinstance(step, dict):
            continue
        if step.get("type") == "Prepend" and step.get("prepend") == _SPACE:
            return True
        if step.get("type") == "Metaspace" and step.get("prepend_scheme", step.get("add_prefix_space")) not in (
            "never", False, None,
        ):  # fmt: skip
            return True
        steps += [*_list(step.get("normalizers")), *_list(step.get("pretokenizers"))]
    return False


# ---- special tokens and templates ----


def _list(value):
    return value if isinstance(value, list) else []


def _special_ids(folder, parsed, settings, config, n_vocab):
    """Return {"bos": id, ...}: by the names in tokenizer_config.json, then by the ids in config.json."""
    known = {text: token for token, text, _ in _added(folder, parsed, settings)}
    model = parsed.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) and isinstance(model.get("vocab"), dict) else {}
    found = {}
    for name in SPECIALS:
        entry = settings.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        token = known.get(text, vocabulary.get(text)) if isinstance(text, str) else None
        if token is None:
            token = config.get(f"{name}_token_id")
            token = token[0] if isinstance(token, list) and token else token
        if type(token) is int and 0 <= token < n_vocab:
            found[name] = token
    return found


def _added_at_the_ends(parsed, settings):
    """Return {"bos": bool, "eos": bool} as far as the files say: the post-processor first, then the settings."""
    found = {}
    processor = parsed.get("post_processor")
    steps = (_list(processor.get("processors")) or [processor]) if isinstance(processor, dict) else []
    names = {name: settings.get(f"{name}_token") for name in ("bos", "eos")}
    names = {name: entry.get("content") if isinstance(entry, dict) else entry for name, entry in names.items()}
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "ByteLevel":
            found = {"bos": False, "eos": False} | found
        if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
            continue
        ends = [part.get("SpecialToken") for part in _list(step.get("single")) if isinstance(part, dict)]
        for name, part in (("bos", ends[0]), ("eos", ends[-1])) if len(ends) > 1 else ():
            if isinstance(part, dict):
                found[name] = not settings or part.get("id") == names[name]
    for name in ("bos", "eos"):
        if isinstance(settings.get(f"add_{name}_token"), bool):
            found.setdefault(name, settings[f"add_{name}_token"])
    return found


def _templates(folder, settings):
    """Return tokenizer.chat_template, and those with other names under theirs."""
    template, place = settings.get("chat_template"), CONFIG
    if template is None and folder.has("chat_template.jinja"):
        template = folder.bytes("chat_template.jinja").decode("utf-8", "replace")
    if template is None and folder.has("chat_template.json"):
        template, place = folder.json("chat_template.json").get("chat_template"), "chat_template.json"
    if template is None or isinstance(template, str):
        return {"tokenizer.chat_template": template} if template else {}
    wanted = "wanted text or a list of {name, template}"
    if not isinstance(template, list):
        raise folder.error(place, f"chat_template is {shown(template)}, {wanted}", "mend or remove it")
    found, names = {}, []
    for entry in template:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise folder.error(place, f"a chat_template is {shown(entry)}, {wanted}", "mend or remove it")
        if name == "default":
            found["tokenizer.chat_template"] = text
        else:
            name = re.sub(r"[^a-z0-9_]", "", name.lower().replace("-", "_"))
            names.append(name)
            found[f"tokenizer.chat_template.{name}"] = text
    return found | ({"tokenizer.chat_templates": names} if names else {})
