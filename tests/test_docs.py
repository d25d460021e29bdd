"""What the documents say is true: flags exist, commands parse, targets and files are there, both READMEs agree."""

import re
import shlex
from pathlib import Path

import pytest

from tools.commands_doc import PAGE, commands, parser_of, render

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def code_lines(document, language="sh"):
    """Yield the shell lines of a document's code blocks, those continued with a backslash joined."""
    for block in re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.S | re.M):
        yield from filter(None, block.replace("\\\n", " ").splitlines())


def calls(document):
    """Yield (command, arguments) of every call of a script in bin/ in a document's shell blocks."""
    for line in code_lines(document):
        for part in re.split(r"\s(?:&&|\||&)(?:\s|$)", line):
            words = shlex.split(part, comments=True)
            if words and (words[0].startswith("./bin/") or words[0].startswith("bin/")):
                yield Path(words[0]).name, words[1:]


def test_the_page_of_commands_is_what_they_say():
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make docs`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_in_documents_parse(document):
    for command, arguments in calls(document):
        assert command in commands()
        if not {"--help", "--version"} & set(arguments):
            parser_of(command).parse_args(arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_make_targets_in_documents_exist(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = [*code_lines(document), *re.findall(r"`(make(?: [\w-]+)?)`", document.read_text(encoding="utf-8"))]
    named = [word for line in lines for word in re.findall(r"(?:^|&& )make ([\w-]+)", line)]
    assert set(named) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_in_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert target.startswith("http") or (document.parent / target).exists(), target


def test_both_readmes_show_the_same_commands():
    english, chinese = (
        [shlex.split(line, comments=True) for line in code_lines(ROOT / name)] for name in ("README.md", "README.zh.md")
    )
    assert list(filter(None, english)) == list(filter(None, chinese))
    assert len(list(calls(ROOT / "README.md"))) >= 5


def picture_entry(folder):
    """Return what docs/architecture.md's picture says of a folder of llamacy/."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text[text.index("```") : text.index("```", text.index("```") + 3)]
    package = picture[picture.index("\nllamacy/") : picture.index("\ntests/")]
    return re.search(rf"^  {folder}/?\s(?:.*\n)(?:   .*\n?)*", package, re.M)[0]


@pytest.mark.parametrize("path", sorted((ROOT / "llamacy").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_is_in_the_picture(path):
    folder = path.relative_to(ROOT / "llamacy").parts[0].removesuffix(".py")
    if path.stem != "__init__":
        assert re.search(rf"\b{path.stem}\b", picture_entry(folder)), "add it to the picture in docs/architecture.md"
