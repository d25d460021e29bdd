"""A run as one page of HTML, which needs nothing from outside: curves, perplexities, answers, settings."""

import html
import os
from dataclasses import dataclass, field, fields

from llamacy.errors import UsageError
from llamacy.formats.atomic import atomic_write
from llamacy.train.comparison import Comparison
from llamacy.train.job import Job
from llamacy.train.plot import panels, svg
from llamacy.train.state import Progressed

# Answers that are shown of each prompt, the newest; characters of a text; rows of the settings' table.
MOST_ANSWERS, MOST_TEXT = 12, 4000
# What of a Job is shown: its fields and their flags.
JOB_FLAGS = {"train_data": "--train-data", "val_data": "--val-data", "max_samples": "--max-samples",
             "keep_empty": "--keep-empty", "sample_start": "--sample-start", "chat_template": "--chat-template",
             "template_kwargs": "--chat-template-kwargs", "init_lora": "--init-lora", "resume": "--resume",
             "lora_format": "--lora-format", "max_ram": "--max-ram"}  # fmt: skip
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5dae3 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #eceff4 }
td.n, th.n { text-align: right } th { font-weight: 600; white-space: nowrap }
pre, .text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .8rem; margin: .6rem 0 1.6rem }
.answers > div { background: #f5f7fa; border-radius: .4rem; padding: .6rem .8rem } .answers h3 { font-size: .8rem; margin: 0 0 .3rem; color: #5a6577 }
.prompt { border-left: 3px solid #1f5fbf; padding-left: .8rem } svg { max-width: 100%; height: auto }
.said { font-size: .85rem; color: #404a5c } b { font-weight: 600 }
"""  # noqa: E501
PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass
class Report:
    """What the page shows: title; facts [(name, value), ...]; said: lines that were said before the first step.

    settings: [(flag, value, is it another than the default), ...]; comparison None for none.
    """

    title: str
    facts: list = field(default_factory=list)
    said: list = field(default_factory=list)
    settings: list = field(default_factory=list)
    done: Progressed = field(default_factory=Progressed)
    comparison: Comparison | None = None


def settings_of(job, options):
    """Return what a run was told, as Report has it: its paths, then the options by their flags."""
    rows = [(flag, value, value != getattr(Job, name)) for name, flag in JOB_FLAGS.items()
            if (value := getattr(job, name)) not in (None, "", (), {}, False)]  # fmt: skip
    for each in fields(options):
        value = getattr(options, each.name)
        rows.append((each.metadata["flag"], value, value != each.default))
    return [("--model", job.model, False), *((flag, _plain(value), other) for flag, value, other in rows)]


def _plain(value):
    """Return a setting in words."""
    if isinstance(value, (tuple, list)):
        return ", ".join(" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value) or "none"
    if value is None:
        return "by itself"
    return ("no", "yes")[value] if isinstance(value, bool) else value


def check_report(path):
    """UsageError for a name that no browser would open."""
    if os.path.splitext(path)[1].lower() not in (".html", ".htm"):
        raise UsageError(f"--report: wanted a name ending in .html, got {path!r}")


def write_report(path, report):
    """Write a Report as a page at `path`, whole or not at all."""
    with atomic_write(path) as file:
        file.write(page(report).encode("utf-8", "replace"))


def page(report):
    """Return a Report as HTML."""
    done = report.done
    curves = svg(report.title, panels(done.losses, done.validation, done.rates, done.grad_norms))
    parts = [
        f"<h1>{_text(report.title)}</h1>",
        _table([(name, value) for name, value in report.facts]),
        "<h2>Curves</h2>",
        curves,
        *(_compared(report.comparison) if report.comparison else []),
        "<h2>Data and model</h2>",
        f'<pre class="said">{_text(chr(10).join(report.said), 20 * MOST_TEXT)}</pre>',
        "<h2>Settings</h2>",
        _settings(report.settings),
    ]
    return PAGE.format(title=_text(report.title), style=STYLE, body="\n".join(parts))


def _text(value, most=MOST_TEXT):
    """Return any text for a page: escaped, without what is no character, its beginning where it is long."""
    text = str(value)
    text = text if len(text) <= most else text[:most] + " ..."
    plain = "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
    return html.escape(plain)


def _table(rows, head=()):
    lines = [f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>"] if head else []
    lines += [f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows]
    return f"<table>{''.join(lines)}</table>"


def _settings(rows):
    cells = (
        f"<tr><td>{_text(name)}</td><td>{'<b>' if other else ''}{_text(value)}{'</b>' if other else ''}</td></tr>"
        for name, value, other in rows
    )
    return (
        f"<table><tr><th>flag</th><th>value, <b>bold</b> where it is not the default</th></tr>{''.join(cells)}</table>"
    )


def _compared(comparison):
    """Return the lines on perplexities and answers."""
    lines = []
    if comparison.perplexity:
        rows = (
            f'<tr><td>{_text(name)}</td><td class="n">{each.base:.4g}</td><td class="n">{each.adapter:.4g}</td>'
            f'<td class="n">{each.n} of {each.n_all}</td><td class="n">{each.n_tokens}</td></tr>'
            for name, each in comparison.perplexity.items()
        )
        head = "".join(f'<th class="n">{name}</th>' for name in ("base", "adapter", "samples", "tokens"))
        lines += ["<h2>Perplexity</h2>", f"<table><tr><th>data</th>{head}</tr>{''.join(rows)}</table>"]
    if comparison.answers:
        where = "not learnt" if comparison.held else "of the training data"
        lines.append(f"<h2>Answers before and after</h2><p>Greedy, to prompts {where}.</p>")
        for i, question in enumerate(comparison.questions):
            lines += _answers(question, [("base", comparison.answers[0].base[i])] + [
                (f"adapter, step {each.step}", each.adapter[i]) for each in comparison.answers[-MOST_ANSWERS:]
            ])  # fmt: skip
    return lines


def _answers(question, texts):
    cards = [("wanted", question.wanted), *texts]
    return [
        f'<div class="text prompt">{_text(question.prompt)}</div>',
        '<div class="answers">',
        *(f'<div><h3>{_text(name)}</h3><div class="text">{_text(text)}</div></div>' for name, text in cards),
        "</div>",
    ]
