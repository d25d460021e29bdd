"""Mistakes of the server."""

from tests.mutants.table import table

SERVER = table(
    "llamacy/server",
    (
        "one right key's beginning opens the door",
        "app.py",
        "hmac.compare_digest(given, key.encode()) for key in self.api_keys",
        "key.encode().startswith(given) for key in self.api_keys",
        "server/test_http.py::test_api_keys",
    ),
    (
        "every path is public",
        "app.py",
        "if not self.api_keys or call.path in PUBLIC:",
        "if not self.api_keys or True:",
        "server/test_http.py::test_api_keys",
    ),
    (
        "a body of any size",
        "http.py",
        "if length > self.server.max_body:",
        "if False:",
        "server/test_http.py::test_a_body_over_the_limit_is_answered_while_it_is_sent",
    ),
)
