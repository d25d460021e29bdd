"""Questions with answers and with choices: every form, scores and answers against the engine, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

import llamacy
from llamacy.cli import evaluate
from llamacy.cli.run import run
from llamacy.evaluation.matching import MATCHES, normalised
from llamacy.formats.adapter import load_adapter, save_adapter
from tests.server.test_server_command import ADAPTER, MODEL

ASK = "What may I do with it?"
PROMPT = f"### Instruction:\n{ASK}\n### Response:\n"
CHOICES = ["copy", "sell", "nothing at all"]


@pytest.fixture
def asked(tmp_path, capsys):
    """Evaluate records; return (the rows, the answers)."""

    def ask(records, *more, code=0):
        path, answers = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        line = ["-m", MODEL, "--data", path, "--json", "--save-answers", answers, "-t", 1, *more]
        assert run(evaluate.main, [*map(str, line)]) == code
        out, err = capsys.readouterr()
        if code:
            assert err.count("\n") == 1 and not answers.exists()
            return err
        return json.loads(out), [json.loads(line) for line in answers.read_text().splitlines()], err

    return ask


def logp(model, prompt, answer, end=()):
    """The sum of an answer's log-probabilities behind a prompt, of one pass over both."""
    ids, more = model.tokenize(prompt), [*model.tokenizer.encode(answer, add_special=False), *end]
    return float(model.score([*ids, *more]).logprobs[len(ids) - 1 :].sum())


def test_choices_are_scored_as_whole_sequences(asked):
    [row], [answer], _ = asked([{"question": ASK, "choices": CHOICES, "answer": 1}])
    with llamacy.load(MODEL, threads=1) as model:
        wanted = [logp(model, PROMPT, text) for text in CHOICES]
    assert answer["logprobs"] == pytest.approx(wanted, abs=1e-5) and answer["prompt"].endswith(PROMPT)
    assert answer["chosen"] == int(np.argmax(wanted)) and answer["right"] == 1
    assert answer["chosen_norm"] == int(np.argmax([w / len(c) for w, c in zip(wanted, CHOICES, strict=True)]))
    assert row["acc"] == float(answer["chosen"] == 1) and row["acc_norm"] == float(answer["chosen_norm"] == 1)
    assert row["n_questions"] == 1 and "accuracy" not in row


FORMS = [
    {"question": ASK, "choices": CHOICES, "answer": "nothing at all"},
    {"question": ASK, "choices": CHOICES, "answer": 2, "id": "x"},
    {"question": ASK, "choices": CHOICES, "answer": "C"},
    {"question": ASK, "options": CHOICES, "label": "2"},
    {"instruction": ASK, "choices": {"text": CHOICES, "label": ["1", "2", "3"]}, "answerKey": "3"},
    {"question": ASK, "options": dict(zip("ABC", CHOICES, strict=True)), "answer": "C"},
    {"prompt": PROMPT, "endings": CHOICES, "gold": 2},
]


def test_every_form_of_choices_is_the_same_question(asked):
    rows, answers, err = asked(FORMS)
    assert all(answer["right"] == 2 and answer["choices"] == CHOICES for answer in answers) and len(answers) == len(
        FORMS
    )
    assert all(answer["logprobs"] == answers[0]["logprobs"] for answer in answers)
    assert '"id" in 1 record' in err
    chosen = answers[0]["chosen"] == 2
    assert rows[0]["acc"] == float(chosen)


def test_choices_to_a_conversation(asked, tmp_path):
    record = {"messages": [{"role": "user", "content": ASK}], "choices": CHOICES, "answer": 0}
    _, [answer], _ = asked([record], "--chat-template", "chatml")
    with llamacy.load(MODEL, threads=1) as model:
        prompt = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
        ids = model.tokenizer.encode(prompt + CHOICES[0] + "<|im_end|>\n", add_special=False)
        begin = len(model.tokenizer.encode(prompt, add_special=False))
        wanted = model.score([model.tokenizer.bos_id, *ids]).logprobs[begin:]
    assert answer["logprobs"][0] <= wanted[0] + 1e-5 and answer["prompt"].endswith(prompt)


def test_pairs_are_two_choices_with_their_ends(asked):
    [row], [answer], _ = asked([{"prompt": PROMPT, "chosen": "copy", "rejected": "copy it"}])
    with llamacy.load(MODEL, threads=1) as model:
        end = [model.tokenizer.eos_id]
        wanted = [logp(model, PROMPT, text, end) for text in ("copy", "copy it")]
    assert answer["logprobs"] == pytest.approx(wanted, abs=1e-5)
    assert row["acc"] == float(wanted[0] > wanted[1]) and answer["right"] == 0


def test_answers_are_what_the_model_writes(asked):
    with llamacy.load(MODEL, adapters=[ADAPTER], threads=1) as model:
        said = [str(model.generate(prompt, max_tokens=8, temperature=0)) for prompt in (PROMPT, "x")]
    records = [{"question": ASK, "answer": said[0]}, {"prompt": "x", "completion": "quite another"}]
    rows, answers, _ = asked(records, "--lora", ADAPTER, "-n", 8)
    assert [answer["got"] for answer in answers[2:]] == said
    assert [row["accuracy"] for row in rows] == [float(answers[0]["got"] == said[0]) / 2, 0.5]
    assert answers[2]["correct"] and not answers[3]["correct"] and answers[0]["wanted"] == [" " + said[0]]


def test_loss_is_training_s(asked, tmp_path):
    """The mean over all trained tokens, ends included, as the first validation loss of a run."""
    records = [{"question": ASK, "answer": "copy"}, {"question": "Why?", "answer": "it is free software and more"}]
    [row], _, _ = asked(records, "--activations", "f32")
    found = llamacy.finetune(MODEL, records, validation=records, max_steps=1, learning_rate=1e-12, activations="f32")
    assert row["loss"] == pytest.approx(found.validation[-1][1], rel=1e-4)


def test_a_loss_behind_generated_answers_is_with_the_adapter_s_scale(asked, tmp_path):
    """An engine sets scales of its own: the loss that is measured after it has those that were asked for."""
    path = tmp_path / "pairs-alone.gguf"
    save_adapter(path, replace(load_adapter(ADAPTER), norms={}))
    rows, _, _ = asked([{"prompt": "x", "completion": "y z"}], "--lora", f"{path}:0.25", "-n", 2)
    with llamacy.load(MODEL, adapters=[(path, 0.25)], threads=1) as model:
        total = logp(model, "x", "y z", [model.tokenizer.eos_id])
        n = len(model.tokenizer.encode("y z", add_special=False)) + 1
    assert rows[1]["loss"] == pytest.approx(-total / n, abs=1e-5)


def test_several_right_answers(asked):
    _, [answer], _ = asked([{"question": ASK, "answer": ["copy", "sell"]}])
    assert answer["wanted"] == [" copy", " sell"]  # SentencePiece's spaces, as training has them


@pytest.mark.parametrize(
    ("match", "text", "wanted", "same"),
    [
        ("normalised", " Paris. ", "paris", True), ("normalised", "２０２７\n年", "2027 年", True),
        ("normalised", "是。", "是", True), ("normalised", "Paris, France", "Paris", False),
        ("normalised", "wait..", "wait", False), ("exact", "Paris ", "Paris", True), ("exact", "paris", "Paris", False),
        ("first-line", "\nParis\nand so on", "paris", True), ("contains", "It is PARIS, yes", "paris", True),
        ("contains", "It is Rome", "paris", False), ("first-line", "", "x", False),
    ],
)  # fmt: skip
def test_matches(match, text, wanted, same):
    assert MATCHES[match](text, wanted) is same


def test_normalising_twice_changes_nothing():
    for text in ("A  B.", "…", "ß.", "Ⅷ 。", "x. ."):
        once = normalised(text)
        assert normalised(once) == once or once.endswith(".")


WRONG = [
    ({"question": ASK, "choices": CHOICES}, 'without "answer"'),
    ({"question": ASK, "choices": CHOICES, "answer": 3}, "wanted one of the 3 choices"),
    ({"question": ASK, "choices": CHOICES, "answer": "D"}, "wanted one of the 3 choices"),
    ({"question": ASK, "choices": CHOICES, "answer": True}, "wanted one of the 3 choices"),
    ({"question": ASK, "choices": CHOICES, "answer": [0]}, "wanted one of the 3 choices"),
    ({"question": ASK, "choices": ["one"], "answer": 0}, "two texts or more"),
    ({"question": ASK, "choices": "copy", "answer": 0}, "two texts or more"),
    ({"question": ASK, "choices": {"text": CHOICES, "label": ["A"]}, "answer": "A"}, "two texts or more"),
    ({"choices": CHOICES, "answer": 0}, "choices without a question"),
    ({"other": 1}, "missing keys"),
]


@pytest.mark.parametrize(("record", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_no_question(record, said, asked):
    assert said in (error := asked([record], code=1)) and "q.jsonl:1" in error


def test_what_cannot_be_measured_together(asked, tmp_path, capsys):
    both = [FORMS[0], {"question": ASK, "answer": "copy"}]
    assert "evaluate them apart" in asked(both, code=1)
    assert "within 8 tokens" in asked([FORMS[0]], "-c", 8, code=1)
    rows, _, err = asked([FORMS[0], {"question": ASK, "choices": ["copy", "long " * 99], "answer": 0}], "-c", 60)
    assert rows[0]["n_questions"] == 1 and "left out, longer than 60 tokens: 1" in err
    text = tmp_path / "plain.txt"
    text.write_text("no question here, " * 50)
    for line, said in ((["--data", text], "no answers to check"), ([], "nothing to measure")):
        assert run(evaluate.main, ["-m", str(MODEL), *map(str, line)]) == (1 if line else 2)
        assert said in capsys.readouterr().err


def test_several_models_and_adapters_in_the_order_given(asked):
    rows, _, _ = asked([FORMS[0]], "-m", MODEL, "--lora", f"{ADAPTER}:0.5", "--lora", f"{ADAPTER},{ADAPTER}:0")
    assert [row["adapters"] for row in rows] == [
        [], [], [[str(ADAPTER), 0.5]], [[str(ADAPTER), 1.0], [str(ADAPTER), 0.0]],
    ]  # fmt: skip
    assert rows[0] == {**rows[1]} and rows[2]["name"].endswith(":0.5")


def test_from_python(tmp_path):
    records = [{"question": ASK, "choices": CHOICES, "answer": 0}]
    with llamacy.load(MODEL, threads=1) as model:
        model.adapters.add(ADAPTER, 0.5)
        before = model.logits("This License")
        found = llamacy.evaluate([model, MODEL], records, adapters=[(ADAPTER, 0.5)], threads=1)
        assert np.array_equal(model.logits("This License"), before)
    assert [len(row.adapters) for row in found] == [0, 1, 0, 1]
    # the open model has its adapter, the path has not: what is named is added
    assert found[0].answers == found[3].answers != found[2].answers
    assert str(found).count("\n") == 5 and found.as_dicts()[0]["acc"] == found[0].acc.value
    object_too = llamacy.evaluate(MODEL, records, adapters=[load_adapter(ADAPTER)], threads=1)
    assert object_too[1].answers == llamacy.evaluate(MODEL, records, adapters=[ADAPTER], threads=1)[1].answers
    with pytest.raises(llamacy.LlamacyError, match="match: wanted one of normalised"):
        llamacy.evaluate(MODEL, records, match="near")
    with pytest.raises(llamacy.LlamacyError, match="nothing to measure"):
        llamacy.evaluate(MODEL)
