"""Mistakes of the server."""

from tests.mutants.table import table

SERVER = table(
    "llamacy/server",
    (
        "one right key's beginning opens the door",
        "guard.py",
        "hmac.compare_digest(given, key.encode()) for key in self.api_keys",
        "key.encode().startswith(given) for key in self.api_keys",
        "server/test_http.py::test_api_keys",
    ),
    (
        "every path is public",
        "guard.py",
        'if not self.api_keys or head.path in PUBLIC or head.path.startswith("/web/"):',
        "if not self.api_keys or True:",
        "server/test_http.py::test_api_keys",
    ),
    (
        "a body of any size",
        "bodies.py",
        "if length > self._max:",
        "if False:",
        "server/test_http.py::test_a_body_over_the_limit_is_answered_while_it_is_sent",
    ),
)
