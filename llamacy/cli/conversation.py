"""`main`'s chat: messages from stdin, answers to stdout, the whole conversation sent along each time.

Only what is new is computed: the engine keeps the conversation's beginning in its cache.
"""

import sys

from llamacy.cli.run import say
from llamacy.cli.talk_commands import HELP, Leave, run_command
from llamacy.cli.template_flags import template_override, template_values, warn_of_unused
from llamacy.errors import LlamacyError
from llamacy.generate.chat_prompt import chat_ids, chat_text
from llamacy.text.answer_reader import AnswerReader
from llamacy.text.chat import template_for
from llamacy.text.tool_formats import thoughts_of

# What the instruction format writes before the next question: a model that goes on asking itself is stopped there.
INSTRUCT_STOP = "### Instruction:"


def template_of(args, model):
    """Return (template, stop strings): `--chat-template`, for `--instruct` what the adapter was trained with, or the
    model's own.

    finetune writes into an adapter how its prompts looked; adapters from elsewhere are taken to be instructions.
    """
    override = template_override(args)
    if args.instruct and not override:
        shapes = {str(adapter.metadata.get("llamacy.prompt_template", "instruct")) for adapter, _ in model.adapters}
        if shapes != {"chat"}:
            return "instruct", [INSTRUCT_STOP]
    return template_for(model.metadata, override), []


def first_messages(args):
    """Return the messages that a conversation begins with: the system's, where there is one."""
    return [{"role": "system", "content": args.system}] if args.system else []


class Conversation:
    """The messages so far. `answer(ids) -> text` generates after a prompt and shows it."""

    def __init__(self, args, model, engine, answer):
        self.template, self.stops = template_of(args, model)
        self._values = template_values(args)
        warn_of_unused(self.template, self._values)
        self.tokenizer, self.n_ctx, self._answer, self.engine = model.tokenizer, engine.n_ctx, answer, engine
        self._thoughts = None if args.reasoning_format == "none" else thoughts_of(self.template)
        self._first = first_messages(args)
        self.messages = list(self._first)

    def clear(self):
        """Forget all but the system message."""
        self.messages = list(self._first)

    def set_system(self, text):
        """Put another system message at the beginning, or none."""
        rest = self.messages[1:] if self.messages and self.messages[0]["role"] == "system" else self.messages
        self._first = [{"role": "system", "content": text}] if text else []
        self.messages = self._first + rest

    def say(self, text):
        """Add a message, show the answer and keep it; LlamacyError when the message is too long for the context."""
        self.messages.append({"role": "user", "content": text})
        try:
            reply = self._answer(self._fitting_ids())
        except (LlamacyError, KeyboardInterrupt):
            self.messages.pop()
            raise
        self.messages.append(self._said(reply))

    def _said(self, reply):
        """Return an answer as a message: thoughts apart, which the template may leave out of the next prompt."""
        message = {"role": "assistant", "content": reply}
        if self._thoughts is None:
            return message
        reader = AnswerReader(self._thoughts, self._begins_inside())
        parts = [*reader.feed(reply), *reader.flush()]
        thought, text = ("".join(part.text for part in parts if part.kind == kind) for kind in ("thought", "text"))
        return message | {"content": text, "reasoning_content": thought} if thought else message

    def _begins_inside(self):
        """Whether the prompt of the last answer had opened thoughts already."""
        text = chat_text(self.messages, self.template, self.tokenizer, **self._values)
        return text.rstrip().endswith(self._thoughts[0])

    def _ids(self):
        return chat_ids(self.messages, self.template, self.tokenizer, **self._values)

    def _fitting_ids(self):
        """Return the conversation's ids; the oldest questions and answers go, with a note, when it is too long."""
        ids, dropped = self._ids(), 0
        start = len(self._first)
        while len(ids) >= self.n_ctx and len(self.messages) > start + 2:
            del self.messages[start : start + 2]
            dropped += 1
            ids = self._ids()
        if dropped:
            print(
                f"(forgot the oldest {dropped} of the questions and answers: the context is {self.n_ctx} tokens)",
                file=sys.stderr,
            )
        return ids


def lines(invitation="> "):
    """Yield what the user types, line by line, to the end of stdin; on a terminal with an invitation and editing."""
    if sys.stdin is None:
        return
    if sys.stdin.isatty() and sys.stdout.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() editing and history
        while True:
            try:
                yield input(invitation)
            except EOFError:
                return
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def joined(typed, multiline=False):
    """Join lines that end in a backslash with the next; multiline: all lines up to one that ends in a backslash."""
    parts = []
    for line in typed:
        marked = line.endswith("\\")
        parts.append(line[:-1] if marked else line)
        if marked == multiline:
            yield "\n".join(parts)
            parts = []
    if parts:  # the end of stdin ends a message too
        yield "\n".join(parts)


def messages_of(typed, multiline=False):
    """Yield the messages of typed lines, without empty ones."""
    return filter(None, (message.strip() for message in joined(typed, multiline)))


def talk(conversation, first=None, single=False, multiline=False):
    """Answer `first` and then what is typed, until the end of stdin or /exit; single: one answer only."""
    if first:
        _say(conversation, first)
        if single:
            return
    if sys.stdin and sys.stdin.isatty():
        print(f"({HELP})", file=sys.stderr)
    for message in messages_of(lines(), multiline):
        try:
            if not _command(conversation, message):
                _say(conversation, message)
        except Leave:
            return
        if single:
            return


def _command(conversation, message):
    """Do what a message asks for, if it is a command; say whether it was one."""
    try:
        is_command, note = run_command(conversation, message)
    except LlamacyError as error:
        is_command, note = True, str(error)
    if note:
        say(f"({note})")
    return is_command


def _say(conversation, message):
    try:
        conversation.say(message)
    except LlamacyError as error:
        if not (sys.stdin and sys.stdin.isatty()):
            raise
        say(f"({error})")
