"""What is known of a run before the model is loaded: its vocabulary, the options that fit it, and the data."""

import dataclasses
import os
import warnings
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from llamacy.errors import LlamacyError
from llamacy.formats.model_file import open_model
from llamacy.model.config import read_config
from llamacy.model.rope import SHORT
from llamacy.model.weights import check_tensors
from llamacy.text import chat
from llamacy.text.tokenizer import open_tokenizer
from llamacy.train.batches import split
from llamacy.train.choice import settled
from llamacy.train.data import Subset, open_data
from llamacy.train.lora import check_targets
from llamacy.train.preference import needs_of
from llamacy.train.samples import Encoder
from llamacy.train.template_fit import note_on

# Written by examples/notes.py.
SAMPLE_DATA = Path(__file__).resolve().parent / "notes.jsonl"


class Prepared:
    """The open model file with the options and data of a Job; `say(text)` tells people.

    Bad data is told here, before anything slow or large is done.
    """

    def __init__(self, job, say):
        self.job, self._say = job, say
        # Kept open until the end: the tokenizer and the metadata may be views on the mapped file.
        self.file = open_model(job.model)
        self.file.metadata.update(job.loading.overrides)
        self.metadata = self.file.metadata
        self.tokenizer = open_tokenizer(self.file)
        self.options = self._fitted(job.options)
        # of preferences it is always the answers that count; what else is learnt the method says
        masked = self.options.mask_prompt or self.options.method != "sft"
        self.encoder = Encoder(self.tokenizer, self.options.n_ctx, masked)

    def _fitted(self, options):
        """Return the options with a context and a number of layers that the model has."""
        architecture = self.metadata.get("general.architecture", "")
        told = self.metadata.get(f"{architecture}.context_length")
        most = told if isinstance(told, int) and told > 0 else options.n_ctx
        wanted = most if self.job.whole_context else options.n_ctx
        if "n_ctx" not in self.job.chosen:
            wanted = min(wanted, self._plain_context() or wanted)
        if wanted > most and "n_ctx" in self.job.chosen:
            self._say(f"--ctx-size {wanted} is more than the model has: {most} is used")
        layers, deep = self.metadata.get(f"{architecture}.block_count"), options.num_layers
        if deep and type(layers) is int and 0 < layers < deep:
            self._say(f"--num-layers {deep} is more than the model has: all {layers} are trained")
            deep = layers
        return dataclasses.replace(options, n_ctx=min(wanted, most), num_layers=deep)

    def _plain_context(self):
        """Return the context up to which the model turns positions as in short texts, None where nothing tells one."""
        original = self.metadata.get(
            f"{self.metadata.get('general.architecture')}.rope.scaling.original_context_length"
        )
        return original if SHORT in self.file.tensors and type(original) is int and original > 1 else None

    def config(self):
        """Return the ModelConfig; LlamacyError where the file or the flags have none that can be used."""
        return read_config(self.file, self.job.loading.rms_eps, self.job.loading.rope_theta)

    def check(self):
        """Raise LlamacyError where the model is one that cannot be trained, before time goes into the data."""
        config = self.config()
        self.options = settled(config, self.options)
        check_targets(config, self.options)
        check_tensors(self.file, config)

    def open(self, paths):
        """Return the Data in `paths`."""
        return open_data(
            paths,
            self.encoder,
            render=self.render,
            sample_start=self.job.sample_start,
            include_sample_start=self.job.include_sample_start,
            keep_empty=self.job.keep_empty,
            max_samples=self.job.max_samples,
            needs=needs_of(self.options.method),
        )

    @cached_property
    def _template(self):
        """The chat template: the one chosen, else the model's."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            template = chat.template_for(self.metadata, self.job.chat_template)
        for warning in caught:
            self._say(f"warning: {warning.message}")
        return template

    def render(self, messages, add_generation_prompt, **variables):
        """Write messages out by the chat template, to which `variables` are given besides."""
        if "developer" not in self._template:  # OpenAI's newer name for the system, which templates may not know
            messages = [{**turn, "role": chat.ROLES.get(turn["role"], turn["role"])} for turn in messages]
        bos, eos = (
            "" if token is None else self.tokenizer.token_bytes(token).decode(errors="replace")
            for token in (self.tokenizer.bos_id, self.tokenizer.eos_id)
        )
        strange = chat.OWN_NAMES & variables.keys()
        if strange:
            raise LlamacyError(f"chat_template_kwargs: {min(strange)!r} is what llamacy itself tells the template")
        return chat.render(
            messages,
            self._template,
            bos=bos,
            eos=eos,
            add_generation_prompt=add_generation_prompt,
            **self.job.template_kwargs | variables,
        )

    @contextmanager
    def masked(self):
        """While this lasts, samples say which of their tokens are answers, whatever the run learns of them."""
        before, self.encoder.mask_prompt = self.encoder.mask_prompt, True
        try:
            yield
        finally:
            self.encoder.mask_prompt = before

    def training_data(self):
        """Return the Data to train on: what the job names, else the sample data."""
        data = self.open(self.job.train_data or [sample_data()])
        # the model's own template may write what is no token, and know why
        own = self.job.chat_template is None and chat.KEY in self.metadata
        note = None if own or "_template" not in vars(self) else note_on(self.render, self.tokenizer)
        if note:
            self._say(note)
        return data

    def parts(self, data):
        """Return (samples to train on, samples to validate on or None)."""
        everything = range(len(data))
        if self.job.val_data:
            return self._weighted(data, everything), self.open(self.job.val_data)
        if not self.options.val_split:
            return self._weighted(data, everything), None
        train, held = split(len(data), self.options.val_split, self.options.seed)
        if not len(held):
            raise LlamacyError(
                f"--val-split {self.options.val_split}: wanted 2 samples or more to split, got {len(data)}"
            )
        return self._weighted(data, train), Subset(data, held)

    def _weighted(self, data, indices):
        """Return these samples of the data as often as their files' weights say, the data itself where it is all."""
        if data.is_weighted:
            return Subset(data, data.weighted(indices, self.options.seed))
        return data if len(indices) == len(data) else Subset(data, indices)


def sample_data():
    """Return the path of the sample data, LlamacyError where it is not there."""
    if not SAMPLE_DATA.is_file():
        raise LlamacyError(f"{SAMPLE_DATA}: the sample data is not there; name your own with --train-data FILE")
    return os.path.relpath(SAMPLE_DATA) if SAMPLE_DATA.is_relative_to(Path.cwd()) else SAMPLE_DATA


def template_of(data):
    """Return what shape the data gives its prompts ("instruct", "chat"), "" for none or several."""
    return data.templates[0] if len(data.templates) == 1 else ""
