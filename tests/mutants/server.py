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
    (
        "a page of any name may ask a server of this machine",
        "guard.py",
        "if not (is_own_name(name) or name in self.hosts):",
        "if False:",
        "server/test_guard.py::test_hosts",
    ),
    (
        "a page of another origin changes the server without a key",
        "guard.py",
        "if head.path.startswith(CHANGING):",
        "if False:",
        "server/test_guard.py::test_only_own_pages_and_keys_change_the_server",
    ),
    (
        "bodies' memory is never given back",
        "bodies.py",
        "self._memory.give(self._counted)",
        "self._memory.give(0)",
        "server/test_guard.py::test_the_memory_of_all_bodies_is_bounded",
    ),
    (
        "an adapter keeps the scale of the one that was there before",
        "adapters.py",
        "self._engine.move_scale(old, one.index)",
        "pass",
        "server/test_adapters.py::test_a_file_written_anew_is_swapped",
    ),
    (
        "the log-probabilities of a prompt begin one token late",
        "jobs.py",
        "for row, token in zip(rows, self.prompt[at : at + len(rows)], strict=False):",
        "for row, token in zip(rows, self.prompt[at + 1 : at + 1 + len(rows)], strict=False):",
        "server/test_chats.py::test_prompts_with_their_log_probabilities",
    ),
    (
        "tokens of a stop string have log-probabilities",
        "jobs.py",
        "probs, tokens = self.prompt_probs, self.tokens[:shown]",
        "probs, tokens = self.prompt_probs, self.tokens",
        "server/test_chats.py::test_logprobs_are_without_the_stop_string",
    ),
    (
        "a list of embeddings is written in one call",
        "answers.py",
        'return "".join(_pieces(self.data)).encode()',
        "return dump(self.data)",
        "server/test_answers.py::test_no_call_writes_or_reads_much",
    ),
)
