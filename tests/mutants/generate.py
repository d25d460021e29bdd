"""Mistakes of generating: caches, samplers, grammars."""

from tests.mutants.table import table

GENERATE = table(
    "llamacy/generate",
    (
        "a cache reused under other adapter scales",
        "slot.py",
        "if not request.cache_prompt or request.reads_whole_prompt or lora != self.lora:",
        "if not request.cache_prompt or request.reads_whole_prompt:",
        "generate/test_engine.py::test_other_adapter_scales_do_not_share_a_cache",
    ),
    (
        "a cache reused although the request says no",
        "slot.py",
        "if not request.cache_prompt or request.reads_whole_prompt or lora != self.lora:",
        "if request.reads_whole_prompt or lora != self.lora:",
        "generate/test_engine.py::test_the_longest_common_prefix_is_reused",
    ),
    (
        "a cache reused under another prompt",
        "slot.py",
        "while same < most and self.cached[same] == request.prompt[same]:",
        "while same < most:",
        "generate/test_engine.py::test_the_longest_common_prefix_is_reused",
    ),
    (
        "a prefix reused that layers with a window no longer hold",
        "slot.py",
        "return self._session.reusable(self.id, same)",
        "return same",
        "model/test_ring.py::test_an_engine_that_reuses_prefixes_as_far_as_they_are_held",
    ),
    (
        "one token past the context",
        "slot.py",
        "if len(self.cached) < self.n_ctx:",
        "if len(self.cached) <= self.n_ctx:",
        "generate/test_engine.py::test_a_full_context_stops_with_limit_and_truncated",
    ),
    (
        "an id one past the vocabulary",
        "engine.py",
        "if low < 0 or high >= self.n_vocab:",
        "if low < 0 or high > self.n_vocab:",
        "generate/test_engine.py::test_prompts_that_cannot_be_run",
    ),
    (
        "a request with norm adapters computed under its neighbour's scales",
        "scales.py",
        "return [slot for slot in slots if slot.lora == first.lora]",
        "return slots",
        "generate/test_engine.py::test_any_traffic_gives_the_text_of_each_alone",
    ),
    (
        "the beginning of a stop string is shown",
        "text_stream.py",
        "for at in range(max(0, len(self._held) - longest + 1), len(self._held)):",
        "for at in range(max(0, len(self._held) - longest + 2), len(self._held)):",
        "generate/test_text_stream.py::test_no_part_of_a_stop_is_shown_and_nothing_else_is_held",
    ),
)
