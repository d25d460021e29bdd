"""Mistakes of measuring: what is compared with what, and what counts."""

from tests.mutants.table import table

EVALUATION = table(
    "llamacy/evaluation",
    (
        "what happens among the unlikely words is left out",
        "reference.py",
        "kl += rest * float(terms[n:].mean())",
        "kl += 0.0",
        "evaluation/test_divergence.py::test_the_table_says_what_numpy_does",
    ),
    (
        "the divergence turned round",
        "reference.py",
        "terms = np.expm1(log_ratio) - log_ratio",
        "terms = np.expm1(-log_ratio) + log_ratio",
        "evaluation/test_divergence.py::test_the_table_says_what_numpy_does",
    ),
    (
        "a check sum that is not looked at",
        "reference.py",
        'if int(np.frombuffer(self._read(4), "<u4")[0]) != found:',
        "if self._read(4) is None:",
        "evaluation/test_divergence.py::test_damage_is_found",
    ),
    (
        "what lies below llama.cpp's range counts",
        "logits_file.py",
        "low = max(row.min(), high - RANGE)",
        "low = row.min()",
        "evaluation/test_divergence.py::test_llama_cpp_s_file_is_as_its_source_says",
    ),
    (
        "a choice scored with the end of its answer",
        "questions.py",
        "while not ended and end > begin and ids[end - 1] in self._tokenizer.eog_ids:",
        "while ended and end > begin and ids[end - 1] in self._tokenizer.eog_ids:",
        "evaluation/test_questions.py::test_choices_are_scored_as_whole_sequences",
        "evaluation/test_questions.py::test_pairs_are_two_choices_with_their_ends",
    ),
    (
        "a prefix taken as read that differs",
        "answering.py",
        "while kept < most and self._held[kept] == ids[kept]:",
        "while kept < most:",
        "evaluation/test_questions.py::test_every_form_of_choices_is_the_same_question",
        "evaluation/test_questions.py::test_loss_is_training_s",
    ),
    (
        "an engine that keeps the adapters' scales",
        "answering.py",
        "model.set_adapter_scale(index, scale)",
        "pass",
        "evaluation/test_questions.py::test_a_loss_behind_generated_answers_is_with_the_adapter_s_scale",
    ),
)
