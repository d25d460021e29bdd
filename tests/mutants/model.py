"""Mistakes of what a model file says and how it is packed."""

from tests.mutants.table import table

MODEL = table(
    "llamacy/model",
    (
        "rope.scale_linear is ignored",
        "rope.py",
        'key = "rope.scaling.factor" if keys.get("rope.scaling.factor") is not None else "rope.scale_linear"',
        'key = "rope.scaling.factor"',
        "model/test_forward.py::test_every_way_to_write_linear_rope_scaling",
    ),
    (
        "gate's and up's rows of stacked experts change places",
        "hf_tensors.py",
        '("ffn_gate_exps", _even), ("ffn_up_exps", _odd)',
        '("ffn_gate_exps", _odd), ("ffn_up_exps", _even)',
        "model/test_family_facts.py::test_the_converter_s_tensors_and_keys",
    ),
    (
        "norms without what their family adds",
        "hf_tensors.py",
        "return values + np.float32(target.shift) if target.shift else values",
        "return values",
        "model/test_family_facts.py::test_the_converter_s_tensors_and_keys",
    ),
    (
        "no base of windowed layers' rope",
        "hf_keys.py",
        "if config.rope_of_windows is not None and config.window is not None:",
        "if False:",
        "model/test_family_facts.py::test_the_converter_s_tensors_and_keys",
    ),
    (
        "positions multiplied by the scale",
        "rope.py",
        "return rope.plain() / rope.factor, _said(rope)",
        "return rope.plain() * rope.factor, _said(rope)",
        "model/test_forward.py::test_variants",
    ),
    (
        "yarn stretches what turns often",
        "rope.py",
        "kept = (1 - stretched) * rope.ext_factor",
        "kept = stretched * rope.ext_factor",
        "model/test_rope.py::test_tables_are_transformers",
    ),
    (
        "short factors for long contexts",
        "rope.py",
        "return rope.plain() / (factors.long if rope.is_stretched(n_ctx) else factors.short), factor",
        "return rope.plain() / factors.short, factor",
        "model/test_rope.py::test_tables_are_transformers",
    ),
    (
        "one of the layers' sizes stands for all",
        "config.py",
        "if (value != value[0]).any():",
        "if (value != value[0]).all():",
        "model/test_understood.py::test_sizes_that_differ_between_layers",
    ),
    (
        "half a layer is rounded away",
        "config.py",
        "if isinstance(value, float) and value.is_integer():",
        "if isinstance(value, float) and abs(value) < 1e9:",
        "model/test_understood.py::test_a_fraction_is_no_size",
    ),
    (
        "a missing epsilon is assumed in silence",
        "config.py",
        'warnings.warn(f"{self.file.path}: {what}; {flag} sets it", stacklevel=1)',
        "pass",
        "model/test_understood.py::test_what_is_missing_is_assumed_with_a_warning",
    ),
    (
        "fewer rows than tokens",
        "config.py",
        "if n_tokens > n_rows:",
        "if n_tokens > 2 * n_rows:",
        "model/test_padded_rows.py::test_fewer_rows_than_tokens",
    ),
    (
        "rows that only pad have logits",
        "model.py",
        "return rows if hidden else rows[:, : self.model.config.n_vocab]",
        "return rows",
        "model/test_padded_rows.py::test_logits_end_with_the_tokens",
        "model/test_padded_rows.py::test_only_tokens_are_chosen_and_they_share_all_probability",
        "model/test_padded_rows.py::test_perplexity_is_over_tokens",
    ),
    (
        "rope factors of zero",
        "weights.py",
        "if not (found[part] > 0).all():",
        "if not (found[part] >= 0).all():",
        "model/test_understood.py::test_rope_factors_that_cannot_be",
    ),
    (
        "norms may have a bias that is not read",
        "weights.py",
        'if config.family.norm_biases and BY_NAME[name].n == "embd"',
        'if BY_NAME[name].n == "embd"',
        "model/test_understood.py::test_a_tensor_that_no_step_reads_is_refused_by_name",
    ),
    (
        "layers beyond the last one pass",
        "weights.py",
        "strange = [name for name in file.tensors if name not in known]",
        'strange = [name for name in file.tensors if name not in known and ".9" not in name and "blk.2" not in name]',
        "model/test_understood.py::test_a_layer_beyond_the_last",
    ),
    (
        "scales of two norm adapters mixed up",
        "model.py",
        "for norms, (_, user) in zip(self._norms, self.adapters, strict=True)",
        "for norms, (_, user) in zip(self._norms, self.adapters[::-1], strict=True)",
        "model/test_adapters.py::test_norms_of_several_adapters_add_up_each_with_its_scale",
    ),
    (
        "a norm keeps what another adapter added",
        "model.py",
        "np.sum(deltas, axis=0)",
        "deltas[-1]",
        "model/test_adapters.py::test_norms_of_several_adapters_add_up_each_with_its_scale",
    ),
)

KERNELS = table(
    "llamacy/kernels",
    (
        "a forked process waits for threads that are gone",
        "threads.py",
        "elif _process != os.getpid():",
        "elif False:",
        "model/test_concurrency.py::test_after_a_fork_whatever_would_hang_is_refused",
    ),
)
