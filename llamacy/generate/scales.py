"""Adapter scales per request: several requests with different scales in one step, where the adapters allow it."""

import numpy as np


class Scales:
    """How a step gets its adapters' scales.

    Matrices take a scale per token. Norms, which ggla adapters may change too, have one for the whole step: with such
    adapters only requests with the same scales share a step.
    """

    def __init__(self, model):
        self._model = model
        self.defaults = tuple(float(scale) for _, scale in model.adapters)
        self._per_step = any(adapter.norms for adapter, _ in model.adapters)
        # A token's scale comes on top of the adapter's own: that becomes 1, and every request brings its full scale.
        self._now = self.defaults if self._per_step else self._set((1.0,) * len(self.defaults))

    def _set(self, scales):
        for i, scale in enumerate(scales):
            self._model.set_adapter_scale(i, scale)
        return scales

    def together(self, slots):
        """Return those of the slots that may share the next step: by turns, who waited longest goes first."""
        if not self._per_step or not slots:
            return slots
        first = min(slots, key=lambda slot: slot.last_step)
        return [slot for slot in slots if slot.lora == first.lora]

    def rows(self, scales):
        """Return a step's scales, float32 (T, n_adapters), from each token's tuple; None where they are all 1."""
        if self._per_step:
            if self._now != scales[0]:
                self._now = self._set(scales[0])
            return None
        rows = np.array(scales, np.float32)
        return None if (rows == 1).all() else rows
