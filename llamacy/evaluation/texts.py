"""A text's perplexity, and how far a model is from a reference run: window after window, nothing of it kept."""

import contextlib

from llamacy.errors import LlamacyError
from llamacy.evaluation import logits_file, reference
from llamacy.evaluation.divergence import Divergence
from llamacy.generate.perplexity import Score, bos_of, cross_entropy, scored_rows

# The reference runs that can be read, by how their files begin.
KINDS = {reference.MAGIC: reference.Reference, logits_file.MAGIC: logits_file.LogitsFile}


@contextlib.contextmanager
def open_reference(path):
    """Give the Reference or LogitsFile at `path`; LlamacyError where it is neither, or damaged."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            magic = file.read(8)
        except OSError as error:
            raise LlamacyError(f"{path}: cannot read: {error.strerror}") from None
        yield KINDS.get(magic, reference.Reference)(file, path)


def check_tokens(base, tokens, n_ctx, path):
    """Raise LlamacyError where a reference is of another text, or other windows, than `tokens` of the file `path`."""
    if n_ctx != base.n_ctx:
        raise LlamacyError(f"{base.path}: made of windows of {base.n_ctx} tokens, wanted {n_ctx}: use -c {base.n_ctx}")
    whole = tokens[: len(tokens) // n_ctx * n_ctx]
    if len(whole) < len(base.tokens) or list(base.tokens) != list(whole[: len(base.tokens)]):
        raise LlamacyError(f"{base.path}: made of another text than {path}; leave -f away to take the reference's")


def run_windows(model, tokens, n_ctx, *, writer=None, base=None, progress=None):
    """Return (Score, Divergence from `base`, None without) of `tokens` (ids) in windows of n_ctx.

    writer: gets all rows (see reference.Writer). progress(i, score, divergence) is called after each window.
    """
    if base is not None:
        base.check_model(model)
        base.rewind()
    bos, n_vocab = bos_of(model.tokenizer), model.config.n_vocab
    session, score = model.new_session(1, n_ctx), Score()
    divergence = None if base is None else Divergence()
    for i in range(len(tokens) // n_ctx):
        window = [int(token) for token in tokens[i * n_ctx : (i + 1) * n_ctx]]
        for logits, targets in scored_rows(session, window, bos, n_vocab):
            if writer is not None:
                writer.add(logits, targets)
            if base is not None:
                divergence.add(base.compare(logits, targets))
            score.add(cross_entropy(logits, targets))  # last: it overwrites the logits
        if progress:
            progress(i + 1, score, divergence)
    return score, divergence
