"""The chat page in a real browser (`make test-page`): nothing typed is lost; answers are marked, kept and compared."""

import json

import pytest

from tests.generate.fakes import EOS, FakeModel
from tests.page.browser import Browser, chromium
from tests.server.service import serving

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium: apt-get install chromium")
ANSWER = "# Title\n\n**bold** and `code` <b>no tag</b>\n\n```py\nprint(1)\n```\n\n- one\n- two\n\n$$x^2$$"
AGAIN = "[...document.querySelectorAll('.assistant button')].find((e) => e.textContent === 'Answer again').click()"
EDIT = "[...document.querySelectorAll('.user button')].find((e) => e.textContent === 'Edit').click()"
USE = "[...document.querySelectorAll('.columns button')].find((e) => e.textContent === 'Use this answer').click()"
SIZES = "[...document.querySelectorAll('input, textarea, select')].map((e) => getComputedStyle(e).fontSize)"
SEND = "document.getElementById('form').requestSubmit()"


class Saying(FakeModel):
    """Says a text to whatever it is asked, with an adapter another one."""

    def logits(self, seen, scales):
        row = super().logits(seen, scales)
        text = b"with an adapter" if any(scales) else ANSWER.encode()
        ids = bytes(id for id in seen[1:].tolist() if id < 256)
        _, _, said = ids.rpartition(b"<|im_start|>assistant\n")
        row[text[len(said)] if len(said) < len(text) else EOS] += 60
        return row


@pytest.fixture(scope="module")
def service():
    with serving(Saying(adapters=1), n_ctx=2000, chat_template="chatml") as running:
        running.engine.lora = (0.0,)
        yield running


@pytest.fixture
def page(service):
    browser = Browser(f"http://127.0.0.1:{service.port}/")
    browser.until("document.getElementById('model').textContent === 'fake'")
    yield browser
    browser.close()
    assert browser.errors == []


def type_(page, text):
    page.run(f"(() => {{ const e = document.getElementById('text'); e.value = {json.dumps(text)};"
             "e.dispatchEvent(new Event('input')); })()")  # fmt: skip


def answers(page):
    return page.run("[...document.querySelectorAll('.assistant .text')].map((e) => e.innerText)")


DONE = "document.getElementById('send').textContent === 'Send' && document.querySelectorAll('.assistant').length"


def say(page, text):
    type_(page, text)
    page.run(SEND)
    page.until(DONE)


def test_an_answer_is_shown_as_markdown_and_kept(page, service):
    say(page, "hello")
    html = page.run("document.querySelector('.assistant .text').innerHTML")
    assert "<strong>bold</strong>" in html and "<code>print(1)</code>" in html and "<li>one</li>" in html
    assert "&lt;b&gt;no tag&lt;/b&gt;" in html and 'class="math">$$x^2$$' in html and "<pre>" in html
    assert "tokens/s" in page.run("document.querySelector('.assistant .tools').textContent")
    assert page.run("!document.getElementById('context').hidden")
    page.open(f"http://127.0.0.1:{service.port}/")
    page.until("document.querySelectorAll('.assistant').length")
    assert page.run("document.querySelector('.user').textContent").startswith("hello")
    assert len(page.run("[...document.querySelectorAll('#list li')].map((e) => e.textContent)")) == 1
    page.run("document.getElementById('new').click()")
    say(page, "second")
    assert len(page.run("[...document.querySelectorAll('#list li')].map((e) => e.textContent)")) == 2


def test_a_draft_survives(page, service):
    type_(page, "half a thought")
    page.open(f"http://127.0.0.1:{service.port}/")
    page.until("document.getElementById('text').value === 'half a thought'")


def test_stopping_before_the_first_token_loses_nothing(page, service):
    service.session.gate.clear()
    type_(page, "are you there")
    page.run(SEND)
    page.until("document.getElementById('send').textContent === 'Stop'")
    page.run(SEND)
    page.until("document.getElementById('send').textContent === 'Send'")
    service.session.gate.set()
    assert "stopped" in page.run("document.querySelector('.assistant .tools').textContent")
    assert page.run("document.querySelector('.user').textContent").startswith("are you there")
    page.run(AGAIN)
    page.until(DONE + " && document.querySelector('.assistant .text').textContent.includes('bold')")


def test_an_overflow_is_said_and_the_question_stays(page):
    say(page, "word " * 600)
    assert "context" in page.run("document.querySelector('.problem').textContent")
    assert page.run("document.querySelector('.user').textContent").startswith("word word")


def test_editing_keeps_what_was(page):
    say(page, "first question")
    page.run(EDIT)
    assert page.run("document.getElementById('text').value") == "first question"
    say(page, "better question")
    titles = page.run("[...document.querySelectorAll('#list .title')].map((e) => e.textContent)")
    assert "first question (before an edit)" in titles and "better question" in titles


def test_base_and_adapter_side_by_side(page):
    page.until("document.querySelector('#s-beside option[value=\"lora:a0\"]')")
    page.run(
        "for (const [id, v] of [['s-with', 'base'], ['s-beside', 'lora:a0']]) {"
        "const e = document.getElementById(id); e.value = v; e.dispatchEvent(new Event('change')); }"
    )
    say(page, "hello")
    page.until("document.querySelectorAll('.columns .assistant').length === 2")
    one, other = answers(page)
    assert "bold" in one and other.strip() == "with an adapter"
    page.run(USE)
    assert page.run("document.querySelectorAll('.columns .assistant')[1].classList.contains('chosen')")


def test_export_and_import(page):
    say(page, "keep me")
    text = page.run("import('/web/store.js').then((store) => store.exported())")
    assert json.loads(text)["conversations"][0]["messages"][0]["content"] == "keep me"
    n = page.run(f"import('/web/store.js').then((store) => store.imported({json.dumps(text)}))")
    assert n == 1 and page.run("import('/web/store.js').then((store) => store.all().length)") == 2


def test_chinese_and_phones(service, tmp_path):
    browser = Browser(f"http://127.0.0.1:{service.port}/", (380, 700))
    try:
        browser.until("document.getElementById('model').textContent === 'fake'")
        browser.run(
            "(() => { const e = document.getElementById('language'); e.value = 'zh';"
            "e.dispatchEvent(new Event('change')); })()"
        )
        assert browser.run("document.getElementById('send').textContent") == "发送"
        sizes = browser.run(SIZES)
        assert set(sizes) == {"16px"}
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.picture(tmp_path / "phone.png")
    finally:
        browser.close()
