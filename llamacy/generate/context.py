"""How long a context to set up where nobody says, or says 0."""

DEFAULT_CTX = 4096


# Room for this much text is left before a context grows beyond what turns positions as they were first trained.
ROOM = 1024


def fit_context(wanted, config):
    """Return the context in tokens that `wanted` means for a model with this ModelConfig.

    None: DEFAULT_CTX, at most what the model was trained on before its context was stretched; 0: the model's own; any
    other number is taken as it is.
    """
    return min(DEFAULT_CTX, config.n_ctx_plain) if wanted is None else wanted or config.n_ctx_train


def open_end(n_prompt, config):
    """Return the context for a prompt of n_prompt tokens and the usual amount of text after it."""
    wanted = min(config.n_ctx_train, n_prompt + DEFAULT_CTX)
    return min(wanted, config.n_ctx_plain) if n_prompt + ROOM <= config.n_ctx_plain else wanted
