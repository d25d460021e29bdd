"""What a client is told when something is wrong: an HTTP status and `{"error": {"code", "message", "type"}}`."""

from llamacy.errors import LlamacyError

# Names as llama.cpp's server has them.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "method_not_allowed_error",
    408: "timeout_error",
    413: "payload_too_large_error",
    414: "invalid_request_error",
    415: "unsupported_media_type_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    505: "not_supported_error",
}


class HttpError(LlamacyError):
    """An answer other than 200; `headers` are added to it. `is_logged`: the operator is to know of it too.

    `kind` and `more`: another `type` than the status has, and more members of the error object. `name`: what OpenAI
    calls it, the `code` for its clients.
    """

    def __init__(self, status, message, headers=(), is_logged=False, *, kind=None, name=None, **more):
        super().__init__(message)
        self.status, self.headers, self.is_logged = status, dict(headers), is_logged
        self.kind, self.name, self.more = kind, name, more
        self.shape = None  # (error object) -> the body, for the clients of other APIs

    def body(self):
        """Return the body: {"error": ...}, or what the API that was asked makes of it."""
        found = error_object(self.status, str(self))
        found["error"] |= {"type": self.kind or found["error"]["type"], **self.more}
        return self.shape(self, found) if self.shape else found


def too_long(message, n_prompt, n_ctx):
    """Return the error for a prompt that does not fit, as llama.cpp and OpenAI say it: clients compact or fall back."""
    what = f"{message}; this model's maximum context length is {n_ctx} tokens: shorten it or raise --ctx-size"
    more = {"n_prompt_tokens": n_prompt, "n_ctx": n_ctx}
    return HttpError(400, what, kind="exceed_context_size_error", name="context_length_exceeded", **more)


class ClientGone(Exception):
    """The client hung up: nobody to answer."""


def error_object(status, message):
    return {"error": {"code": status, "message": message, "type": TYPES.get(status, "server_error")}}
