"""What must hold for a page of the documents: everything that it names is there.

Conventions of pages, which readers see as well:

- Blocks of ``python`` run in order, in one namespace and an empty folder. One that begins with ``# NAME.py`` is that
  file too. One that begins with ``# Not run by the tests:`` is only compiled, and says why.
- Blocks of ``bash``, and indented ones, are commands. Those of this project are parsed as it would parse them; those of
  `updcomp` and `updcomp.edge` run, unless a word in capitals stands for something.
- `code` within a line is a flag, a command, a path or Python: what it names must be there.
"""

import inspect
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.documents import commands, names
from tests.documents.commands import OWN, PLACEHOLDER, ROOT

NOT_RUN = "# Not run by the tests:"

_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1`*[ ]*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    [^\n]+\n)+")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_VARIABLE = re.compile(r"[A-Z_]+=")
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced or indented block."""

    info: str  # after the fence: a language, or a directive
    text: str
    line: int  # of its first line of text


class Page(NamedTuple):
    """A Markdown page in parts."""

    path: Path
    blocks: list[Block]
    prose: str


def read(path: Path) -> Page:
    """Splits a page."""
    text = "\n" + path.read_text()
    blocks = [Block(m[2].strip(), m[3], text[: m.start(3)].count("\n")) for m in _FENCE.finditer(text)]
    text = _FENCE.sub("\n", text)
    blocks += [Block("bash", inspect.cleandoc(m[0]), 0) for m in _INDENTED.finditer(text)]
    return Page(path, blocks, _INDENTED.sub("", text))


def paths() -> list[Path]:
    """The README, every page of the site, and the format; notebooks are run by the site's build."""
    format_ = ROOT / "updcomp" / "wire" / "FORMAT.md"
    return [
        ROOT / "README.md",
        format_,
        *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "notebooks" not in p.parts),
    ]


def run(page: Page, folder: Path) -> dict[str, Any]:
    """Runs what a page shows; the working folder is this one.

    Args:
      page: its blocks are run.
      folder: gets the files that it writes.

    Returns:
      The names that its Python defines.
    """
    defined: dict[str, Any] = {"__name__": page.path.stem}
    for block in page.blocks:
        if block.info == "python" and not block.text.startswith(NOT_RUN):
            if name := re.match(r"# (\w+\.py)\n", block.text):
                (folder / name[1]).write_text(block.text)
            # Lines count from the top of the page.
            exec(compile("\n" * (block.line - 1) + block.text, page.path, "exec"), defined)
    for words in _commands(page):
        if words[:2] == ["python", "-m"] and words[2] in OWN and not any(map(PLACEHOLDER.fullmatch, words)):
            assert OWN[words[2]].main(words[3:]) == 0, shlex.join(words)
    return defined


def problems(page: Page, defined: dict[str, Any]) -> list[str]:
    """What a page names that is not there, a line each; the working folder is the one where it ran.

    Args:
      page: to check.
      defined: by its Python, as `run` gives it.

    Returns:
      Nothing for a page that is right.
    """
    checks: list[Callable[[Page, dict[str, Any]], Iterator[str]]] = [_links, _directives, _blocks, _spans]
    return [f"{page.path.name}: {problem}" for check in checks for problem in check(page, defined)]


def _links(page: Page, defined: dict[str, Any]) -> Iterator[str]:
    for is_image, target in _LINK.findall(page.prose):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = page.path.parent / file if file else page.path
        if not path.exists():
            yield f"{'image' if is_image else 'link'} to {target}: no such file"
        elif anchor and anchor not in _anchors(path):
            yield f"link to {target}: no such heading"


def _anchors(path: Path) -> set[str]:
    page = read(path)
    included = [path.parent / block.info.split()[1] for block in page.blocks if block.info.startswith("{include}")]
    titles = re.findall(r"^#+ (.+)$", page.prose, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs.union(*map(_anchors, included))


def _directives(page: Page, defined: dict[str, Any]) -> Iterator[str]:
    for block in page.blocks:
        if block.info.startswith("{include}") and not (page.path.parent / block.info.split()[1]).exists():
            yield f"include of {block.info.split()[1]}: no such file"
        if block.info == "{toctree}":
            for entry in re.findall(r"^(?!:)(\S+)$", block.text, re.MULTILINE):
                if "*" not in entry and not (page.path.parent / f"{entry}.md").exists():
                    yield f"toctree: {entry}: no such page"
        if block.info == "{eval-rst}":
            for name in re.findall(r"^\.\. auto\w+:: (\S+)$", block.text, re.MULTILINE):
                if names.resolve(name) is None:
                    yield f"reference: {name}: no such name"


def _blocks(page: Page, defined: dict[str, Any]) -> Iterator[str]:
    for block in page.blocks:
        if block.info == "python":
            try:
                compile(block.text, page.path, "exec")
            except SyntaxError as error:
                yield f"python block: {error}"
        elif block.info not in ("bash", "text", "json") and not block.info.startswith("{"):
            yield f"block of {block.info or 'no language'}: expected python, bash, text or json"
    for words in _commands(page):
        yield from commands.problems(words)


def _commands(page: Page) -> Iterator[list[str]]:
    for block in page.blocks:
        if block.info == "bash":
            for line in block.text.replace("\\\n", "").splitlines():
                yield from _commands_of(line)


def _commands_of(line: str) -> Iterator[list[str]]:
    """The commands of a line of the shell, and those that it has another machine run."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
    lexer.whitespace_split = True
    for is_end, group in itertools.groupby(lexer, "&&".__eq__):
        words = list(itertools.dropwhile(_VARIABLE.match, () if is_end else group))
        while words and words[0] == "srun":
            words = list(itertools.dropwhile(lambda word: word.startswith("-"), words[1:]))
        if words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]
        for word in words:
            if word.startswith("--command="):
                yield from _commands_of(word.partition("=")[2])


def _spans(page: Page, defined: dict[str, Any]) -> Iterator[str]:
    blocks = "".join(block.text for block in page.blocks)
    for span in (" ".join(span.split()) for span in _CODE.findall(page.prose)):
        program = span.split()[0].removeprefix(".venv/bin/")
        if span.startswith("--"):
            yield from (problem for word in span.split() for problem in commands.flag_problems(word))
        elif program in ("python", "pip") and " " in span:
            yield from commands.problems([program, *shlex.split(span)[1:]], within_a_line=True)
        elif names.is_path(span):
            if not names.is_there(span, page.path.parent, blocks):
                yield f"`{span}`: no such file"
        else:
            yield from names.problems(span, defined, blocks)
