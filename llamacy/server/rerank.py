"""Which documents answer a query: /rerank and its other names, for models that rank.

A model ranks where its file says so (pooling type 4) and has the matrix for it; others are told apart by name.
"""

from llamacy.server.errors import HttpError

RANK = 4


def rerank(app, call):
    call.json()
    kind = app.model.metadata.get(f"{app.model.config.architecture}.pooling_type")
    what = "its file says no pooling type" if kind is None else f"its pooling type is {kind}, wanted {RANK}"
    if kind == RANK:
        what = "models with a head for ranking are not built"
    raise HttpError(501, f"this model cannot rank texts: {what}; /v1/embeddings gives vectors to compare")


ROUTES = {("POST", path): rerank for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")}
