"""How long a context to set up where nobody says, or says 0."""

DEFAULT_CTX = 4096


def fit_context(wanted, trained):
    """Return the context in tokens that `wanted` means for a model that was trained on `trained` of them.

    None: DEFAULT_CTX, at most the model's; 0: the model's own; any other number is taken as it is.
    """
    return min(DEFAULT_CTX, trained) if wanted is None else wanted or trained
