"""Fields of requests that would change the answer and are not built: refused by name, unless they ask for nothing.

Names of llama.cpp's server, of OpenAI and of other servers with these endpoints. Unknown names are ignored: clients
send many that change nothing.
"""

from llamacy.server.errors import HttpError


def _above(neutral):
    return lambda value: isinstance(value, (int, float)) and value > neutral


def _not(*neutral):
    return lambda value: value not in neutral


# name: whether a value asks for something; None: whatever is not empty, zero or false does
REFUSED = {
    **dict.fromkeys(
        (
            # llama.cpp
            *("image_data", "multimodal_data", "grammar_lazy", "grammar_triggers", "preserved_tokens"),
            # OpenAI
            *("functions", "suffix", "audio", "web_search_options", "background", "previous_response_id"),
            # vLLM, SGLang and others
            *("use_beam_search", "min_tokens", "stop_token_ids", "bad_words", "allowed_token_ids", "prompt_logprobs"),
            *(
                "guided_json",
                "guided_regex",
                "guided_choice",
                "guided_grammar",
                "structured_outputs",
                "guided_decoding",
            ),
            *(
                "logits_processors",
                "include_stop_str_in_output",
                "truncate_prompt_tokens",
                "documents",
                "regex",
                "ebnf",
            ),
            *("chat_template", "structural_tag", "return_token_ids", "custom_logit_processor", "no_stop_trim"),
            *(
                "thinking_token_budget",
                "repetition_detection",
                "vllm_xargs",
                "kv_transfer_params",
                "return_hidden_states",
            ),
            # text-generation-webui, KoboldCpp, TGI, transformers
            *(
                "max_new_tokens",
                "max_length",
                "rep_pen",
                "rep_pen_range",
                "banned_tokens",
                "banned_strings",
                "sampler_seed",
            ),
            *("negative_prompt", "num_beams", "no_repeat_ngram_size", "penalty_alpha", "epsilon_cutoff", "eta_cutoff"),
            *("inputs", "parameters", "token_healing", "do_sample", "min_new_tokens", "bad_words_ids"),
            # Ollama's, which its own paths take
            *("num_ctx", "num_predict", "options"),
        )
    ),
    "function_call": _not("none", "auto"),
    "skip_special_tokens": _not(True),
    "spaces_between_special_tokens": _not(True, False),
    "add_special_tokens": _not(True),
    "verbosity": _not("medium"),
    "encoder_repetition_penalty": _not(1),
    "guidance_scale": _not(1),
    "adaptive_target": _above(-1e-9),
    "reasoning_budget_tokens": _above(-1),
    "tfs_z": _not(1),
    "top_a": _above(0),
    "smoothing_factor": _above(0),
    "length_penalty": _not(1),
    "best_of": _not(1),
    "modalities": _not(["text"]),
    "speculative.type": _not("none"),
}
# Beginnings of names, likewise.
PREFIXES = ("speculative.",)


def refuse(data):
    """Raise HttpError 400 for the first field of a request that asks for what is not built."""
    for name, value in data.items():
        asks = REFUSED.get(name)
        if value is None or (asks is None and not value):
            continue
        if asks(value) if asks else name in REFUSED or name.startswith(PREFIXES):
            raise HttpError(400, f"{name}: not supported")
