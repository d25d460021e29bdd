"""From a request to its text: the prompts go to the engine, pieces of text come back, or whole answers.

The collector's callbacks run in the engine's thread; the handler waits on a queue and watches its client meanwhile.
"""

from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

from llamacy.errors import LlamacyError, RequestError
from llamacy.formats.mapped import FileChanged
from llamacy.generate.constraint import Constraint
from llamacy.generate.engine import Closed, PromptTooLong, QueueFull
from llamacy.generate.request import Request
from llamacy.generate.sampler import token_probs
from llamacy.generate.text_limits import TextLimits
from llamacy.generate.text_stream import TextStream, with_bos
from llamacy.server.errors import ClientGone, HttpError, too_long
from llamacy.server.gates import check_makes_text

# How often a waiting handler looks whether its client is still there.
WATCH_SECONDS = 0.1


@dataclass
class Piece:
    """Some new text of prompt `index`, with the tokens it is made of."""

    index: int
    text: str
    tokens: list
    options: object
    timings: object = None  # so far, where timings_per_token asks for them
    prompt_probs: list | None = None  # of each of the prompt's tokens, where they were asked for; see token_probs


@dataclass
class Progress:
    """How far the reading of prompt `index` is: tokens in all, in the cache before, in it now; time in milliseconds."""

    index: int
    total: int
    cache: int
    processed: int
    time_ms: float

    def report(self):
        """Return llama.cpp's `prompt_progress`."""
        return {key: getattr(self, key) for key in ("total", "cache", "processed", "time_ms")}


@dataclass
class Answer:
    """The end of prompt `index`: all its text and tokens, and how it ended."""

    index: int
    prompt: list
    options: object
    text: str
    tokens: list
    result: object
    stopping_word: str | None
    prompt_probs: list | None = None
    all_tokens: list = ()  # those of a stop string too, which are not in `tokens`


@dataclass
class Collector:
    """Turns one prompt's tokens into Pieces (when streaming) and an Answer, put into `queue`."""

    index: int
    prompt: list
    options: object
    stream: TextStream
    limits: TextLimits
    queue: SimpleQueue
    streaming: bool
    request: object = None
    text: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    sent: int = 0  # tokens that went out with pieces
    prompt_probs: list | None = None

    def on_prompt_logits(self, rows):
        """Note the log-probabilities of the prompt's tokens, None for the first: nothing says it."""
        self.prompt_probs = self.prompt_probs or [None]
        at = len(self.prompt_probs)
        for row, token in zip(rows, self.prompt[at : at + len(rows)], strict=False):
            self.prompt_probs.append(token_probs(row, token, self.options.n_probs))

    def on_token(self, token):
        text, stop = self.stream.feed(token)
        self.tokens.append(token)
        text = self.limits.feed(text)
        if text:
            self._put(text)
        return "limit" if self.limits.is_over else stop

    def on_prompt(self, processed, ms):
        cache = self.request.timings.cache_n
        self.queue.put(Progress(self.index, len(self.prompt), cache, processed, ms))

    def on_end(self, result):
        rest = self.limits.feed(self.stream.flush())
        shown = self._shown()
        if rest or self.sent < shown:
            self._put(rest)
        whole, word = "".join(self.text), self.stream.stopping_word
        probs, tokens = self.prompt_probs, self.tokens[:shown]
        self.queue.put(Answer(self.index, self.prompt, self.options, whole, tokens, result, word, probs, self.tokens))

    def _put(self, text):
        self.text.append(text)
        if self.streaming:
            timings, shown = replace(self.request.timings) if self.options.timings_per_token else None, self._shown()
            tokens = self.tokens[self.sent : shown]
            self.queue.put(Piece(self.index, text, tokens, self.options, timings, self.prompt_probs))
            self.sent = max(self.sent, shown)

    def _shown(self):
        """Return how many of the tokens the text so far is made of: none of a stop string, found or perhaps begun."""
        left, n = self.stream.held_bytes, len(self.tokens)
        while left > 0 and n:
            left -= len(self.stream.bytes_of(self.tokens[n - 1]))
            n -= left >= 0
        return n


class Submission:
    """Requests in the engine that one client waits for; what their callbacks put into `queue` comes out of next()."""

    def __init__(self, app, call):
        self._engine, self._call, self.queue, self._requests = app.engine, call, SimpleQueue(), []

    def submit(self, requests):
        """Hand the requests to the engine; HttpError when it does not take them all."""
        self._requests = requests
        try:
            self._engine.submit_all(requests)
        except LlamacyError as error:
            self.cancel()
            raise http_error(error) from None

    def cancel(self):
        """Give back what is still queued or running."""
        for request in self._requests:
            if request.result is None:
                self._engine.cancel(request)

    def next(self):
        """Wait for what is next in the queue; ClientGone when nobody waits for it any more."""
        while True:
            try:
                return self.queue.get(timeout=WATCH_SECONDS)
            except Empty:
                if not self._call.is_connected():
                    raise ClientGone from None


class Job(Submission):
    """One HTTP request's prompts in the engine. Submitted when made: HttpError when the engine does not take them."""

    def __init__(self, app, call, prompts, all_options, echo_probs=False):
        """`prompts` (token ids) and `all_options` (Options) go in pairs; the pair's place is its index.

        echo_probs: the log-probabilities of the prompts' own tokens are wanted too.
        """
        super().__init__(app, call)
        check_makes_text(app)
        requests = []
        for index, (prompt, options) in enumerate(zip(prompts, all_options, strict=True)):
            decoder = app.model.tokenizer.stream(app.special, options.visible)
            stream = TextStream(decoder, options.stop, app.special)
            limits = TextLimits(options.n_indent, max(0, options.t_max_predict_ms) / 1000)
            collector = Collector(index, prompt, options, stream, limits, self.queue, options.stream)
            collector.request = Request(
                prompt,
                options.params,
                n_predict=options.n_predict,
                n_keep=with_bos(options.n_keep, app.model.tokenizer),
                n_discard=options.n_discard,
                prompt_seconds=max(0, options.t_max_prompt_ms) / 1000,
                id_slot=options.id_slot,
                cache_prompt=options.cache_prompt,
                lora=options.lora,
                constraint=options.automaton and Constraint(options.automaton, app.token_table()),
                on_token=collector.on_token,
                on_end=collector.on_end,
                on_prompt=collector.on_prompt if options.stream and options.return_progress else None,
                on_prompt_logits=collector.on_prompt_logits if echo_probs else None,
            )
            requests.append(collector.request)
        self.submit(requests)

    def events(self):
        """Yield Pieces and, last for each prompt, its Answer; cancel the rest when the client or the caller goes."""
        open_answers = len(self._requests)
        try:
            while open_answers:
                event = self.next()
                if isinstance(event, Answer):
                    open_answers -= 1
                    if event.result.error:
                        raise http_error(event.result.error)
                yield event
        finally:
            self.cancel()

    def answers(self):
        """Wait for all prompts; return their Answers in order."""
        return sorted((event for event in self.events() if isinstance(event, Answer)), key=lambda answer: answer.index)


# What a LlamacyError means over HTTP, the first that fits: (kind, status, headers, is_logged). What is neither the
# request's doing nor temporary is the server's own failure.
STATUSES = (
    (QueueFull, 429, {"Retry-After": "1"}, False),
    (Closed, 503, {}, False),
    (FileChanged, 503, {}, True),
    (RequestError, 400, {}, False),
    (LlamacyError, 500, {}, True),
)


def http_error(error):
    """Return what a client is told of an exception: an HttpError; one that nobody expected as it is."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, PromptTooLong):
        wanted = f"prompt: wanted fewer than {error.n_ctx} tokens (the context size), got {error.n_prompt}"
        return too_long(wanted, error.n_prompt, error.n_ctx)
    for kind, status, headers, is_logged in STATUSES:
        if isinstance(error, kind):
            return HttpError(status, str(error), headers, is_logged)
    return error
