"""What a client is told when something is wrong: an HTTP status and `{"error": {"code", "message", "type"}}`."""

from llamacy.errors import LlamacyError

# Names as llama.cpp's server has them.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
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
    """An answer other than 200; `headers` are added to it. `is_logged`: the operator is to know of it too."""

    def __init__(self, status, message, headers=(), is_logged=False):
        super().__init__(message)
        self.status, self.headers, self.is_logged = status, dict(headers), is_logged

    def body(self):
        """Return the error object."""
        return error_object(self.status, str(self))


class ClientGone(Exception):
    """The client hung up: nobody to answer."""


def error_object(status, message):
    return {"error": {"code": status, "message": message, "type": TYPES.get(status, "server_error")}}
