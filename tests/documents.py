"""What must hold for a page of the documents: everything that it names is there.

Conventions of pages, which readers see as well:

- Blocks of ``python`` run in order, in one namespace and an empty folder. One that begins with ``# NAME.py`` is that
  file too. One that begins with ``# Not run by the tests:`` is only compiled, and says why.
- Blocks of ``bash``, and indented ones, are commands. Those of this project are parsed as it would parse them; those of
  `updcomp` and `updcomp.edge` run, unless a word in capitals stands for something.
- `code` within a line is a flag, a command, a path or Python: what it names must be there.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags as absl_flags

import updcomp
from experiments import EXPERIMENTS, by_name, flag_groups, settings
from updcomp import __main__ as server
from updcomp.edge import __main__ as device

ROOT = Path(__file__).parents[1]
NOT_RUN = "# Not run by the tests:"
FOREIGN = {
    "pip",
    "venv",
    "pytest",
    "sphinx",
    "ruff",
    "mypy",
    "jupytext",
    "cmake",
    "git",
    "apt-get",
}  # flags of their own
OWN = {"updcomp": server, "updcomp.edge": device}

_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1`*[ ]*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    [^\n]+\n)+")
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
_CHAIN = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?")
_FILE = re.compile(r".*\.(?:py|md|txt|flags|png|svg|toml|ipynb|jsonl|csv|html|upd|safetensors|npz)")
_PLACEHOLDER = re.compile(r"[A-Z]{2,}")
_ROOTS = {"updcomp", "experiments", "jax", "numpy", "optax", "flax", "jnp", "np", "lax"}
_SHORT = {"jnp": "jax.numpy", "np": "numpy", "lax": "jax.lax"}
_PREFIXES = ("", *(f"updcomp.{part}" for part in ("", "training.", "methods.", "wire.", "edge.")), "experiments.")


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


def pages() -> list[Path]:
    """The README and every page of the site; notebooks are run by its build."""
    return [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "notebooks" not in p.parts)]


def run(page: Page, folder: Path) -> dict[str, Any]:
    """Runs what a page shows; the working folder is this one.

    Args:
      page: its blocks are run.
      folder: gets the files that it writes.

    Returns:
      The names that its Python defines.
    """
    names: dict[str, Any] = {"__name__": page.path.stem}
    for block in page.blocks:
        if block.info == "python" and not block.text.startswith(NOT_RUN):
            if name := re.match(r"# (\w+\.py)\n", block.text):
                (folder / name[1]).write_text(block.text)
            # Lines count from the top of the page.
            exec(compile("\n" * (block.line - 1) + block.text, page.path, "exec"), names)
    for words in _commands(page):
        if words[:2] == ["python", "-m"] and words[2] in OWN and not any(map(_PLACEHOLDER.fullmatch, words)):
            assert OWN[words[2]].main(words[3:]) == 0, shlex.join(words)
    return names


def problems(page: Page, names: dict[str, Any]) -> list[str]:
    """What a page names that is not there, a line each; the working folder is the one where it ran.

    Args:
      page: to check.
      names: of its Python, as `run` gives them.

    Returns:
      Nothing for a page that is right.
    """
    checks: list[Callable[[Page, dict[str, Any]], Iterator[str]]] = [_links, _directives, _blocks, _spans]
    return [f"{page.path.name}: {problem}" for check in checks for problem in check(page, names)]


def _links(page: Page, names: dict[str, Any]) -> Iterator[str]:
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


def _directives(page: Page, names: dict[str, Any]) -> Iterator[str]:
    for block in page.blocks:
        if block.info.startswith("{include}") and not (page.path.parent / block.info.split()[1]).exists():
            yield f"include of {block.info.split()[1]}: no such file"
        if block.info == "{toctree}":
            for entry in re.findall(r"^(?!:)(\S+)$", block.text, re.MULTILINE):
                if "*" not in entry and not (page.path.parent / f"{entry}.md").exists():
                    yield f"toctree: {entry}: no such page"
        if block.info == "{eval-rst}":
            for name in re.findall(r"^\.\. auto\w+:: (\S+)$", block.text, re.MULTILINE):
                if resolve(name) is None:
                    yield f"reference: {name}: no such name"


def _blocks(page: Page, names: dict[str, Any]) -> Iterator[str]:
    for block in page.blocks:
        if block.info == "python":
            try:
                compile(block.text, page.path, "exec")
            except SyntaxError as error:
                yield f"python block: {error}"
        elif block.info not in ("bash", "text", "json") and not block.info.startswith("{"):
            yield f"block of {block.info or 'no language'}: expected python, bash, text or json"
    for words in _commands(page):
        yield from _command(words)


def _commands(page: Page) -> Iterator[list[str]]:
    for block in page.blocks:
        if block.info == "bash":
            for line in block.text.replace("\\\n", "").splitlines():
                for part in line.split(" && "):
                    if words := shlex.split(part, comments=True):
                        yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def _command(words: list[str], *, within_a_line: bool = False) -> Iterator[str]:
    """What a command names that is not there; within a line it may be cut short."""
    said = shlex.join(words)
    program, *rest = words
    if program in ("python", "python3"):
        program, *rest = rest[1:] if rest[0] == "-m" else rest
    if program == "run.py":
        yield from _run_command(rest)
    elif program in OWN:
        try:
            with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
                OWN[program]._parser().parse_args(rest)
        except SystemExit as ended:
            if ended.code and not (within_a_line and "arguments are required" in errors.getvalue()):
                yield f"command {said}: {errors.getvalue().strip().splitlines()[-1]}"
    elif program in FOREIGN:
        files = [word for word in rest if re.fullmatch(r"[\w/]+\.(?:txt|py)", word)]
        yield from (f"command {said}: {word}: no such file" for word in files if not (ROOT / word).exists())
    elif (module := ROOT.joinpath(*program.removesuffix(".py").split("."))).is_dir() or _is_script(program):
        sources = module.rglob("*.py") if module.is_dir() else [ROOT / program, module.with_suffix(".py")]
        text = "".join(path.read_text() for path in sources if path.is_file())
        given = [word.split("=")[0] for word in rest if word.startswith("--")]
        yield from (f"command {said}: {flag}: no such flag" for flag in given if f'"{flag}"' not in text)
    else:
        yield f"command {said}: {program}: no such program"


def _is_script(program: str) -> bool:
    return (ROOT / program).is_file() or ROOT.joinpath(*program.split(".")).with_suffix(".py").is_file()


def _run_command(words: list[str]) -> Iterator[str]:
    """What `python run.py` says of flags, without running the experiment."""
    if words == ["--help"]:
        return
    values = flag_groups.define()
    words = [re.sub(r"^--flagfile=", f"--flagfile={ROOT}/", word) for word in words]
    try:
        values(["run.py", *words])
        config = flag_groups.configure(by_name(values.experiment).Config, values.experiment, values)
        file = getattr(config, "settings_file", None)
        if isinstance(config, settings.ComparisonConfig) and (file is None or Path(file).exists()):
            settings.choose(config)
    except (absl_flags.Error, updcomp.Error) as error:
        yield f"command run.py {' '.join(words)}: {error}"


def _spans(page: Page, names: dict[str, Any]) -> Iterator[str]:
    text = "".join(block.text for block in page.blocks)
    known, defined = _words() | set(re.findall(r"\w+", text)), set(re.findall(r" def (\w+)\(", text))
    for span in (" ".join(span.split()) for span in _CODE.findall(page.prose)):
        program = span.split()[0].removeprefix(".venv/bin/")
        if span.startswith("--"):
            yield from (problem for word in span.split() for problem in _flag(word))
        elif program in ("python", "pip") and " " in span:
            yield from _command([program, *shlex.split(span)[1:]], within_a_line=True)
        elif _PATH.fullmatch(span) and (span.split("/")[0] in _top() or _FILE.fullmatch(span)):
            if not _is_there(span, page):
                yield f"`{span}`: no such file"
        else:
            yield from _python(span, names, known, defined)


@functools.cache
def _top() -> set[str]:
    return {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _is_there(span: str, page: Page) -> bool:
    """Whether a path is in the repository, or a bare name is that of a file which the page or the programs write."""
    places = (ROOT, page.path.parent, ROOT / "tests", ROOT / "updcomp")
    if any(next(place.glob(span.rstrip("/")), None) for place in places):
        return True
    return "/" not in span and (
        span in _files() or span in _sources() or any(span in block.text for block in page.blocks)
    )


@functools.cache
def _files() -> set[str]:
    return {path.name for top in _top() - {"build", "runs"} for path in (ROOT / top).rglob("*.*")}


@functools.cache
def _sources() -> str:
    paths = [ROOT / "run.py", *(path for top in ("updcomp", "experiments") for path in (ROOT / top).rglob("*.*"))]
    return "".join(path.read_text() for path in paths if path.suffix in (".py", ".md", ".flags"))


@functools.cache
def _words() -> set[str]:
    return set(re.findall(r"\w+", _sources()))


@functools.cache
def _own_flags() -> frozenset[str]:
    found = {"--help", *(f"--{name}" for name in flag_groups.define()), "--flagfile"}
    for module in OWN.values():
        commands = next(action for action in module._parser()._actions if action.choices)
        for command in commands.choices.values():
            found |= {option for action in command._actions for option in action.option_strings}
    return frozenset(found)


def _flag(word: str) -> Iterator[str]:
    """What a flag within a line gets wrong: its name, or for `run.py` a value that no experiment takes."""
    name, _, value = word.partition("=")
    if name.startswith("--") and name not in _own_flags():
        yield f"`{word}`: no such flag"
    elif value and not _PLACEHOLDER.fullmatch(value) and name.removeprefix("--") in flag_groups.define():
        tried = (
            [word] if name == "--experiment" else [f"{word} --experiment={experiment}" for experiment in EXPERIMENTS]
        )
        found = [list(_run_command(shlex.split(words))) for words in tried]
        if all(found):
            yield f"`{word}`: {found[0][0]}"


def _python(span: str, names: dict[str, Any], known: set[str], defined: set[str]) -> Iterator[str]:
    """What Python within a line names that is not there: dotted names, classes, functions, keywords, other words."""
    plain = re.sub(r"\"[^\"]*\"|'[^']*'", '""', span)
    for chain in _CHAIN.findall(plain):
        if "." in chain:
            if resolve(chain, names) is None:
                yield f"`{span}`: {chain}: no such name"
        elif chain not in known and resolve(chain, names) is None:
            yield f"`{span}`: {chain}: no such word in the sources"
    with contextlib.suppress(SyntaxError):
        for call in ast.walk(ast.parse(plain, mode="eval")):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            function = None if name in defined else resolve(name, names)
            if callable(function) and isinstance(call, ast.Call):
                taken = inspect.signature(function).parameters
                wrong = [k.arg for k in call.keywords if k.arg not in taken]
                yield from (f"`{span}`: {word}: no such argument" for word in wrong)


def resolve(name: str, names: dict[str, Any] | None = None) -> Any:
    """What a dotted name stands for, written from any of the usual modules on; None if it stands for nothing."""
    root, *rest = name.split(".")
    if names and root in names:
        return _attribute(names[root], rest)
    for full in (
        f"{prefix}{_SHORT.get(name, name)}".replace(f"{root}.", f"{_SHORT.get(root, root)}.", 1) for prefix in _PREFIXES
    ):
        parts = full.split(".")
        if parts[0] not in _ROOTS:
            continue
        for length in range(len(parts), 0, -1):
            with contextlib.suppress(ImportError):
                module = importlib.import_module(".".join(parts[:length]))
                found = _attribute(module, parts[length:])
                if found is not None:
                    return found
                break
    return None


def _attribute(found: Any, names: list[str]) -> Any:
    for name in names:
        fields = getattr(found, "__dataclass_fields__", {})
        found = getattr(found, name, fields.get(name))
    return found
