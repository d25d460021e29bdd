"""How much memory a run may take, which way of running stays within it, and what it leaves on the disk."""

import os
import shutil

from llamacy.errors import LlamacyError
from llamacy.system import available_bytes, peak_rss_bytes, rss_bytes
from llamacy.train.estimate import cases, choose, disk_bytes, longest_pass, shown, training_bytes, weights_bytes
from llamacy.train.lora import pair_ranks, places


class Budget:
    """What a Prepared run needs with the adapter `start` (None: a new one) on `data`, parts of samples or None.

    ranks: {(layer, slot): rank} of the pairs; limit: the bytes to stay within, None where nobody says.
    """

    def __init__(self, prepared, start, data):
        self.job, self.file, self.options = prepared.job, prepared.file, prepared.options
        self.config = prepared.config()
        self.longest = max(part.longest() for part in data if part is not None)
        self.usual = max(longest_pass(self.options, part) for part in data if part is not None)
        where = places(self.config, prepared.options.targets, prepared.options.num_layers)
        self.ranks = {where[name]: rank for name, rank in pair_ranks(self.config, prepared.options, start).items()}
        self.limit, self.dora = None, self.options.dora
        if self.options.init_weights == "pissa":  # what each pair began with is kept beside it
            self.ranks = {place: 2 * rank for place, rank in self.ranks.items()}

    def loading(self):
        """Return the bytes that loading the model will add, and those of them that come after the weights."""
        packed, embedding = weights_bytes(self.file, self.config)
        # read without a mapping, the file shrinks as the packed weights grow
        return max(packed + embedding, 0 if self.job.loading.mmap else self.file.size), embedding

    def needs(self, longest, more=0):
        """Yield (case, bytes at its peak) of each way to run, with samples of up to `longest` tokens.

        more: bytes that are still to be loaded.
        """
        loading = self.job.loading
        for case in cases(self.options, self.usual if longest == self.longest else longest, longest):
            parts = training_bytes(self.config, self.ranks, case, loading.threads, loading.activations, self.dora)
            yield case, max(peak_rss_bytes(), rss_bytes() + more + sum(parts.values()))

    def settle(self, more=0):
        """Return (case, bytes at its peak) that fits; LlamacyError, with what would, when none does."""
        free = available_bytes()
        self.limit = self.job.max_ram or (None if free is None else rss_bytes() + free)
        chosen = choose(self.needs(self.longest, more), self.limit)
        if chosen is None:
            need = min(need for _, need in self.needs(self.longest, more))
            whose = "--max-ram" if self.job.max_ram else "free memory"
            raise LlamacyError(
                f"{whose} {shown(self.limit)}: the run needs {shown(need)} for samples of {self.longest} tokens; "
                f"wanted --max-ram {shown(need)}{self.advice(more)}"
            )
        return chosen

    def advice(self, more):
        """Return what else would fit."""
        if self.options.checkpointing is False:
            return ", or --use-checkpointing"
        for n_ctx in (self.longest // 2, self.longest // 4, self.longest // 8):
            if n_ctx >= 16 and choose(self.needs(n_ctx, more), self.limit):
                return f", or --ctx-size {n_ctx}"
        return ", or a smaller model"

    def disk(self):
        """Return (bytes of the adapter's file, bytes of a checkpoint)."""
        return disk_bytes(self.ranks, self.dora)

    def n_trained(self):
        """Return how many numbers are trained: half of those that PiSSA saves."""
        pairs = disk_bytes(self.ranks)[0]
        magnitudes = self.disk()[0] - pairs
        return (pairs // (2 if self.options.init_weights == "pissa" else 1) + magnitudes) // 4

    def tell_room(self, outputs, say):
        """Warn before hours are spent where what the run will save does not fit on the disk."""
        adapter, checkpoint = self.disk()
        needed = adapter + (checkpoint if outputs.checkpoint else 0)
        free = shutil.disk_usage(os.path.dirname(os.path.realpath(outputs.adapter))).free
        if free < needed:
            say(f"warning: {outputs.adapter}: {shown(free)} are free there, the run will save {shown(needed)}")

    def in_words(self):
        """Return what the pairs' ranks come to."""
        low, high = min(self.ranks.values()), max(self.ranks.values())
        return f"rank {low}" if low == high else f"ranks {low} to {high}"


def folder_of(outputs):
    """Where temporary files go: the adapter's folder, None when it is not there."""
    folder = os.path.dirname(outputs.adapter) or "."
    return folder if os.path.isdir(folder) else None
