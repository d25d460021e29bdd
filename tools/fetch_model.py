"""Put the default model where the commands look for it: `python fetch_model.py models/SmolLM2-135M-Instruct.Q4_1.gguf`.

What bin/fetch does, for `make`: before anything is compiled.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamacy.errors import LlamacyError
from llamacy.library.fetching import MEGABYTES, fetch


def main(target):
    print(f"make: fetching the default model ({MEGABYTES} MB) to {target}", flush=True)
    try:
        fetch(target)
    except LlamacyError as error:
        return f"make: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
