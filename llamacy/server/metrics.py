"""The engine's counters as Prometheus text, under llama.cpp's names so that its dashboards work."""

# name, type, help, value of (engine, counters)
METRICS = [
    ("prompt_tokens_total", "counter", "Prompt tokens processed.", lambda e, c: c["prompt_tokens"]),
    ("prompt_seconds_total", "counter", "Time spent on prompts.", lambda e, c: c["prompt_seconds"]),
    ("tokens_predicted_total", "counter", "Tokens generated.", lambda e, c: c["predicted_tokens"]),
    ("tokens_predicted_seconds_total", "counter", "Time spent on generating.", lambda e, c: c["predicted_seconds"]),
    ("n_decode_total", "counter", "Steps through the model.", lambda e, c: c["steps"]),
    (
        "n_busy_slots_per_decode",
        "gauge",
        "Mean busy slots in a step.",
        lambda e, c: _ratio(c["busy_slots"], c["steps"]),
    ),
    (
        "prompt_tokens_seconds",
        "gauge",
        "Mean prompt tokens per second.",
        lambda e, c: _ratio(c["prompt_tokens"], c["prompt_seconds"]),
    ),
    (
        "predicted_tokens_seconds",
        "gauge",
        "Mean generated tokens per second.",
        lambda e, c: _ratio(c["predicted_tokens"], c["predicted_seconds"]),
    ),
    ("n_tokens_max", "counter", "Most tokens that a slot has held.", lambda e, c: c["most_tokens"]),
    ("kv_cache_tokens", "gauge", "Tokens in the cache.", lambda e, c: _cached(e)),
    ("kv_cache_usage_ratio", "gauge", "Share of the cache in use.", lambda e, c: _cached(e) / (len(e.slots) * e.n_ctx)),
    ("requests_processing", "gauge", "Requests that have a slot.", lambda e, c: e.busy),
    ("requests_deferred", "gauge", "Requests that wait for a slot.", lambda e, c: e.queued),
]


def _cached(engine):
    return sum(len(slot.cached) for slot in engine.slots)


def _ratio(amount, of):
    return amount / of if of else 0.0


def metrics_text(engine):
    """Return all metrics in Prometheus' text format."""
    counters = dict(engine.counters)
    lines = []
    for name, kind, text, value in METRICS:
        full = f"llamacpp:{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value(engine, counters)}"]
    return "\n".join(lines) + "\n"
