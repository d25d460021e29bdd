"""The adapters of an open model: add, scale, take off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamacy.errors import LlamacyError


@dataclass
class Applied:
    """An adapter that a model has: its name, what it is multiplied by, and its number inside the model."""

    name: str
    scale: float
    index: int


class Adapters:
    """A model's adapters in the order in which they were added: `len`, iteration, and indices or names as keys.

    Changes wait for a step that is being computed; texts that are being generated go on with the adapters of their
    beginning or fail with LlamacyError, so change them between texts.
    """

    def __init__(self, owner):
        self._owner, self._applied = owner, []
        self.scales = []  # by the number inside the model, 0 for those taken off

    def __len__(self) -> int:
        return len(self._applied)

    def __iter__(self) -> Iterator[Applied]:
        return iter(list(self._applied))

    def __getitem__(self, key: int | str) -> Applied:
        if isinstance(key, int):
            return self._applied[key]
        found = [each for each in self._applied if each.name == key]
        if not found:
            names = ", ".join(repr(each.name) for each in self._applied) or "none"
            raise LlamacyError(f"there is no adapter {key!r}; the model has {names}")
        return found[-1]

    def add(self, adapter: Any, scale: float = 1.0, name: str | None = None) -> Applied:
        """Apply an adapter on top of the others; return its Applied.

        adapter: the path of a file or folder in any format, what `llamacy.finetune` returned, or an Adapter. name:
        what it is called here, its path where none is given. LlamacyError where it is not for this model.
        """
        from llamacy.formats.adapter import load_adapter

        with self._owner.idle() as model:
            found = getattr(adapter, "adapter", adapter)
            found = found if hasattr(found, "pairs") else load_adapter(found, model.metadata)
            index = model.add_adapter(found, float(scale))
            name = name or str(found.path) or f"adapter {len(self)}"
            self.scales.append(float(scale))
            self._applied.append(Applied(name, float(scale), index))
            return self._applied[-1]

    def scale(self, key: int | str, scale: float) -> None:
        """Give the adapter of that index or name another scale; 0 switches it off."""
        with self._owner.idle() as model:
            applied = self[key]
            model.set_adapter_scale(applied.index, float(scale))
            applied.scale = self.scales[applied.index] = float(scale)

    def remove(self, key: int | str) -> None:
        """Take the adapter of that index or name off. Its memory is free again when the model is closed."""
        with self._owner.idle() as model:
            applied = self[key]
            model.set_adapter_scale(applied.index, 0.0)
            self.scales[applied.index] = 0.0
            self._applied.remove(applied)

    def __repr__(self):
        return f"Adapters({', '.join(f'{each.name!r}: {each.scale:g}' for each in self._applied)})"
