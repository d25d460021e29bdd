"""Files made from files: models and adapters in another format, models in other types."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

from llamacy.errors import UsageError
from llamacy.system import fit_threads

Path = str | os.PathLike


def _note(text):
    warnings.warn(text.removeprefix("warning: "), stacklevel=2)


def convert(
    source: Path,
    output: Path | None = None,
    *,
    to: str | None = None,
    type: str | None = None,
    base: Path | None = None,
    name: str | None = None,
    threads: int | None = None,
) -> str:
    """Write a model or an adapter in another format; return what was done, in words.

    source   a Hugging Face folder, a GGML file of 2023, a GGUF file; or an adapter in any format
    output   path; None, for a Hugging Face folder only: NAME-TYPE.gguf in it
    to       of an adapter: "gguf", "ggla", "peft" or "mlx"; None: what the name of `output` says
    type     of a Hugging Face folder's matrices, such as "q8_0" or "q4_k_m"; None: as they are
    base     path of the model that an adapter is for, where its format does not say
    name     the new model's general.name        threads  to round with; None: the physical cores
    LlamacyError where it cannot be read, written or said in that format.
    """
    from llamacy.formats.adapter import adapter_format
    from llamacy.formats.hf_folder import is_model_folder
    from llamacy.model.convert import convert_adapter, convert_folder, convert_model

    source, output = str(source), None if output is None else str(output)
    if is_model_folder(source):
        return convert_folder(source, output, to=to, outtype=type, name=name, threads=fit_threads(threads), note=_note)
    if output is None:
        raise UsageError("output: wanted a path; only for a Hugging Face folder there is a usual one")
    if type is not None:
        raise UsageError(f"type: {source} keeps its types, which quantize changes")
    if kind := adapter_format(source):
        report = convert_adapter(source, output, kind, to=to, base=None if base is None else str(base), note=_note)
        if "left out" in report:
            warnings.warn(report, stacklevel=2)
        return report
    return convert_model(source, output, to=to, name=name)


def quantize(
    source: Path,
    output: Path,
    mix: str,
    *,
    imatrix: Path | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    progress: Callable[[float], Any] | None = None,
) -> str:
    """Write the model file `source` in other types of weights at `output`, whole or not at all; return the path.

    mix               such as "Q4_0", "Q4_K_M", "Q8_0"; any case
    imatrix           path of an importance matrix: what errors in each column cost
    allow_requantize  round weights that are rounded already, which loses accuracy
    progress          called with the share that is done, 0 to 1
    threads           to round with; None: the physical cores
    LlamacyError where the file cannot be read, has types that must not be rounded again, or there is no such mix.
    """
    from llamacy.formats.imatrix import read_imatrix
    from llamacy.formats.model_file import open_model
    from llamacy.model.mixes import MIXES, Wishes
    from llamacy.model.quantize import fallbacks, plan, write_model

    source, output, mix = str(source), str(output), str(mix).upper()
    if mix not in MIXES:
        raise UsageError(f"mix: wanted one of {', '.join(MIXES)}, got {mix!r:.40}")
    weighed = None if imatrix is None else read_imatrix(str(imatrix))
    with open_model(source) as model:
        if os.path.exists(output) and any(os.path.samefile(output, path) for path in model.paths):
            raise UsageError(f"{output} is the input itself; write to another file")
        steps = plan(model, MIXES[mix], Wishes(by_importance=weighed is not None), allow_requantize)
        for (wanted, taken), count in fallbacks(steps).items():
            _note(f"{wanted} does not divide the rows of {count} tensors, which become {taken}")
        tell = None if progress is None else lambda step, done, total: progress(done / max(1, total))
        n_threads = fit_threads(threads)
        write_model(model, output, steps, MIXES[mix].file_type, imatrix=weighed, n_threads=n_threads, progress=tell)
    return output
