"""A Hugging Face model's config.json, read with checks: numbers by name, heads, rope, which layers are which."""

from llamacy.errors import shown
from llamacy.formats.architectures import ARCHITECTURES

CONFIG = "config.json"
MAX_SIZE = 1 << 31
# "architectures" in config.json -> general.architecture.
FAMILIES = {name: family for family, row in ARCHITECTURES.items() for name in row.hf}
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
# What "hidden_act" or "hidden_activation" may say, and what it is where neither does; others: silu.
ACTIVATIONS = {
    # gemma's first files say gelu and mean its tanh form
    "gemma": (*_TANH, "gelu"), "gemma2": _TANH, "gemma3": _TANH, "phi2": _TANH[1:] + _TANH[:1], "starcoder2": _TANH,
}  # fmt: skip
_SILU = ("silu", "swish")
# What a family's config.json means where it does not say: transformers' own defaults, which it may leave out.
DEFAULTS = {
    "gemma": {"head_dim": 256, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 256, "tie_word_embeddings": True, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "sliding_window": 4096, "query_pre_attn_scalar": 256,
    },
    "gemma3": {
        "head_dim": 256, "tie_word_embeddings": True, "num_attention_heads": 8, "num_key_value_heads": 4,
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "max_position_embeddings": 131072,
        "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "sliding_window_pattern": 6,
    },
    "phi2": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5},
    "glm4": {"partial_rotary_factor": 0.5},
    "cohere2": {"tie_word_embeddings": True, "logit_scale": 0.0625, "layer_norm_eps": 1e-5, "sliding_window": 4096},
    "starcoder2": {"tie_word_embeddings": True, "norm_epsilon": 1e-5},
    "ernie4_5": {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "head_dim": 128, "rope_theta": 500000.0},
    "smollm3": {"tie_word_embeddings": True, "rope_theta": 2000000.0},
    "exaone4": {"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    "seed_oss": {"head_dim": 128},
    "helium": {"rope_theta": 100000.0, "rms_norm_eps": 1e-8, "head_dim": 128},
    "gpt-oss": {"rope_theta": 150000.0, "head_dim": 64, "sliding_window": 128, "rms_norm_eps": 1e-5},
    "lfm2": {"tie_word_embeddings": True, "rope_theta": 1000000.0, "conv_L_cache": 3},
    "olmoe": {"rms_norm_eps": 1e-5},
    "mistral3": {"rms_norm_eps": 1e-5},
}  # fmt: skip


class HfConfig:
    """config.json with checks; `family` is general.architecture, `row` its row, `values` what the text part says."""

    def __init__(self, folder):
        self.folder, self.whole_config = folder, folder.json(CONFIG)
        self.values = self.whole_config
        self.family = self._family()
        self.row = ARCHITECTURES[self.family]
        self.is_text_only = True
        inner = self.whole_config.get("text_config")
        if inner is not None:
            if not isinstance(inner, dict):
                raise self.error(f"text_config is {shown(inner)}, wanted a table", "the file is damaged")
            self.values, self.is_text_only = self.whole_config | inner, False
        # a null is no default's absence: it means none, or what the sizes say
        values = DEFAULTS.get(self.family, {}) | self.values
        self.values = {key: value for key, value in values.items() if value is not None}
        self._check()

    def error(self, what, advice):
        return self.folder.error(CONFIG, what, advice)

    def _family(self):
        names = self.values.get("architectures")
        name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
        if name not in FAMILIES:
            wanted = f"wanted one of the families {', '.join(ARCHITECTURES)}"
            raise self.error(f"architecture {shown(name)}, {wanted}", "others need their GGUF file")
        return FAMILIES[name]

    def _check(self):
        method = self.values.get("quantization_config")
        if method:
            method = method.get("quant_method") if isinstance(method, dict) else method
            if (self.family, method) != ("gpt-oss", "mxfp4"):
                raise self.error(f"its weights are quantised by {shown(method)}", "convert the original model")
        turned = self.values.get("no_rope_layers")  # 1 where a layer has rope
        if turned is not None and turned != [int(self.row.has_rope(i)) for i in range(len(turned))]:
            raise self.error(f"no_rope_layers is {shown(turned)}, not the family's pattern", "it cannot run here")
        wanted = ACTIVATIONS.get(self.family, _SILU)
        key = "hidden_activation" if "hidden_activation" in self.values else "hidden_act"
        if self.values.get(key, wanted[0]) not in wanted:
            raise self.error(f"{key} is {shown(self.values[key])}, wanted {wanted[0]}", "it cannot run here")
        for key, plain in SWITCHES.get(self.family, {}).items():
            if self.values.get(key, plain[0]) not in plain:
                wanted = " or ".join(str(value) for value in plain)
                raise self.error(f"{key} is {shown(self.values[key])}, wanted {wanted}", "it cannot run here")

    def get(self, *names):
        """Return the value of the first of `names` that is there, None without any."""
        return next((self.values[name] for name in names if name in self.values), None)

    def whole(self, *names, default=None):
        """Return a positive whole number; `default` where none of the names is there, an error where that is None."""
        value = self.get(*names)
        value = default if value is None else value
        if type(value) is int and 0 < value < MAX_SIZE:
            return value
        raise self.error(
            f"{names[0]} is {shown(value)}, wanted a positive whole number", "is it a model of the family?"
        )

    def number(self, *names, default=None, values=None):
        """Return a positive float, of `values` where they are given."""
        values = self.values if values is None else values
        value = next((values[name] for name in names if values.get(name) is not None), default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30:
            return float(value)
        raise self.error(f"{names[0]} is {shown(value)}, wanted a positive number", "correct it")

    @property
    def heads(self):
        """GGUF's keys of how many heads there are: of queries, of keys and values."""
        n_head = self.whole("num_attention_heads")
        return {
            "attention.head_count": n_head,
            "attention.head_count_kv": self.whole("num_key_value_heads", default=n_head),
        }

    @property
    def head_dim(self):
        by_width = max(1, self.whole("hidden_size") // self.whole("num_attention_heads"))
        # granite's and phi's files may name a head size that their models do not read
        return by_width if self.family in ("granite", "granitemoe", "phi2", "phi3") else self.whole(
            "head_dim", default=by_width
        )  # fmt: skip

    @property
    def n_rot(self):
        """How many elements of a head turn."""
        share = self.rope.get("partial_rotary_factor", self.get("partial_rotary_factor", "rotary_pct", "rope_pct"))
        share = 1.0 if share is None else self.number("partial_rotary_factor", values={"partial_rotary_factor": share})
        return int(self.head_dim * share)

    @property
    def rope(self):
        """The rope settings as one dict, wherever the version of transformers put them: of layers without a window."""
        return self._ropes()[0]

    @property
    def rope_of_windows(self):
        """The base of layers with a window, where they have their own; None otherwise."""
        return self._ropes()[1]

    def _ropes(self):
        found = self.get("rope_parameters", "rope_scaling") or {}
        if not isinstance(found, dict):
            raise self.error(f"the rope scaling is {shown(found)}, wanted a table", "correct it")
        local = self.get("rope_local_base_freq", "local_rope_theta")
        if "full_attention" in found or "sliding_attention" in found:
            near, found = found.get("sliding_attention"), found.get("full_attention") or {}
            if not isinstance(found, dict) or not isinstance(near or {}, dict):
                raise self.error(f"the rope settings are {shown(found)}, wanted tables", "correct it")
            local = (near or {}).get("rope_theta", local)
        theta = self.values.get("rope_theta", 10000.0)
        found = {key: value for key, value in found.items() if value is not None}
        kind = found.get("rope_type", found.get("type", "default"))
        kind = "longrope" if kind == "su" else kind
        rope = {"rope_theta": theta} | found | {"rope_type": kind}
        return rope, None if local is None else self.number("rope_theta", values={"rope_theta": local})

    @property
    def window(self):
        """How far back layers with a window look; None where no layer has one."""
        if self.values.get("use_sliding_window", True) is False or not self.values.get("sliding_window"):
            return None
        kinds = self.layer_types
        if kinds is not None and "sliding_attention" not in kinds:
            return None
        return self.whole("sliding_window")

    @property
    def layer_types(self):
        """transformers' name of each layer's kind, None where config.json does not list them."""
        kinds = self.values.get("layer_types")
        if kinds is None:
            return None
        if not isinstance(kinds, list) or len(kinds) != self.whole("num_hidden_layers"):
            raise self.error(f"layer_types is {shown(kinds)}, wanted a name for each layer", "correct it")
        return kinds

    @property
    def n_expert(self):
        """How many experts a layer with experts has, 0 in dense models."""
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        return self.whole(*names) if self.row.experts and self.get(*names) else 0

    @property
    def n_dense(self):
        """How many layers have a dense MLP before those with experts."""
        if not self.n_expert:
            return self.whole("num_hidden_layers")
        first = self.values.get("first_k_dense_replace", 0)
        if type(first) is not int or not 0 <= first <= self.whole("num_hidden_layers"):
            raise self.error(f"first_k_dense_replace is {shown(first)}, wanted a number of layers", "correct it")
        return first

    @property
    def is_tied(self):
        """Whether the embedding serves as output matrix."""
        outer = self.whole_config.get("tie_word_embeddings")
        tied = self.values.get("tie_word_embeddings")
        return bool(self.values.get("tie_embedding", tied if outer is None or self.is_text_only else outer))


# Settings of a family that change what is computed, with the values (the default first) at which nothing does.
_ALL_SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([],), "qkv_bias": (True,)}
SWITCHES = {
    "phi2": {"qk_layernorm": (False,)},
    "gpt-oss": {"swiglu_limit": (7.0,), "swiglu_alpha": (1.702,)},
    "qwen2moe": _ALL_SPARSE,
    "qwen3moe": _ALL_SPARSE | {"qkv_bias": (False, True)},
    "olmoe": {"clip_qkv": (None,)},
    "deepseek2": {
        "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
        "moe_layer_freq": (1,),
        "scoring_func": ("softmax", "sigmoid"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleave": (True,),
    },
    "lfm2": {"conv_bias": (False,)},
    "gemma3": {"attn_logit_softcapping": (None,), "use_bidirectional_attention": (False, None)},
    "gemma": {"use_bidirectional_attention": (None, False)},
    "gemma2": {"use_bidirectional_attention": (None, False)},
}
