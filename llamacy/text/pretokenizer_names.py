"""Which pre-tokenizer a tokenizer.json describes: by its own expressions, and by what it makes of a known text.

Source of the digests: the table in llama.cpp's conversion/base.py (get_vocab_base_pre), which writes tokenizer.ggml.pre
by it: sha256 of the ids of CHECK_TEXT as Python prints them; the first 16 digits here, of the names that ROWS has.
"""

import hashlib
import warnings

from llamacy.text.pretokenizers import BY_NAME, CONTRACTION, GPT2, ROWS
from llamacy.text.tokenizer import Tokenizer

CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
DIGESTS = {
    "b0a6b1c0bd5998eb": "a.x-4.0",
    "96a5f08be6259352": "bailingmoe",
    "9b1be57e70d20d95": "bailingmoe2",
    "3c30d3ad1d6b6420": "bloom",
    "81d72c7348a9f0eb": "chatglm-bpe",
    "b6e8e1518dc4305b": "chatglm-bpe",
    "7b3e7548e4308f52": "codeshell",
    "9c2227e4dd922002": "command-r",
    "a8594e3edff7c29c": "dbrx",
    "347715f544604f91": "deepseek-coder",
    "049ecf7629871e30": "deepseek-llm",
    "b3f499bb4255f8ca": "deepseek-r1-qwen",
    "877081d19cf6996e": "deepseek-v3",
    "4e2b24cc4770243d": "exaone",
    "2085e1638f6c377a": "exaone4",
    "862f827721df9560": "f2llmv2",
    "8aeee3860c56296a": "falcon",
    "3eda48b4c4dc7de7": "falcon-h1",
    "48f8e02c0359c0bb": "falcon-h1",
    "60476e1243776c4f": "falcon-h1",
    "a6b57017d60e6edb": "falcon-h1",
    "9d032fcbd5501f4a": "falcon3",
    "846deafc5b0fa786": "gemma4",
    "ad851be1dba641f2": "gigachat",
    "9ca2dd618e8afaf0": "glm4",
    "a1336059768a55c9": "glm4",
    "cdf5f35325780597": "glm4",
    "0fe1cf6eda062318": "gpt-2",
    "3ce83efda5659b07": "gpt-2",
    "ccc2ef013c104be7": "gpt-4o",
    "bc01ce58980e1db4": "gpt3-finnish",
    "53e325976a6e1423": "granite-docling",
    "66b8d4e19ab16c3b": "grok-2",
    "7e57df22b1fe23a7": "hunyuan",
    "bba3b3366b646dbd": "hunyuan-dense",
    "b53802fb28e26d64": "jais",
    "27949a2493fc4a9f": "jina-v2-de",
    "b3d1dd861f1d4c5c": "jina-v2-de",
    "171aeeedd6fb548d": "jina-v2-es",
    "a023e9fdc5a11f03": "jina-v5-nano",
    "b4b8ca1f9769494f": "joyai-llm",
    "e4d54df1ebc1f2b9": "kanana2",
    "4a2e2abae11ca2b8": "kormo",
    "169bf0296a13c4d9": "lfm2",
    "9e454714343b69b9": "lfm2",
    "0ef9807a4087ebef": "llama-bpe",
    "d353350c764d8c3b": "llama4",
    "d4c8f286ea6b520b": "megrez",
    "a1e163ecab2e718a": "mellum",
    "9dcf830ee9990cdb": "mellum2",
    "f6791d196f87ce6b": "midm-2.0",
    "1431a23e583c9743": "minerva-7b",
    "f4f37b6c8eb9ea29": "minimax-m2",
    "a0b64b4385f12366": "modern-bert",
    "b6dc8df998e1cfbd": "olmo",
    "fcace8b9cac38ce8": "phi-2",
    "0e9433cbbb161f89": "pixtral",
    "c7ea5862a53e4272": "poro-chat",
    "d4540891389ea895": "qwen2",
    "e636dc30a262dcc0": "qwen2",
    "1444df51289cfa80": "qwen35",
    "d30d75d9059f1aa2": "qwen35",
    "6221ad2852e85ce9": "refact",
    "c136ed14d01c2745": "smaug-bpe",
    "d5f1dd6f980fec56": "seed-coder",
    "855059429035d75a": "smollm",
    "16389f0a1f51ee53": "solar-open",
    "32d85c31273f8019": "stablelm2",
    "35d91631860c815f": "starcoder",
    "63b97e4253352e6f": "tekken",
    "1994ffd01900cfb3": "trillion",
    "7fc505bd3104ca10": "viking",
}
# Ways in which tokenizer.json files write what the rows write otherwise.
SPELLINGS = (("(?i:'s|'t|'re|'ve|'m|'ll|'d)", CONTRACTION), ("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", CONTRACTION + "?"))
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


def expressions_of(pre_tokenizer, depth=0):
    """Return the expressions that the JSON of a pre-tokenizer applies one after the other; None for other kinds."""
    kind = pre_tokenizer.get("type") if isinstance(pre_tokenizer, dict) else None
    if kind == "Sequence":
        steps = pre_tokenizer.get("pretokenizers")
        known = isinstance(steps, list) and depth < 4
        parts = [expressions_of(step, depth + 1) for step in steps] if known else [None]
        return None if None in parts else tuple(one for part in parts for one in part)
    if kind == "ByteLevel":
        return (GPT2,) if pre_tokenizer.get("use_regex", True) else ()
    if kind == "Digits":
        return (r"\p{N}",) if pre_tokenizer.get("individual_digits") else (r"\p{N}+",)
    if kind == "Punctuation":
        return (PUNCTUATION,)
    pattern = pre_tokenizer.get("pattern") if kind == "Split" else None
    if not isinstance(pattern, dict) or not isinstance(pattern.get("Regex"), str):
        return None
    expression = pattern["Regex"]
    for theirs, ours in SPELLINGS:
        expression = expression.replace(theirs, ours)
    return (expression,)


def pretokenizer_name(tokenizer_json, metadata):
    """Return tokenizer.ggml.pre for a byte-level tokenizer.json whose vocabulary is in `metadata` already.

    A row with the JSON's expressions is taken, under the name that llama.cpp gives this very vocabulary where the
    digest tells it. Without such a row any whose ids give a known digest; else "default", with a warning.
    """
    found = expressions_of(tokenizer_json.get("pre_tokenizer"))
    whole = bool(tokenizer_json.get("model", {}).get("ignore_merges"))
    rows = [row for row in ROWS if row.expressions == found]
    rows.sort(key=lambda row: bool(row.whole_first) != whole)
    for row in rows or ROWS:
        name = DIGESTS.get(digest(metadata, row.names[0]))
        if name and BY_NAME[name].expressions == row.expressions:
            return name
    if rows:
        return rows[0].names[0]
    warnings.warn("the pre-tokenizer is not known: text is cut as 'default' does, and the model may answer worse",
                  stacklevel=2)  # fmt: skip
    return "default"


def digest(metadata, name):
    """Return the digest of CHECK_TEXT's ids when it is cut as `name` cuts."""
    tokenizer = Tokenizer(metadata | {"tokenizer.ggml.pre": name})
    ids = [int(token) for token in tokenizer.encode(CHECK_TEXT)]
    return hashlib.sha256(str(ids).encode()).hexdigest()[:16]
