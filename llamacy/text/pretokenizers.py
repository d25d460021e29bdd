"""The pre-tokenizers: how text is cut before byte pairs are merged, one row per `tokenizer.ggml.pre`.

A row holds the regular expressions of the model's own tokenizer.json (as llama.cpp lists them in llama-vocab.cpp, with
(?i:) written out), applied one after the other, each within the pieces of the one before: matches become pieces, and
so does what lies between them. Adding a model is adding its name to a row, or a row.
"""

import warnings
from functools import lru_cache
from typing import NamedTuple

from llamacy.errors import shown
from llamacy.kernels.text.splitter import Splitter
from llamacy.text.pattern import compile_pattern

CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
LLAMA3 = rf"{CONTRACTION}|{WORDS}|\p{{N}}{{1,3}}|{SYMBOLS}|{TAIL}"
QWEN2 = rf"{CONTRACTION}|{WORDS}|\p{{N}}|{SYMBOLS}|{TAIL}"
QWEN35 = rf"{CONTRACTION}|{LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{TAIL}"
SEED_CODER = rf"{CONTRACTION}|{WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{TAIL}"
TEKKEN = rf"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
O200K = (
    rf"{LEAD}{UPPER}*{LOWER}+{CONTRACTION}?|{LEAD}{UPPER}+{LOWER}*{CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
)
# Every cased letter that DeepSeek's tokenizer.json lists, as it does.
DEEPSEEK_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
BAILING = (
    rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{LEAD}\p{{L}}+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
CJK_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{TAIL}",
)


class PreTokenizer(NamedTuple):
    """How text is cut for one family of models.

    whole_first: take a piece that is a token as it is, before any merging (1), or if it begins with a newline (2).
    add_bos: what holds where the file does not say.
    """

    expressions: tuple
    names: tuple
    whole_first: int = 0
    add_bos: bool = False


ROWS = (
    PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        ("default",),
    ),
    PreTokenizer(
        (GPT2,),
        (
            *("gpt-2", "phi-2", "mpt", "olmo", "jais", "mellum", "modern-bert", "exaone4", "gigachat", "a.x-4.0"),
            *("trillion", "granite-docling", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
        ),
    ),
    PreTokenizer(
        (r"\p{N}", GPT2),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(
        (LLAMA3,),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        whole_first=1,
        add_bos=True,
    ),
    PreTokenizer((LLAMA3,), ("dbrx", "smaug-bpe", "chatglm-bpe")),
    PreTokenizer((LLAMA3,), ("glm4", "glm5"), whole_first=1),
    PreTokenizer(
        (QWEN2,),
        ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "solar-open", "grok-2", "f2llmv2"),
    ),
    PreTokenizer((QWEN35,), ("qwen35",)),
    PreTokenizer((SEED_CODER,), ("seed-coder",)),
    PreTokenizer((TEKKEN,), ("tekken",), whole_first=1, add_bos=True),
    PreTokenizer((O200K,), ("gpt-4o", "o200k", "llama4", "kanana2", "minimax-m2")),
    PreTokenizer(
        (
            "[\r\n]",
            rf"\s?[{DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            CJK_HANGUL,
            r"\p{N}+",
        ),
        ("deepseek-llm",),
    ),
    PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_HANGUL, r"\p{N}"), ("deepseek-coder",)),
    PreTokenizer(DEEPSEEK3, ("deepseek-v3", "hunyuan-dense", "joyai-llm")),
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"), ("falcon",)),
    PreTokenizer((BLOOM,), ("poro-chat", "bloom", "gpt3-finnish")),
    PreTokenizer((BLOOM, r"\p{N}"), ("viking",)),
    PreTokenizer((BAILING,), ("bailingmoe", "bailingmoe2", "llada-moe")),
    PreTokenizer((r"[^\n]+|[\n]+",), ("gemma4",), whole_first=2, add_bos=True),
)
BY_NAME = {name: row for row in ROWS for name in row.names}


def pretokenizer(name):
    """Return the PreTokenizer of that name; the default one, with a warning, where there is none."""
    row = BY_NAME.get(name)
    if row is None:
        what = f"pre-tokenizer {shown(name)} is not known" if name else "the file does not name its pre-tokenizer"
        warnings.warn(f"{what}: text is cut as 'default' does, and the model may answer worse", stacklevel=2)
        row = BY_NAME["default"]
    return row


@lru_cache(maxsize=8)
def splitter(expressions):
    """Return the compiled Splitter of a row's expressions."""
    return Splitter([compile_pattern(expression) for expression in expressions])
