"""Chat templates as programs: whatever one does, a rendering ends within its limits and in one line."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jinja2
import pytest

from llamacy.errors import LlamacyError, RequestError
from llamacy.text import chat, jinja

ROOT = Path(__file__).resolve().parents[2]
ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def processes(monkeypatch):
    """The jinja processes that the test starts, in order; those of other tests are not used, and none is left."""
    jinja._pool.close()
    started, init = [], jinja._Process.__init__

    def noted(self):
        init(self)
        started.append(self)

    monkeypatch.setattr(jinja._Process, "__init__", noted)
    yield started
    jinja._pool.close()
    assert all(process._process.returncode is not None for process in started)


@pytest.fixture
def hurried(processes, monkeypatch):
    monkeypatch.setattr(jinja, "SECONDS", 0.2)
    return processes


def render(template, messages=ASK, **how):
    return chat.render(messages, chat.Template(template, "of-the-test"), **({"bos": "<s>", "eos": "</s>"} | how))


def refused(template, messages=ASK):
    """Return what is said of a template that must fail, in one line, as the request's failure."""
    with pytest.raises(RequestError) as caught:
        render(template, messages)
    line = str(caught.value)
    assert line.isprintable() and len(line) <= 1200 and line.startswith("the chat template of-the-test ")
    return line.removeprefix("the chat template of-the-test ")


def in_loop(n, *body):
    return "{% set ns = namespace(x='x', y=[1], z=[1], t=()) %}{% for i in range(" + str(n) + ") %}" + "".join(body)


ENDLESS = {
    "two ranges": in_loop(99999, "{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    "a power": "{{ 10 ** (10 ** 9) }}",
    "rounding": "{{ 1 | round(10 ** 9, 'ceil') }}",
    "a tree of macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "comparing": in_loop(
        60, "{% set ns.y = [ns.y, ns.y] %}{% set ns.z = [ns.z, ns.z] %}{% endfor %}{{ ns.y == ns.z }}"
    ),
    "compiling": "{% for a in [1] %}" * 150 + "{% endfor %}" * 150,
    "a filter over a range": "{{ range(99999) | map('center', 9999) | map('upper') | map('length') | sum * 0 }}" * 99,
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_what_runs_for_ever_is_ended(hurried, template):
    assert refused(template) == "takes more than 1 s of processor time on this conversation"
    assert render("{{ messages[0].content }}") == "Hi"
    assert len(hurried) == 2  # and the next template has a process of its own


HUGE = {
    "a product": "{{ 'x' * 10 ** 9 }}",
    "a product beyond any memory": "{{ 'x' * 10 ** 15 }}",
    "a list": "{{ ([0] * 10 ** 9) | length }}",
    "doubling": in_loop(60, "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"),
    "joining": in_loop(60, "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"),
    "printf": "{{ '%999999999d' % 1 }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "a method": "{{ 'x'.center(10 ** 9) }}",
    "another": "{{ '\t'.expandtabs(10 ** 9) }}",
    "of a number": "{{ (1).to_bytes(10 ** 10, 'big') | length }}",
    "a filter": "{{ 'x\ny' | indent(10 ** 9) }}",
    "replacing": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "a separator": "{{ range(99999) | join('y' * 100000) }}",
    "a batch": "{{ [1] | batch(10 ** 9, 0) | list | length }}",
    "json": "{{ messages | tojson(indent=10 ** 9) }}",
}


# In a process of its own: the system keeps the peak of all children that a process ever had, the test's own among them.
PEAKS = """
import resource, sys
from llamacy.errors import RequestError
from llamacy.text import chat, jinja

template = chat.Template(sys.stdin.read(), "of-the-test")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    chat.render([{"role": "user", "content": "Hi"}], template, bos="<s>", eos="</s>")
except RequestError as error:
    print(error)
jinja._pool.close()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("template", HUGE.values(), ids=HUGE)
def test_what_wants_gigabytes_is_denied_them(template):
    done = subprocess.run([sys.executable, "-c", PEAKS], input=template, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said, children, own = done.stdout.splitlines()
    assert said == "the chat template of-the-test takes more than 256 MB of memory on this conversation"
    assert int(children) < 320 << 10
    assert int(own) < 16 << 10


def test_output_is_bounded(hurried, monkeypatch):
    monkeypatch.setattr(jinja, "SECONDS", 10)
    endless = in_loop(99999, "{% for j in range(99999) %}" + "x" * 500 + "{% endfor %}{% endfor %}")
    assert refused(endless) == "writes more than 8388608 characters for this conversation"
    assert len(render("{{ 'é' * (8388608 - 1) }}x")) == 8388608


def test_a_crash_of_python_is_one_line(processes):
    # The hash of a tuple goes as deep as the tuple does, without a check.
    nested = in_loop(99999, "{% set ns.t = (ns.t,) %}{% endfor %}{{ {ns.t: 1} | length }}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja, "SECONDS", 30)
        try:
            assert render(nested) == "1"  # a Python that checks
        except RequestError as error:
            assert "ends its process on this conversation: signal 11" in str(error)
    assert render("x") == "x"


INVALID = {
    "{% if %}": "line 1: Expected an expression",
    "\n\n{{ 1 | nope }}": "line 3: No filter named 'nope'",
    "{{ 1 is nope }}": "line 1: No test named 'nope'",
    "{% nope %}": "line 1: Encountered unknown tag 'nope'",
    "{% break %}": "is not valid: 'break' outside loop",
    "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}": "nested too deeply",
    "{{ a" + ".b" * 5000 + " }}": "nested too deeply",
    "{{ " + " + ".join("1" * 5000) + " }}": "nested too deeply",
    "{% if a %}" + "{% elif a %}" * 3000 + "{% endif %}": "nested too deeply",
    "".join(f"{{% for a{i} in [1] %}}" for i in range(30)) + "{% endfor %}" * 30: "too many statically nested blocks",
    "{{ " + "9" * 5000 + " }}": "ValueError: Exceeds the limit",
    "{% macro f(a, a) %}{% endmacro %}": "duplicate argument",
    "{% block a %}{% endblock %}{% block a %}{% endblock %}": "block 'a' defined twice",
    "x" * (1 << 20) + "y": "wanted at most 1048576 characters, got 1048577",
}


@pytest.mark.parametrize(("template", "message"), INVALID.items(), ids=map(str, range(len(INVALID))))
def test_what_cannot_be_compiled_is_one_line(template, message):
    said = refused(template)
    assert message in said and said.startswith("is not valid: ") and "<template>" not in said
    assert refused(template) == said  # what is remembered of it as well


FAILING = {
    "{{ raise_exception('\x1b[31m' + 'a' * 100000) }}": r"refuses this conversation: \x1b[31maaaa",
    "{{ raise_exception('two\nlines') }}": "refuses this conversation: two lines",
    "{{ raise_exception({'a': 1}) }}": "refuses this conversation: {'a': 1}",
    "{{ raise_exception() }}": "fails on this conversation: TypeError",
    "{{ a.b.c }}": "refuses this conversation: 'a' is undefined",
    "{{ 'a' + 1 }}": "fails on this conversation: TypeError",
    "{{ strftime_now(5) }}": "fails on this conversation: TypeError",
    "{{ range | tojson }}": "fails on this conversation: TypeError",
    "{{ [] | tojson(separators=5) }}": "fails on this conversation: TypeError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "fails on this conversation: RecursionError",
    "{% include 'x' %}": "fails on this conversation: TypeError: no loader",
    "{{ range(10 ** 6) }}": "fails on this conversation: OverflowError",
}


@pytest.mark.parametrize(("template", "message"), FAILING.items(), ids=map(str, range(len(FAILING))))
def test_what_fails_is_one_line(template, message):
    assert refused(template).startswith(message)


def test_what_json_cannot_hold_is_one_line():
    for odd in (object(), 10**5000, {"a": float("nan"), ("b",): 1}):
        with pytest.raises(RequestError, match="cannot be given this conversation"):
            render("x", [{"role": "user", "content": odd}])


TOOLS = [{"type": "function", "function": {"name": f"tool_{i}", "parameters": {"type": "object"}}} for i in range(40)]
# What real templates are made of: tools as JSON, a state in a namespace, macros, slices, tests, filters and methods.
REAL = """\
{%- macro said(message) -%}
{{- '<|' + message['role'] + '|>' + bos_token ~ (message.content | trim) -}}
{%- endmacro -%}
{%- set ns = namespace(last=-1, system='') -%}
{%- for message in messages[::-1] -%}
    {%- if message.role == 'user' and ns.last < 0 %}{% set ns.last = messages | length - 1 - loop.index0 %}{% endif -%}
{%- endfor -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.system = messages[0]['content'].strip() -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{{- ns.system }}
{% if tools is defined and tools is not none -%}
    {%- for tool in tools | selectattr('type', 'equalto', 'function') %}
{{ tool | tojson(indent=2) }}
    {%- endfor %}
{% endif -%}
{%- for message in rest -%}
    {%- if loop.previtem is defined and loop.previtem.role == message.role -%}
        {{- raise_exception('roles must alternate') -}}
    {%- elif message.content is string and '</think>' in message.content -%}
        {{- message.content.split('</think>')[-1].lstrip('\\n') + eos_token -}}
    {%- else -%}
        {{- said(message) + (eos_token if message.role == 'assistant' else '') }}
    {%- endif -%}
    {%- if loop.index0 > ns.last %}{% continue %}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
"""


def plainly(template, **values):
    """Jinja without limits, in this process: what transformers does."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, indent: __import__("json").dumps(value, indent=indent)

    def raise_exception(message):
        raise AssertionError(message)

    return environment.from_string(template).render(raise_exception=raise_exception, **values)


def test_a_long_conversation_renders_as_without_limits(smollm2_metadata):
    system = {"role": "system", "content": " Be brief. "}
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"<think>{i}</think>\n" * (i % 3) + "日本語 😀 ab " * 200}
        for i in range(600)
    ]
    assert sum(len(turn["content"]) for turn in turns) > 1_000_000
    for template in (REAL, chat.template_for(smollm2_metadata)):
        values = {"tools": TOOLS, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
        wanted = plainly(template, messages=[system, *turns], **values)
        assert render(template, [system, *turns], tools=TOOLS) == wanted and len(wanted) > 500_000


def test_one_process_serves_many_templates_and_texts(processes):
    for i in range(20):
        assert render(f"{{{{ messages[0].content }}}}{i % 3}", [{"role": "user", "content": f"é\ud800{i}"}]) == (
            f"é\ud800{i}{i % 3}"
        )
    assert len(processes) == 1 and os.getsid(processes[0]._process.pid) != os.getsid(0)


def test_threads_have_two_processes_at_most_and_one_is_kept(processes):
    texts = []
    threads = [threading.Thread(target=lambda i=i: texts.append(render("{{ 1 }}" + str(i)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(texts) == [f"1{i}" for i in range(8)]
    assert sum(process._process.returncode is None for process in processes) == 1


def test_a_process_that_is_killed_or_gone_is_replaced(processes):
    assert render("a") == "a"
    processes[0]._process.kill()
    processes[0]._process.wait()
    assert refused("a") == "ends its process on this conversation: signal 9"
    assert render("a") == "a"


def test_a_forked_child_has_processes_of_its_own(processes):
    assert render("a") == "a"
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if render("b") == "b" and len(processes) == 2 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert render("c") == "c" and len(processes) == 1


def test_no_process_is_left_when_the_program_is_killed():
    script = (
        "import os, signal\nfrom llamacy.text import chat, jinja\n"
        "print(chat.render([], 'x', bos='', eos=''), jinja._pool._idle._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    text, pid = done.stdout.split()
    assert text == "x" and done.returncode == -9
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_jinja2_the_error_names_the_extra(processes, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "jinja2").exists()])
    with pytest.raises(LlamacyError, match=r"of-the-test needs jinja2 .*llamacy\[chat\]") as caught:
        render("{{ messages }}")
    assert not isinstance(caught.value, RequestError)  # the request is not at fault
    assert chat.render(ASK, "chatml", bos="", eos="")


def test_without_a_process_to_be_had_the_error_names_a_way_out(processes, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(LlamacyError, match="cannot be started: .*--chat-template chatml"):
        render("x")
