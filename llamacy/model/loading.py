"""How a model is to be loaded, as one record: what the commands' flags and a caller's arguments come to."""

import warnings
from dataclasses import dataclass, field

from llamacy.model.model import load_model
from llamacy.system import lock_memory


@dataclass(frozen=True)
class Loading:
    """How to load a model; see load_model.

    rope: metadata that say how positions are rotated, `{arch}` in a key the file's architecture; overrides: the same
    for any other key. lock: keep the process's pages in memory.
    """

    activations: str = "int8"
    threads: int | None = None
    mmap: bool = True
    lock: bool = False
    rms_eps: float | None = None
    rope_theta: float | None = None
    rope: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)
    cache_types: tuple = (None, None)

    def load(self, path, adapters=(), note=warnings.warn):
        """Return the Model at `path` with adapters, (path, scale) each, applied in their order.

        `note(text)` is told where the system does not lock memory; LlamacyError for whatever cannot be used.
        """
        model = load_model(
            path,
            activations=self.activations,
            threads=self.threads,
            mmap=self.mmap,
            rms_eps=self.rms_eps,
            rope_theta=self.rope_theta,
            overrides=self.rope | self.overrides,
            cache_types=self.cache_types,
        )
        refused = lock_memory() if self.lock else ""
        if refused:
            note(f"warning: --mlock: {refused}; going on without it (see `ulimit -l`)")
        if adapters:
            # Late: a model without adapters does without their formats, 4 MB.
            from llamacy.formats.adapter import load_adapter

            for adapter_path, scale in adapters:
                model.add_adapter(load_adapter(adapter_path), scale)
        return model
