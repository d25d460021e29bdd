"""One-line mutations of the program, each with the tests that must notice it; `make mutants` tries them.

A row stands for a mistake that is easy to make and hard to see: nothing crashes, the text or the loss is a little off.
Whoever changes a line that is listed here changes it here too: `old` has to be in its file exactly once.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """In `file` the text `old` becomes `new`, within one line; `module` is compiled anew where the file is a .pyx."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple

    @property
    def module(self):
        """The compiled module's name, "" for Python."""
        return Path(self.file).stem if self.file.endswith(".pyx") else ""


def misplaced(mutant):
    """Return what keeps a mutant from being tried, a list of lines."""
    path, wrong = ROOT / mutant.file, []
    n = path.read_text(encoding="utf-8").count(mutant.old) if path.exists() else 0
    if n != 1:
        wrong.append(f"{mutant.name}: {mutant.old!r} is in {mutant.file} {n} times, wanted once; mend tests/mutants.py")
    if mutant.old == mutant.new or "\n" in mutant.old + mutant.new:
        wrong.append(f"{mutant.name}: changes nothing, or more than one line")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8"):
            wrong.append(f"{mutant.name}: there is no test {test}; mend tests/mutants.py")
    if not mutant.tests:
        wrong.append(f"{mutant.name}: names no test")
    return wrong


def changed(mutant, source):
    """Return `source`, the file's text, with the mutation in it."""
    assert source.count(mutant.old) == 1
    return source.replace(mutant.old, mutant.new)


def _in(folder, *rows):
    return [
        Mutant(name, f"{folder}/{file}", old, new, tuple(f"tests/{test}" for test in tests))
        for name, file, old, new, *tests in rows
    ]


TRAIN = _in(
    "llamacy/train",
    # ---- steps
    (
        "gradients scaled up to the norm",
        "trainer.py",
        "clip = min(1.0, options.max_grad_norm / (norm + 1e-6))",
        "clip = (options.max_grad_norm / (norm + 1e-6))",
        "train/test_trainer.py::test_gradients_are_scaled_down_to_the_largest_norm_and_never_up",
    ),
    (
        "the prompt is trained too",
        "trainer.py",
        "np.where(sample.trained[1 : length + 1], sample.ids[1 : length + 1], -1)",
        "sample.ids[1 : length + 1]",
        "train/test_trainer.py::test_loss_and_every_gradient_are_torch_s",
    ),
    (
        "gradients are a mean over all tokens",
        "trainer.py",
        "self._run(packed, 1 / n_trained, dropout_key",
        "self._run(packed, 1 / len(packed[0]), dropout_key",
        "train/test_trainer.py::test_loss_and_every_gradient_are_torch_s",
    ),
    (
        "the moments start at step 0 after a resume",
        "trainer.py",
        'self.n_steps = self._good_step = int(state["n_steps"])',
        'self._good_step = int(state["n_steps"])',
        "train/test_trainer.py::test_state_goes_on_bitwise",
    ),
    (
        "the same units dropped in every step",
        "trainer.py",
        "SeedSequence((self.seed, self.n_steps, i))",
        "SeedSequence((self.seed, i))",
        "train/test_trainstep.py::test_dropout_is_the_same_for_any_threads_and_another_each_step",
    ),
    (
        "rsLoRA divides by the rank",
        "trainer.py",
        "alpha / (math.sqrt(rank * r) if rslora else r)",
        "alpha / r",
        "train/test_trainstep.py::test_matrices_may_have_ranks_of_their_own",
    ),
    (
        "the first layers are trained instead of the last",
        "lora.py",
        "for layer in range(first, config.n_layer)",
        "for layer in range(0, config.n_layer - first)",
        "train/test_trainer.py::test_only_the_last_layers_and_the_targets_are_trained",
    ),
    # ---- the run
    (
        "an equal validation loss counts as better",
        "loop.py",
        "better = loss < done.best_loss",
        "better = loss <= done.best_loss",
        "train/test_loop.py::test_only_a_smaller_loss_is_better",
    ),
    (
        "early stopping a measurement too late",
        "loop.py",
        "self.done.n_worse >= self.options.early_stop:",
        "self.done.n_worse > self.options.early_stop:",
        "train/test_loop.py::test_only_a_smaller_loss_is_better",
    ),
    (
        "the newest adapter replaces the best one",
        "loop.py",
        'newest = "" if self.done.best_step else self.outputs.adapter',
        "newest = self.outputs.adapter",
        "train/test_loop.py::test_only_a_smaller_loss_is_better",
    ),
    (
        "an infinite gradient goes unseen",
        "health.py",
        "if not (math.isfinite(loss) and math.isfinite(grad_norm)):",
        "if not math.isfinite(loss):",
        "train/test_loop.py::test_a_run_that_goes_astray_ends_with_the_last_good_adapter",
    ),
    (
        "a run resumed with another seed",
        "loop.py",
        '    "seed": "--seed",',
        "",
        "train/test_loop.py::test_what_is_no_continuation_is_refused",
    ),
    (
        "the warm-up's last stair left out",
        "schedule.py",
        "if step < n_warmup:",
        "if step < n_warmup - 1:",
        "train/test_schedule.py::test_rates_are_those_of_transformers",
    ),
    (
        "the cosine over the whole run",
        "schedule.py",
        "SCHEDULES[schedule](step - n_warmup, n_steps - n_warmup)",
        "SCHEDULES[schedule](step, n_steps)",
        "train/test_schedule.py::test_rates_are_those_of_transformers",
    ),
    (
        "the same order in every epoch",
        "batches.py",
        "permutation(n, self.options.seed, epoch) if shuffle",
        "permutation(n, self.options.seed) if shuffle",
        "train/test_batches.py::test_the_order_follows_the_seed_and_the_epoch",
    ),
    (
        "nohup is not honoured",
        "stop.py",
        "if signal.getsignal(signum) != signal.SIG_IGN:",
        "if True:",
        "train/test_loop.py::test_a_terminal_that_closes_saves_and_nohup_goes_on",
    ),
    # ---- data
    (
        "the end of an answer is not learnt",
        "samples.py",
        "return next(ends, len(piece) - 1) + 1",
        "return next(ends, len(piece) - 1)",
        "train/test_data_json.py::test_every_assistant_turn_is_trained_up_to_its_end",
    ),
    (
        "BOS twice",
        "samples.py",
        "if ids == self.first and piece[: len(ids)] == ids:",
        "if False:",
        "train/test_data_text.py::test_bos_comes_first_where_the_model_adds_it_and_once",
    ),
    (
        "a cut sample is not counted",
        "samples.py",
        "return self._sample(ids, trained), len(ids) > self.n_ctx",
        "return self._sample(ids, trained), len(ids) > self.n_ctx + 1",
        "train/test_data_text.py::test_a_sample_that_just_fits_is_not_cut",
    ),
)

MODEL = _in(
    "llamacy/model",
    (
        "rope.scale_linear is ignored",
        "config.py",
        'key = "rope.scaling.factor" if keys.get("rope.scaling.factor") is not None else "rope.scale_linear"',
        'key = "rope.scaling.factor"',
        "model/test_forward.py::test_every_way_to_write_linear_rope_scaling",
    ),
    (
        "positions multiplied by the scale",
        "config.py",
        "self.rope_theta**-exponents / self.rope_scale",
        "self.rope_theta**-exponents * self.rope_scale",
        "model/test_forward.py::test_variants",
    ),
    (
        "a window one position too wide",
        "config.py",
        "self.window is not None and n_ctx > self.window",
        "self.window is not None and n_ctx > self.window + 1",
        "model/test_understood.py::test_a_context_beyond_the_window_is_refused",
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
        "if not (factors > 0).all():",
        "if not (factors >= 0).all():",
        "model/test_understood.py::test_rope_factors_that_cannot_be",
    ),
    (
        "norms may have a bias that is not read",
        "weights.py",
        '*(f"{name}.weight" for name in family.norms)',
        '*(f"{name}.{side}" for name in family.norms for side in ("weight", "bias"))',
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

FORMATS = _in(
    "llamacy/formats",
    (
        "a key is neutral where it is not",
        "metadata_keys.py",
        "numbers = [number for number in neutral if not isinstance(number, str)]",
        "numbers = [0, 1, *(number for number in neutral if not isinstance(number, str))]",
        "model/test_understood.py::test_a_key_that_changes_the_arithmetic",
    ),
    (
        "a key is neutral when one of its numbers is",
        "metadata_keys.py",
        "return all(any(math.isclose",
        "return any(any(math.isclose",
        "model/test_understood.py::test_a_key_that_changes_the_arithmetic",
    ),
    (
        "a vector of 1 x n is a matrix",
        "layout.py",
        "return self.shape[max(0, ones) :]",
        "return self.shape[min(1, ones) :]",
        "model/test_understood.py::test_ones_before_a_shape_say_nothing",
    ),
    (
        "a disk that is full at the end goes unseen",
        "atomic.py",
        "file.flush()",
        "pass",
        "formats/test_atomic.py::test_a_full_disk",
    ),
    (
        "a file's permissions change",
        "atomic.py",
        "os.fchmod(descriptor, stat.S_IMODE(mode))",
        "pass",
        "formats/test_atomic.py::test_permissions",
    ),
    (
        "a failed write leaves its temporary file",
        "atomic.py",
        "os.unlink(temporary)",
        "pass",
        "formats/test_atomic.py::test_a_failing_block_leaves_the_old_file",
    ),
    (
        "a tensor may end a byte behind the file",
        "layout.py",
        "if offset + nbytes > source.size:",
        "if offset + nbytes > source.size + 1:",
        "formats/test_gguf_reader.py::test_every_truncation_is_an_error",
    ),
    (
        "tensors may overlap by a byte",
        "layout.py",
        "if before.offset + before.nbytes > after.offset:",
        "if before.offset + before.nbytes > after.offset + 1:",
        "formats/test_safetensors.py::test_lies_are_named_in_one_line",
    ),
    (
        "counts are not held against the file",
        "gguf.py",
        "most = min(limit, self.cursor.left // smallest)",
        "most = limit",
        "formats/test_gguf_reader.py::test_lies_are_named_in_one_line",
    ),
    (
        "offsets may be out of line",
        "gguf.py",
        "if offset % alignment:",
        "if False:",
        "formats/test_gguf_reader.py::test_lies_are_named_in_one_line",
    ),
    (
        "a safetensors header of any size",
        "safetensors.py",
        "if length > MAX_HEADER:",
        "if False:",
        "formats/test_safetensors.py::test_lies_are_named_in_one_line",
    ),
    (
        "merging forgets the user's scale",
        "merge.py",
        "pair.a * np.float32(pair.scale * scale)",
        "pair.a * np.float32(pair.scale)",
        "formats/test_merge.py::test_the_f32_merge_says_what_the_adapter_says_at_run_time",
    ),
)

GENERATE = _in(
    "llamacy/generate",
    (
        "a cache reused under other adapter scales",
        "slot.py",
        "if not request.cache_prompt or request.on_hidden or lora != self.lora:",
        "if not request.cache_prompt or request.on_hidden:",
        "generate/test_engine.py::test_other_adapter_scales_do_not_share_a_cache",
    ),
    (
        "a cache reused although the request says no",
        "slot.py",
        "if not request.cache_prompt or request.on_hidden or lora != self.lora:",
        "if request.on_hidden or lora != self.lora:",
        "generate/test_engine.py::test_the_longest_common_prefix_is_reused",
    ),
    (
        "a cache reused under another prompt",
        "slot.py",
        "if self.cached[i] != request.prompt[i]:",
        "if False:",
        "generate/test_engine.py::test_the_longest_common_prefix_is_reused",
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

TEXT = _in(
    "llamacy/text",
    (
        "control tokens in any text become tokens",
        "tokenizer.py",
        "encode(text_bytes(text), cut, parse_special, self._prefix)",
        "encode(text_bytes(text), cut, True, self._prefix)",
        "text/test_tokenizer.py::test_without_parse_special_control_tokens_are_text_and_user_defined_ones_are_not",
    ),
    (
        "special tokens are printed",
        "tokenizer.py",
        "shown = ids if special else (token for token in ids if not self.is_special(token))",
        "shown = ids",
        "text/test_tokenizer.py::test_end_tokens_are_found_by_text_and_count_as_special",
    ),
    (
        "BOS although the file says no",
        "tokenizer.py",
        'self.add_bos = bool(self._get("add_bos_token", add_bos)) and',
        "self.add_bos = bool(add_bos) and",
        "text/test_tokenizer.py::test_bos_and_eos_are_added_as_the_file_says",
    ),
)

SERVER = _in(
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

LAYERS = _in(
    "pyx/layers",
    (
        "rope's backward turns forward",
        "rope.pyx",
        "cosine, sine, layout, -1)",
        "cosine, sine, layout, 1)",
        "kernels/test_layers.py::test_rope_slopes",
    ),
    (
        "the norm's backward forgets a factor",
        "norm.pyx",
        "back = vf_hsum(s) / n * r * r",
        "back = vf_hsum(s) / n * r",
        "kernels/test_layers.py::test_rms_norm_slopes",
    ),
    (
        "epsilon outside of the root",
        "norm.pyx",
        "1 / sqrt(mean + eps)",
        "1 / (sqrt(mean) + eps)",
        "kernels/test_layers.py::test_rms_norm",
    ),
    (
        "the loss's gradient without its weight",
        "loss.pyx",
        "logits[target] -= weight",
        "logits[target] -= 1",
        "kernels/test_layers.py::test_cross_entropy_slopes",
    ),
    (
        "no correction of AdamW's second moment",
        "adamw.pyx",
        "1 / sqrt(1 - beta2 ** t)",
        "1",
        "kernels/test_adamw.py::test_steps_follow_the_formula",
    ),
    (
        "a softmax that sees one position too many",
        "attention.pyx",
        "inverse = 1 / softmax(p + r * width, t0 + r + 1, <int>past, &peak)",
        "inverse = 1 / softmax(p + r * width, t0 + r + 2, <int>past, &peak)",
        "kernels/test_attention.py::test_attention_backward",
    ),
    (
        "chunks joined without their peaks",
        "attention.pyx",
        "peak[0], total[0] = top, total[0] * a + other_total * b",
        "peak[0], total[0] = top, total[0] + other_total",
        "kernels/test_attention.py::test_attention",
    ),
)

PRODUCTS = _in(
    "pyx/products",
    (
        "fewer values set aside",
        "inputs.pyx",
        "cdef float OUTLIER_OVER = 1.2",
        "cdef float OUTLIER_OVER = 1.45",
        "kernels/test_matmul.py::test_values_are_set_aside_from_the_documented_limit_on",
    ),
    (
        "more values of wide models set aside",
        "inputs.pyx",
        "x.outlier_over, x.superblock, x.raised = 1.5,",
        "x.outlier_over, x.superblock, x.raised = 1.3,",
        "kernels/test_matmul.py::test_values_are_set_aside_from_the_documented_limit_on",
    ),
)

COMMON = _in(
    "pyx/text",
    (
        "of equal logits the last one is taken",
        "sampling.pyx",
        "return a.value < b.value or (a.value == b.value and a.id > b.id)",
        "return a.value < b.value or (a.value == b.value and a.id < b.id)",
        "generate/test_sampler.py::test_greedy_takes_the_lowest_id_on_ties",
        "generate/test_sampler.py::test_kernels_on_odd_sizes",
    ),
)

ADAPTERS = _in(
    "llamacy/formats",
    (
        "base tensors of other values pass",
        "base_copies.py",
        "if far == 0 and whole <= min(WHOLE * noise, LIMIT):",
        "if far >= 0:",
        "model/test_base_copies.py::test_a_base_tensor_of_other_values_is_named_in_a_warning",
    ),
    (
        "modules that were trained whole pass",
        "base_copies.py",
        "if not copy.paired:",
        "if copy.paired is None:",
        "model/test_base_copies.py::test_a_module_that_was_trained_whole_is_refused_by_name",
    ),
    (
        "an output pair of one matrix for both sides is not merged",
        "merge.py",
        "(changes[EMBEDDING].parts or on_output.parts)",
        "changes[EMBEDDING].parts",
        "model/test_base_copies.py::test_every_format_and_the_merged_model_say_the_same",
    ),
    (
        "a folder's files change one after the other",
        "together.py",
        'os.symlink("old", self._at("now"))',
        'os.symlink("new", self._at("now"))',
        "formats/test_together.py::test_a_process_that_dies_at_any_moment_leaves_all_old_or_all_new",
    ),
    (
        "weights read before a swap with settings read after it",
        "adapter.py",
        "if _identity(place) == before:  # so that",
        "if adapter:",
        "formats/test_together.py::test_a_reader_gets_one_adapter_while_another_takes_its_place",
    ),
    (
        "temporary files of living processes are swept",
        "locks.py",
        "if try_lock(descriptor) and is_at(descriptor, path):",
        "if is_at(descriptor, path):",
        "formats/test_atomic.py::test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else",
    ),
    (
        "a temporary file is its writer's until it is closed only",
        "atomic.py",
        "lock = os.dup(descriptor)",
        "lock = os.open(os.devnull, os.O_RDONLY)",
        "formats/test_atomic.py::test_a_sweep_just_before_the_rename_leaves_the_file",
    ),
)

STATES = _in(
    "llamacy/train",
    (
        "a checkpoint with losses of more steps than it says",
        "state.py",
        "self.that(len(losses) == step,",
        "self.that(len(losses) >= step,",
        "train/test_checkpoint_damage.py::test_every_array_in_every_wrong_way",
    ),
    (
        "a checkpoint's digest is not looked at",
        "checkpoint.py",
        "if version > 1 and",
        "if version > 2 and",
        "train/test_checkpoint_damage.py::test_any_bit_of_the_content_that_flips_is_found",
    ),
    (
        "a best loss of other samples is kept",
        "loop.py",
        "elif measured_with is not UNKNOWN and measured_with != now:",
        "elif measured_with is None:",
        "train/test_resume.py::test_other_validation_data_forgets_the_best_says_so_and_goes_on",
    ),
    (
        "a best adapter that is gone is kept",
        "loop.py",
        "elif not os.path.exists(self.outputs.adapter):",
        "elif not self.outputs.adapter:",
        "train/test_resume.py::test_a_best_adapter_that_is_gone_is_no_best",
    ),
    (
        "a log loses a step when it is cut back",
        "runlog.py",
        "if step is not None and step <= done:",
        "if step is not None and step < done:",
        "train/test_resume.py::test_cutting_a_log_back",
    ),
    (
        "matrices of one layer count as those of all",
        "lora.py",
        "if places(config, (key,)).keys() <= set(names)]",
        "if places(config, (key,)).keys() & set(names)]",
        "train/test_init_lora.py::test_which_pairs_a_run_trains",
    ),
    (
        "memory is estimated by one rank for all",
        "lora.py",
        "ranks | {name: pair.rank for name, pair in",
        "ranks | {name: options.rank for name, pair in",
        "train/test_init_lora.py::test_which_pairs_a_run_trains",
    ),
)

MUTANTS = (*TRAIN, *MODEL, *FORMATS, *ADAPTERS, *STATES, *GENERATE, *TEXT, *SERVER, *LAYERS, *PRODUCTS, *COMMON)
