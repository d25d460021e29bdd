"""A model to talk to: `load` opens it, and everything that it can do with a text is a method of it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np

from llamacy.errors import LlamacyError, RequestError
from llamacy.generate import perplexity as windows
from llamacy.generate.context import fit_context
from llamacy.generate.engine import Engine
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.generate.text_stream import prompt_ids
from llamacy.library.adapters import Adapters
from llamacy.library.chatting import ChatRules, Question
from llamacy.library.generating import Generation, automaton_of, constraint_of
from llamacy.library.results import Completion, Perplexity, Score
from llamacy.model.loading import Loading
from llamacy.system import fit_threads

MAX_TOKENS = 256


Path = str | os.PathLike
Text = str | Sequence[int]


def load(
    model: Path | None = None,
    *,
    adapters: Iterable[Path | tuple[Path, float]] = (),
    threads: int | None = None,
    context: int | None = None,
    activations: Literal["int8", "int16", "f32"] = "int8",
    parallel: int = 1,
    chat_template: str | None = None,
    metadata: dict[str, Any] | None = None,
    cache_types: tuple[str | None, str | None] = (None, None),
    mmap: bool = True,
    context_shift: bool = False,
    draft_lookup: int = 0,
) -> Model:
    """Open a model for generating; return a Model.

    model          path of a GGUF or GGML file; None: the default model
    adapters       paths, or (path, scale), applied in their order
    threads        to compute with; None: the physical cores
    context        tokens of the cache of one sequence; None: 4096, at most the model's; 0: the model's own
    activations    how inputs enter products: "int8" fast, "int16" near to exact, "f32" exact
    parallel       how many texts are generated side by side, where threads of the caller ask for several
    chat_template  a built-in format's name, a file, or Jinja source; None: the model's own
    metadata       other values for keys of the file
    cache_types    how keys and values are kept: "s16", "f16", "q8_0", "f32"
    mmap           map the file; False: read it whole
    context_shift  drop the older half of a full context and go on
    draft_lookup   guess up to so many tokens ahead from equal text before; the text stays the same
    LlamacyError, one line, for whatever cannot be used.
    """
    from llamacy.default_model import default_model

    loading = Loading(activations, fit_threads(threads), mmap, overrides=dict(metadata or {}), cache_types=cache_types)
    path = default_model() if model is None else str(model)
    opened = Model(path, loading, context, parallel, chat_template, context_shift, draft_lookup)
    for each in adapters:
        opened.adapters.add(*(each if isinstance(each, tuple) else (each,)))
    return opened


class Model:
    """An open model; made by `load`, closed by `close` or a `with`.

    name, path   of the file                metadata  dict of its keys
    context      tokens of a sequence       n_vocab, n_embd, n_layer  sizes
    adapters     what is applied on top: see Adapters
    Any thread may ask; texts of several threads share the steps where `parallel` leaves room, else wait.
    """

    def __init__(self, path, loading, context, parallel, chat_template, context_shift, draft_lookup):
        self.loading = loading
        self._model = loading.load(path)
        self.path, self.name, self.metadata = self._model.path, self._model.name, self._model.metadata
        self.tokenizer = self._model.tokenizer
        config = self._model.config
        self.n_vocab, self.n_embd, self.n_layer = config.n_vocab, config.n_embd, config.n_layer
        self.context = fit_context(context, config)
        self._rules = ChatRules(self._model, chat_template)
        self._how = {"n_slots": parallel, "context_shift": context_shift, "draft_lookup": draft_lookup}
        self._engine, self._tables, self._lock, self._lent = None, {}, threading.RLock(), False
        self.adapters = Adapters(self)

    # ---- texts ----

    @overload
    def generate(self, prompt: Text, *, stream: Literal[False] = False, **how: Any) -> Completion: ...
    @overload
    def generate(self, prompt: Text, *, stream: Literal[True], **how: Any) -> Generation: ...
    def generate(
        self,
        prompt: Text | Question,
        *,
        max_tokens: int | None = MAX_TOKENS,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Iterable[str] = (),
        logprobs: int = 0,
        grammar: str | None = None,
        schema: dict | bool | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> Completion | Generation:
        """Continue a prompt, str or token ids; return a Completion, or with stream=True a Generation of its pieces.

        max_tokens  None: until the model ends it, or the context is full
        seed        None: another text each time        stop  a string or several that end the text
        logprobs    how many likely tokens to report with each, 0 for none
        grammar     GBNF, schema a JSON schema (dict): what the text must follow
        sampling    any other field of SamplingParams, such as presence_penalty or mirostat
        RequestError, a LlamacyError, where the prompt does not fit or a value is out of range.
        """
        question = prompt if isinstance(prompt, Question) else None
        automaton = automaton_of(self._rules.grammars, grammar, schema)
        if question:
            ids, automaton = question.ids(self.tokenizer), question.constrained(automaton)
        else:
            ids = self._ids(prompt)
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=-1 if seed is None else seed,
            n_probs=logprobs,
            **sampling,
        )
        constraint = constraint_of(self.tokenizer, self.n_vocab, automaton, self._tables)
        stops = [stop] if isinstance(stop, str) else list(stop)
        n_predict = -1 if max_tokens is None else max_tokens
        generation = Generation(self, ids, stops, question, params=params, n_predict=n_predict, constraint=constraint)
        return generation if stream else generation.complete()

    def chat(
        self,
        messages: str | Sequence[dict],
        *,
        tools: Sequence[dict] | None = None,
        tool_choice: str | dict | None = None,
        parallel_tool_calls: bool | None = None,
        template_values: dict[str, Any] | None = None,
        **how: Any,
    ) -> Completion | Generation:
        """Answer a conversation; return as generate does, and take what it takes.

        messages             [{"role", "content"}, ...], or one question as str; roles and calls as OpenAI has them
        tools                functions in OpenAI's form, written out by the model's template; calls of them are in the
                             Completion's `tool_calls`, its thoughts in `reasoning`
        tool_choice          "auto", "none", "required", or {"function": {"name": ...}}: which must be called
        parallel_tool_calls  whether several calls may come at once
        template_values      more names for the template, such as {"enable_thinking": False}
        """
        tools = {"tools": tools, "tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        return self.generate(self._rules.read(messages, template_values, **tools), **how)

    def chat_prompt(
        self,
        messages: str | Sequence[dict],
        *,
        tools: Sequence[dict] | None = None,
        template_values: dict[str, Any] | None = None,
    ) -> str:
        """Return the text that `chat` asks the model to continue."""
        return self._rules.read(messages, template_values, tools=tools).text

    # ---- numbers ----

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the ids of a text; add_special: with what the model wants around it, such as a BOS; parse_special:
        control tokens written out in it become those tokens."""
        return self.tokenizer.encode(text, add_special, parse_special)

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Return the text of ids; special: control tokens by name instead of nothing."""
        return self.tokenizer.decode(ids, special)

    def logits(self, text: Text) -> np.ndarray:
        """Return logits f32 (n, n_vocab) behind each token of a text or of ids."""
        return self._rows(self._ids(text))

    def hidden_states(self, text: Text) -> np.ndarray:
        """Return what logits are made of, f32 (n, n_embd): the last norm's output at each token of a text or of ids."""
        return self._rows(self._ids(text), hidden=True)

    def score(self, text: Text) -> Score:
        """Return the Score of a text or of ids: how likely each token was, given those before it."""
        ids = self._ids(text)
        if len(ids) < 2:
            raise RequestError(f"score: wanted at least 2 tokens, got {len(ids)}")
        nll = [
            windows.cross_entropy(rows, ids[start + 1 : start + 1 + len(rows)])
            for start, rows in self._parts(ids[:-1], False)
        ]
        return Score(list(ids), -np.concatenate(nll))

    def perplexity(self, text: str, *, window: int = 512) -> Perplexity:
        """Return the Perplexity of a long text in windows, whose second halves are scored (llama.cpp's protocol)."""
        ids = self.tokenizer.encode(text, parse_special=False)
        if len(ids) < window:
            raise RequestError(f"perplexity: {len(ids)} tokens, wanted at least one window of {window}")
        with self.idle() as model:
            found = windows.measure(model, ids, window)
        return Perplexity(found.perplexity, found.error, found.n_tokens)

    def embed(self, texts: str | Sequence[str], *, pooling: str | None = None, normalize: bool = True) -> np.ndarray:
        """Return f32 (n, n_embd), a vector for each text, or (n_embd,) for one str.

        pooling: "mean", "last" or "cls", None for what the file says. normalize: to length 1.
        """
        from llamacy.server.embeddings import POOLINGS, normalised, pooling_of

        name = pooling or pooling_of(self._model)
        pool = POOLINGS.get(name)
        if pool is None:
            raise RequestError(f"pooling: wanted one of mean, last, cls, got {name!r:.40}")
        one = isinstance(texts, str)
        rows = [pool(self._hidden(prompt_ids(self.tokenizer, text))) for text in ([texts] if one else texts)]
        vectors = np.array([normalised(row, 2 if normalize else -1) for row in rows], np.float32)
        return vectors[0] if one else vectors.reshape(len(rows), self.n_embd)

    def _hidden(self, ids):
        """Return hidden states f32 (n, n_embd), read through the engine's cache."""
        parts = []
        request = Request(list(ids), on_hidden=lambda rows: parts.append(rows.copy()))
        self.submit(request)
        while request.result is None:
            self.advance(request)
        if request.result.error:
            raise request.result.error
        return np.concatenate(parts)

    def _rows(self, ids, hidden=False):
        return np.concatenate([rows for _, rows in self._parts(ids, hidden)])

    def _parts(self, ids, hidden):
        """Yield (first token's index, logits or hidden states of some tokens) of a sequence in a cache of its own."""
        if not 1 <= len(ids) <= self.context:
            raise RequestError(f"wanted 1 to {self.context} tokens (the context), got {len(ids)}")
        with self.idle() as model:
            session = model.new_session(1, len(ids))
            most = max(1, min(session.max_batch, windows.MAX_LOGITS // self.n_vocab))
            for start in range(0, len(ids), most):
                some = ids[start : start + most]
                at = range(start, start + len(some))
                yield start, session.step(some, at, [0] * len(some), range(len(some)), hidden=hidden)

    def _ids(self, text):
        return prompt_ids(self.tokenizer, text) if isinstance(text, str) else [int(token) for token in text]

    # ---- the engine ----

    def _check_own(self):
        if self._model is None:
            raise LlamacyError("the model is closed; load it again")
        if self._lent:
            raise LlamacyError("the model is being served; close the Serving first, or load it once more")

    @contextlib.contextmanager
    def lent(self):
        """The inner model for an engine of somebody else's; meanwhile every method here is a LlamacyError."""
        with self.idle() as model:
            self._engine, self._lent = None, True
        try:
            yield model
        finally:
            self._lent = False

    @contextlib.contextmanager
    def idle(self) -> Iterator[Any]:
        """The inner model, while nothing computes: for changes of adapters and for sessions of one's own."""
        with self._lock:
            self._check_own()
            if self._engine is not None and (self._engine.busy or self._engine.queued):
                raise LlamacyError("a text is being generated; end it first, or wait for it")
            if self._model.adapters:
                # The engine gives each request its own scales, and the model's adapters 1: that ends here.
                self._engine = None
                for i, scale in enumerate(self.adapters.scales):
                    self._model.set_adapter_scale(i, scale)
            n_adapters = len(self._model.adapters)
            yield self._model
            if len(self._model.adapters) != n_adapters:
                self._engine = None

    def submit(self, request):
        """Queue a request of the engine's."""
        with self._lock:
            self._check_own()
            if self._engine is None:
                self._engine = Engine(self._model, n_ctx=self.context, **self._how)
            self._engine.submit(request)

    def advance(self, request):
        """Compute a step for all texts at work, unless the request has ended meanwhile."""
        with self._lock:
            if request.result is None:
                self._engine.step()

    def cancel(self, request):
        """End a request, and give its slot back."""
        with self._lock:
            if self._engine is not None and request.result is None:
                self._engine.cancel(request)
                self._engine.step()

    def close(self) -> None:
        """Free the memory: weights, cache, adapters. Any later call is a LlamacyError."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            if self._model is not None:
                self._model.file.close()
            self._engine = self._model = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"Model({self.path!r}, context={self.context}, {self.adapters!r})"
