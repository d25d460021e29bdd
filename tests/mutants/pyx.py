"""Mistakes of the compiled modules."""

from tests.mutants.table import table

LAYERS = table(
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
        "LayerNorm's backward forgets the mean",
        "norm.pyx",
        "level, slope = vf_hsum(s) / n, vf_hsum(along)",
        "level, slope = 0, vf_hsum(along)",
        "kernels/test_dense_layers.py::test_layer_norm_slopes",
    ),
    (
        "LayerNorm counts the padding",
        "norm.pyx",
        "part[j] = x[i + j] - mean if i + j < n else 0",
        "part[j] = x[i + j] - mean",
        "kernels/test_dense_layers.py::test_layer_norm",
    ),
    (
        "heads with norms apart share the first one's weights",
        "norm.pyx",
        "norm.kind.apply(row, norm.weight + (first + i) * h.each,",
        "norm.kind.apply(row, norm.weight + i * h.each,",
        "model/test_parts.py::test_logits",
    ),
    (
        "a gradient of one head's norm for all",
        "norm.pyx",
        "norm.kind.backward(row, norm.weight + i * h.each,",
        "norm.kind.backward(row, norm.weight,",
        "train/test_parts.py::test_gradients",
    ),
    (
        "erf without its last coefficient",
        "vmath.pxd",
        "p = vf_fma(p, t, vf_set1(0.27793535))",
        "p = vf_mul(p, t)",
        "kernels/test_dense_layers.py::test_curves",
    ),
    (
        "GELU's slope with a coarser bell",
        "mlp.pyx",
        "vf_mul(x, vf_set1(0.3989422804014327))",
        "vf_mul(x, vf_set1(0.3989))",
        "kernels/test_dense_layers.py::test_curves_backward",
    ),
    (
        "the logits' gradient without their scale",
        "block.pxd",
        "scale_row(dlogits, c.logit_scale, n, dlogits)",
        "pass",
        "train/test_parts.py::test_gradients",
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

PRODUCTS = table(
    "pyx/products",
    (
        "a block with NaN is rounded as if it were zeros",
        "inputs.pyx",
        "x.scale8[at] = amax * <float>(1.0 / 127)",
        "x.scale8[at] = (amax if amax == amax else 0) * <float>(1.0 / 127)",
        "kernels/test_not_numbers.py::test_products",
    ),
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

STEPS = table(
    "pyx/steps",
    (
        "a branch's gradient without its scale",
        "trainrows.pxd",
        "scale_row(dx + at, c.residual_scale, c.embd_p, dy + at)",
        "scale_row(dx + at, 1, c.embd_p, dy + at)",
        "train/test_parts.py::test_gradients",
    ),
    (
        "the MLP of a parallel layer in attention's gradient",
        "trainlayers.pyx",
        "            if self.weights.blocks[layer].parallel:",
        "            if False:",
        "train/test_parts.py::test_gradients",
    ),
    (
        "norms of whole rows are left out where only some queries are wanted",
        "decoderlayers.pyx",
        "if t >= first_query and s.M:",
        "if t > first_query and s.M:",
        "model/test_parts.py::test_rounded_activations",
    ),
    (
        "a recomputed MLP without what the norm behind it saw",
        "trainlayers.pyx",
        "if onward or l.post_ffw_norm.weight != NULL:",
        "if onward:",
        "train/test_parts.py::test_gradients",
    ),
    (
        "results that are no numbers are returned",
        "decoder.pyx",
        "if s.astray:",
        "if False:",
        "model/test_not_finite.py::test_nan_in_an_adapter_ends_the_step",
        "test_overflow.py::test_main_ends_in_one_line",
    ),
    (
        "two steps of one session at a time",
        "weights.pyx",
        "if busy[0]:",
        "if False:",
        "model/test_concurrency.py::test_a_second_step_of_a_session_is_refused_and_leaves_the_first_as_it_is",
        "model/test_concurrency.py::test_a_second_pass_of_a_trainer_is_refused",
    ),
    (
        "what pads keys and values counts in the gradient's norm",
        "trainrows.pxd",
        "for j in range(end, <int>padded(end, 16)):",
        "for j in range(end, end):",
        "model/test_family_facts.py::test_logits_greedy_tokens_and_training",
    ),
    (
        "adapters change while a step runs",
        "weights.pyx",
        "if self.steps:",
        "if False:",
        "model/test_concurrency.py::test_adapters_do_not_change_during_a_step",
    ),
    (
        "steps run while an adapter is added",
        "weights.pyx",
        "if self.steps < 0:",
        "if False:",
        "model/test_concurrency.py::test_no_step_begins_while_an_adapter_is_added",
    ),
)

COMMON = table(
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
