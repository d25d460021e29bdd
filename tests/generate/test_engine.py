"""The engine over a model without weights: batching, caches, limits, cancelling, failures."""

import random
import threading
import time
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.errors import LlamacyError, NotFinite
from llamacy.generate.engine import PROMPT_SHARE, Closed, Engine, PromptError, QueueFull, prompt_share
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from tests.generate.fakes import BOS, EOS, N_VOCAB, FakeModel


def ask(prompt, seed=1, n_predict=12, **more):
    """Return a Request that collects its tokens in `.tokens`."""
    sampling = {key: more.pop(key) for key in list(more) if key in SamplingParams.__dataclass_fields__}
    ids = [BOS, *prompt.encode()] if isinstance(prompt, str) else prompt
    request = Request(ids, SamplingParams(seed=seed, **sampling), n_predict=n_predict, **more)
    request.tokens = []
    inner = request.on_token

    def on_token(token):
        request.tokens.append(token)
        return inner(token)

    request.on_token = on_token
    return request


def ids(request):
    return [token.id for token in request.tokens]


def alone(*args, adapters=0, **more):
    """The tokens of a request that has a fresh engine for itself."""
    request = ask(*args, **more)
    Engine(FakeModel(adapters)).run(request)
    return ids(request)


def finish(engine, *requests):
    for request in requests:
        engine.submit(request)
    while any(request.result is None for request in requests):
        engine.step()


def test_neighbours_change_nothing():
    prompts = ["one", "two " * 40, "three" * 9, "x", "another one " * 20, "two " * 41]
    expected = [alone(p, seed=i) for i, p in enumerate(prompts)]
    for n_slots in (1, 2, 5):
        engine = Engine(FakeModel(), n_slots=n_slots, batch_size=32)
        requests = [ask(p, seed=i) for i, p in enumerate(prompts)]
        finish(engine, *requests)
        assert [ids(r) for r in requests] == expected
        assert max(engine.session.steps) <= engine.session.max_batch


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_any_traffic_gives_the_text_of_each_alone(seed, with_norms):
    rng, model = random.Random(seed), FakeModel(adapters=2, with_norms=with_norms)
    engine, running, expected = Engine(model, n_slots=3, n_ctx=96, batch_size=32), [], []
    words = ["ab", "abc ", "abc d", "zz"]
    for i in range(14):
        prompt = "".join(rng.choice(words) for _ in range(rng.randint(1, 12)))
        more = {
            "seed": i,
            "n_predict": rng.randint(0, 30),
            "cache_prompt": rng.random() < 0.8,
            "lora": rng.choice([None, (0.0, 1.0), (0.5, 0.25)]),
        }
        expected.append(partial(alone, prompt, adapters=2, **more))
        running.append(ask(prompt, **more))
        engine.submit(running[-1])
        if rng.random() < 0.2:
            engine.cancel(rng.choice(running))
        for _ in range(rng.randint(0, 12)):
            engine.step()
    while engine.busy or engine.queued:
        engine.step()
    for request, whole in zip(running, expected, strict=True):
        if request.result.stop_type == "cancel":
            assert ids(request) == whole()[: len(request.tokens)]
        else:
            assert ids(request) == whole()


def test_the_longest_common_prefix_is_reused():
    engine = Engine(FakeModel(), n_slots=2)
    first = ask("You are helpful. Question one?")
    finish(engine, first)
    assert (first.result.timings.cache_n, first.result.timings.prompt_n) == (0, 31)
    again = ask("You are helpful. Question one?")
    finish(engine, again)
    # The last token is computed again, for its logits.
    assert (again.result.timings.cache_n, again.result.timings.prompt_n) == (30, 1)
    assert again.result.id_slot == first.result.id_slot and ids(again) == ids(first)
    other = ask("You are helpful. Question two?")
    finish(engine, other)
    assert other.result.timings.cache_n == 27 and ids(other) == alone("You are helpful. Question two?")
    turn = ask(first.prompt[:27] + again.prompt[27:] + ids(first)[:5])
    finish(engine, turn)
    assert turn.result.timings.cache_n == 27
    fresh = ask("You are helpful. Question two?", cache_prompt=False)
    finish(engine, fresh)
    assert fresh.result.timings.cache_n == 0 and ids(fresh) == ids(other)


def test_an_unrelated_prompt_takes_the_slot_used_longest_ago():
    engine = Engine(FakeModel(), n_slots=3)
    for prompt, slot in [("first one", 0), ("another", 1), ("third 3", 2), ("first one more", 0), ("quite new", 1)]:
        request = ask(prompt)
        finish(engine, request)
        assert request.result.id_slot == slot


def test_a_conversation_computes_only_what_is_new():
    engine = Engine(FakeModel())
    first = ask("hello")
    finish(engine, first)
    follow = ask([*first.prompt, *ids(first), 65, 66])
    finish(engine, follow)
    # All but the last generated token is in the cache.
    assert follow.result.timings.cache_n == 6 + 12 - 1


def test_other_adapter_scales_do_not_share_a_cache():
    engine = Engine(FakeModel(adapters=1))
    texts = []
    for lora in (None, (1.0,), (0.5,), (0.0,), (0.5,)):
        request = ask("hello there", lora=lora)
        finish(engine, request)
        texts.append(ids(request))
        assert texts[-1] == alone("hello there", adapters=1, lora=lora)
    assert texts[0] == texts[1] != texts[2] != texts[3]
    engine.lora = (0.5,)
    request = ask("hello there")
    finish(engine, request)
    assert ids(request) == texts[2]


def test_adapters_of_norms_take_turns_with_other_scales():
    model = FakeModel(adapters=1, with_norms=True)
    engine = Engine(model, n_slots=3)
    requests = [ask("one", lora=(0.5,)), ask("two"), ask("three", lora=(0.5,))]
    finish(engine, *requests)
    assert [ids(r) for r in requests] == [
        alone("one", adapters=1, lora=(0.5,)),
        alone("two", adapters=1),
        alone("three", adapters=1, lora=(0.5,)),
    ]
    # Nobody waits for the others to end: the two groups alternate.
    sizes = engine.session.steps
    assert sizes[2:20] == [2, 1] * 9


def test_the_models_own_scales_are_the_default():
    model = FakeModel(adapters=2)
    model.adapters = [(adapter, scale) for (adapter, _), scale in zip(model.adapters, (0.5, 0.0), strict=True)]
    request = ask("hello there")
    Engine(model).run(request)
    assert ids(request) == alone("hello there", adapters=2, lora=(0.5, 0.0))


def test_ends():
    model = FakeModel(answer=b"hello", prompt_length=2)
    for n_predict, stop_type, count in [
        (3, "limit", 3),
        (5, "limit", 5),
        (6, "eos", 6),
        (-1, "eos", 6),
        (0, "limit", 0),
    ]:
        request = ask("x", n_predict=n_predict)
        result = Engine(model).run(request)
        assert (result.stop_type, result.timings.predicted_n, result.truncated) == (stop_type, count, False)
        assert bytes(ids(request)[:5]) == b"hello"[:count]
        assert [token.is_end for token in request.tokens] == [False] * min(count, 5) + [True] * (count > 5)
    request = ask("x", n_predict=-1, on_token=lambda token: token.id == ord("e"))
    assert Engine(model).run(request).stop_type == "word"
    assert bytes(ids(request)) == b"he"


def test_ignore_eos_goes_on():
    request = ask("x", n_predict=20, ignore_eos=True)
    result = Engine(FakeModel(answer=b"hi", prompt_length=2)).run(request)
    assert result.stop_type == "limit" and len(request.tokens) == 20 and EOS not in ids(request)


def test_a_full_context_stops_with_limit_and_truncated():
    request = ask("abcde", n_predict=-1, ignore_eos=True)
    engine = Engine(FakeModel(), n_ctx=16)
    result = engine.run(request)
    assert (result.stop_type, result.truncated) == ("limit", True)
    # Every position is used, and the last token came from the last position's logits.
    assert len(request.prompt) + len(request.tokens) == 17
    assert (engine.session.ids[0] >= 0).all()
    again = ask("abcde", n_predict=-1, ignore_eos=True)
    finish(engine, again)
    assert ids(again) == ids(request)


def test_a_context_that_ends_with_n_predict_is_not_truncated():
    result = Engine(FakeModel(), n_ctx=16).run(ask("abcde", n_predict=10, ignore_eos=True))
    assert (result.stop_type, result.truncated) == ("limit", False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "at least one token"),
        ([1] * 16, "fewer than 16 tokens"),
        ([1, 9999], "got 9999"),
        ([-1], "got -1"),
        ([N_VOCAB], f"got {N_VOCAB}"),
    ],
)
def test_prompts_that_cannot_be_run(prompt, message):
    with pytest.raises(PromptError, match=message):
        Engine(FakeModel(), n_ctx=16).submit(ask(prompt))


def test_log_probabilities_come_with_every_token():
    request = ask("hello", n_probs=3, temperature=0, n_predict=4)
    Engine(FakeModel()).run(request)
    for token in request.tokens:
        assert len(token.top) == 3 and token.top[0] == (token.id, token.logprob) and token.logprob < 0
    assert ask("x").tokens == []


def test_a_prompt_does_not_hold_up_those_who_generate():
    model = FakeModel()
    engine = Engine(model, n_slots=2)
    talker, reader = ask("hi", n_predict=200, ignore_eos=True), ask("a" * 1500, n_predict=1)
    engine.submit(talker)
    for _ in range(5):
        engine.step()
    engine.submit(reader)
    before = len(talker.tokens)
    while reader.result is None:
        engine.step()
    steps = engine.session.steps[5:]
    assert max(steps) == PROMPT_SHARE + 1
    assert len(talker.tokens) - before == len(steps)
    finish(engine, ask("b" * 1500, n_predict=1))
    engine.cancel(talker)
    engine.step()
    finish(engine, ask("c" * 1500, n_predict=1))
    assert max(engine.session.steps[-3:]) == 512


@pytest.mark.parametrize(
    ("pace", "most"), [(0, PROMPT_SHARE), (0.0001, PROMPT_SHARE), (0.002, 96), (0.01, 16), (5.0, 16)]
)
def test_slow_models_take_fewer_tokens_of_a_prompt_beside_others(pace, most):
    assert prompt_share(pace) == most
    engine, first, late = Engine(FakeModel(), n_slots=2), ask("a", n_predict=50), ask("b" * 600)
    engine.submit(first)
    while not first.tokens:
        engine.step()
    engine._pace = pace
    engine.submit(late)
    engine.step()
    assert engine.session.steps[-1] == 1 + most


def test_the_pace_is_that_of_prompts():
    engine, request = Engine(FakeModel()), ask("b" * 100, n_predict=1)
    finish(engine, request)
    assert engine._pace == pytest.approx(engine.counters["prompt_seconds"] / 101)


def test_cancelling_frees_the_slot_and_keeps_its_neighbours():
    engine = Engine(FakeModel(), n_slots=1)
    running, queued, other = ask("a" * 300), ask("b"), ask("c")
    for request in (running, queued, other):
        engine.submit(request)
    engine.step()
    assert (engine.busy, engine.queued) == (1, 2)
    engine.cancel(running)
    engine.cancel(queued)
    engine.step()
    assert running.result.stop_type == queued.result.stop_type == "cancel"
    finish(engine, ask("a" * 300))
    assert ids(other) == alone("c")


def test_a_client_that_hangs_up_changes_nothing_for_adapters_that_go(monkeypatch):
    monkeypatch.setattr("llamacy.generate.engine.RETIRE_SECONDS", 0.05)
    engine, gone = Engine(FakeModel(1)), []
    engine.retire_adapter(0, gone.append)
    request = ask("a")
    engine.submit(request)
    engine.cancel(request)
    engine.step()
    assert request.result.stop_type == "cancel" and not gone
    time.sleep(0.06)
    engine.step()
    assert gone == [0]


def test_a_failing_step_ends_its_requests_only():
    model = FakeModel()
    engine = Engine(model, n_slots=2)
    first, second = ask("one"), ask("two")
    engine.submit(first)
    engine.submit(second)
    engine.step()
    model.fail = MemoryError("no room")
    engine.step()
    assert isinstance(first.result.error, MemoryError) and isinstance(second.result.error, MemoryError)
    model.fail = None
    again = ask("one")
    finish(engine, again)
    assert ids(again) == alone("one") and again.result.timings.cache_n == 0


def test_a_failing_callback_or_wrong_parameter_ends_its_request_only():
    def broken(token):
        raise ValueError("broken")

    engine = Engine(FakeModel(), n_slots=3)
    bad, biased, good = ask("one", on_token=broken), ask("two", logit_bias=((999, 1.0),)), ask("three")
    finish(engine, bad, biased, good)
    assert isinstance(bad.result.error, ValueError) and isinstance(biased.result.error, LlamacyError)
    assert ids(good) == alone("three")
    with pytest.raises(LlamacyError, match="logit_bias"):
        engine.run(ask("two", logit_bias=((999, 1.0),)))


@pytest.mark.parametrize("n_slots", [1, 3])
def test_a_request_whose_results_are_not_numbers_ends_alone(n_slots):
    model = FakeModel()
    model.wild = 0
    engine = Engine(model, n_slots=n_slots)
    wild, good, more = ask("one \0 two"), ask("good"), ask("one more " * 30)
    embedded = ask("\0", on_hidden=lambda rows: None)
    finish(engine, wild, good, embedded, more)
    for request in (wild, embedded):
        assert isinstance(request.result.error, NotFinite) and not request.tokens
    assert ids(good) == alone("good") and ids(more) == alone("one more " * 30)
    # nothing goes on from what the cache holds of it
    assert all(0 not in slot.cached for slot in engine.slots)
    finish(engine, again := ask("one \0 two"))
    assert again.result.error and again.result.timings.cache_n <= again.prompt.index(0)


def test_the_thread_serves_many_and_closes():
    engine = Engine(FakeModel(), n_slots=2)
    engine.start()
    requests = [ask(f"prompt {i}", seed=i) for i in range(8)]
    threads = [threading.Thread(target=engine.submit, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    assert all(request.wait(10) for request in requests)
    assert [ids(r) for r in requests] == [alone(f"prompt {i}", seed=i) for i in range(8)]
    endless = ask("on and on", n_predict=-1, ignore_eos=True)
    engine.submit(endless)
    engine.close()
    assert isinstance(endless.result.error, Closed)
    with pytest.raises(Closed):
        engine.submit(ask("late"))


class LateEngine(Engine):
    """Its thread is held up before it reaches the loop."""

    def loop(self):
        time.sleep(0.1)
        super().loop()


@pytest.mark.parametrize("kind, tries", [(Engine, 300), (LateEngine, 1)])
def test_no_thread_is_alive_after_close_however_soon_it_comes(kind, tries):
    for _ in range(tries):
        engine = kind(FakeModel())
        waiting = ask("early")
        engine.submit(waiting)
        engine.start()
        engine.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "engine"]
        assert waiting.result


def test_closing_lets_short_requests_finish():
    model = FakeModel()
    engine = Engine(model, n_slots=1)
    compute = model.session.step

    def closing_meanwhile(*args, **kwargs):
        # what close() does first, at a moment when the short request surely runs, however fast the machine is
        if short.tokens:
            engine._closing, engine._deadline = True, time.monotonic() + 30
        return compute(*args, **kwargs)

    model.session.step = closing_meanwhile
    short, waiting = ask("short", n_predict=30), ask("waiting")
    engine.submit(short)
    engine.submit(waiting)
    engine.start()
    engine._thread.join(30)
    engine.close(grace=30)
    assert short.result.stop_type == "limit" and isinstance(waiting.result.error, Closed)


def test_a_full_queue_is_refused():
    engine = Engine(FakeModel(), max_queue=2)
    engine.submit(ask("a"))
    engine.submit(ask("b"))
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        engine.submit(ask("c"))


def test_counters_add_up():
    engine = Engine(FakeModel(), n_slots=2)
    finish(engine, ask("a" * 40, n_predict=5), ask("b" * 7, n_predict=3))
    assert engine.counters["prompt_tokens"] == 41 + 8
    assert engine.counters["predicted_tokens"] == 5 + 3
    assert engine.counters["prompt_seconds"] > 0 and engine.counters["predicted_seconds"] > 0


def test_a_full_context_drops_its_older_half_and_goes_on():
    model = FakeModel()
    engine = Engine(model, n_ctx=32, context_shift=True)
    request = ask("a prompt of 20 byte", n_predict=60, ignore_eos=True, temperature=0, n_keep=6)
    result = engine.run(request)
    assert (result.stop_type, result.truncated, len(request.tokens)) == ("limit", True, 60)
    # what a shift leaves is computed anew: the text is that of a prompt made of what was kept
    history, made = list(request.prompt), []
    while len(made) < 60:
        if len(history) > 32:
            del history[6 : 6 + (len(history) - 6) // 2]
        step = ask(list(history), n_predict=1, ignore_eos=True, temperature=0)
        Engine(FakeModel(), n_ctx=33).run(step)
        history += ids(step)
        made += ids(step)
    assert ids(request) == made


@pytest.mark.parametrize("n_keep", [-1, 30])
def test_a_prompt_that_is_kept_whole_may_leave_nothing_to_drop(n_keep):
    engine, request = Engine(FakeModel(), n_ctx=32, context_shift=True), ask("x" * 30, n_predict=9, n_keep=n_keep)
    result = engine.run(request)
    assert (result.stop_type, result.truncated) in [("limit", True), ("eos", False)]
    assert len(request.tokens) <= 2


def test_without_context_shift_a_full_context_ends_the_text():
    request = ask("x" * 20, n_predict=60, ignore_eos=True)
    result = Engine(FakeModel(), n_ctx=32).run(request)
    assert (result.stop_type, result.truncated, len(request.tokens)) == ("limit", True, 12)
