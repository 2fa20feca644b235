"""What the site needs beyond its packages: docstrings as they are written here, formulas, links, lists of flags."""

import inspect
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

from experiments import EXPERIMENTS, flag_groups
from updcomp import __main__ as server
from updcomp.edge import __main__ as device

_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_SPECIAL = re.compile(r"`([^`]+)`|^\s*\*{1,2}\w+:|([|*]|_(?!\w))", re.MULTILINE)
_FIELD = re.compile(r"^    (\w+): .*?#:? ?(.*)$", re.MULTILINE)
_PREFIXES = ("", "updcomp.", "updcomp.training.", "updcomp.methods.", "updcomp.wire.")


def to_rst(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Makes a docstring readable for Napoleon: it is plain text with `code`, in which `|v|` and `2*x` mean themselves.

    A NamedTuple's fields are its arguments; where its docstring has none, the comments of the fields explain them.
    """
    text = "\n".join(lines)
    if what == "class" and hasattr(found, "_fields"):
        fields = [f"  {name}: {comment}" for name, comment in _FIELD.findall(inspect.getsource(found))]
        if text.startswith("Create new instance of"):  # of its `__new__`
            text = ""
        elif "Attributes:" in text:
            text = text.replace("Attributes:", "Args:")
        elif fields:
            text = "\n".join([text.rstrip(), "", "Args:", *fields, ""])
    pieces, end = [], 0
    for example in _EXAMPLE.finditer(text):
        pieces += [_escaped(text[end : example.start()]), example.group()]
        end = example.end()
    lines[:] = "".join([*pieces, _escaped(text[end:])]).split("\n")


def _escaped(text: str) -> str:
    def escape(found: re.Match[str]) -> str:
        code, special = found.groups()
        if code:
            return f"``{code}``" + ("\\ " if text[found.end() : found.end() + 1].isalnum() else "")
        return f"\\{special}" if special else found.group()

    text = _SPECIAL.sub(escape, text)
    # Napoleon would take what stands before a colon for a type.
    return re.sub(r"^(Returns|Yields):\n  ", lambda section: f":{section[1].lower()}: ", text, flags=re.MULTILINE)


def skip(app: Sphinx, what: str, name: str, found: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out fields of a NamedTuple: they are described with their class."""
    return True if type(found).__name__ == "_tuplegetter" else None


def show_math(translator: Any, node: nodes.math) -> None:
    """Writes a formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def show_math_block(translator: Any, node: nodes.math_block) -> None:
    """Writes a formula on a line of its own."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def link_names(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Makes each `name` that the reference explains a link to there."""
    known = {name: entry for name, entry in app.env.domains.python_domain.objects.items() if not entry.aliased}
    for literal in list(tree.findall(nodes.literal)):
        name = literal.astext().split("(")[0]
        is_plain = "." not in name and name.islower()  # a word, unless it is called; then a method
        prefixes = _PREFIXES if not is_plain else ("updcomp.methods.",) if literal.astext() != name else ()
        full = next((prefix + name for prefix in prefixes if prefix + name in known), None)
        if full is None or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        entry = known[full]
        literal.replace_self(make_refnode(app.builder, page, entry.docname, entry.node_id, literal.deepcopy(), full))


def fill_lists(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts the lists that the programs themselves print where a page has a comment `list: NAME`."""
    lists = {"experiments": _experiments, "presets": _presets, "flags": _flags, "commands": _commands}
    source[0] = re.sub(r"<!-- list: (\w+) -->", lambda found: lists[found[1]](), source[0])


def _experiments() -> str:
    return "\n".join(
        ["| experiment | what it does |", "|---|---|", *(f"| `{n}` | {t} |" for n, t in EXPERIMENTS.items())]
    )


def _presets() -> str:
    rows = [
        f"| `{path.name}` | {flag_groups.first_line(path)} |" for path in sorted(flag_groups.PRESETS.glob("*.flags"))
    ]
    return "\n".join(["| preset | what it is |", "|---|---|", *rows])


def _flags() -> str:
    lines = []
    for owner, flags in flag_groups.sections().items():
        readers = dict.fromkeys(name for flag in flags for name in flag.defaults)
        title = str(inspect.getdoc(owner)).splitlines()[0].rstrip(".")
        lines += ["", f"### {title}", "", f"Read by {', '.join(f'`{name}`' for name in readers)}.", ""]
        lines += ["| flag | what it says | default |", "|---|---|---|"]
        lines += [f"| `--{flag.field.name}` | {_cell(flag.help)} | {_default(flag)} |" for flag in flags]
    return "\n".join(lines)


def _default(flag: flag_groups.Flag) -> str:
    experiments: dict[str, list[str]] = {}
    for name, default in flag.defaults.items():
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        if default not in (None, ()):
            experiments.setdefault(shown, []).append(name)
    if len(experiments) == 1:
        return f"`{next(iter(experiments))}`"
    return "; ".join(f"`{value}` in {', '.join(names)}" for value, names in experiments.items())


def _cell(text: str) -> str:
    return re.sub(r"([|*_<])", r"\\\1", text)


def _commands() -> str:
    lines = []
    for module, title in ((server, "On a server"), (device, "On a device")):
        parser = module._parser()
        commands = next(action for action in parser._actions if action.choices)
        lines += ["", f"### {title}: `{parser.prog}`"]
        for name, command in (commands.choices or {}).items():
            shown = command.format_help().split("options:")[0].strip()
            options = [action for action in command._actions if action.option_strings and action.dest != "help"]
            lines += ["", f"#### `{name}`", "", "```text", shown, "```"]
            if options:
                lines += ["", "| option | what it does |", "|---|---|"]
                lines += [f"| {_option(action)} | {_cell(action.help or '')} |" for action in options]
    return "\n".join(lines)


def _option(action: Any) -> str:
    value = f"={action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
    return ", ".join(f"`{name}{value if name.startswith('--') else ''}`" for name in action.option_strings)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers all of it."""
    app.add_html_math_renderer("mathml", (show_math, None), (show_math_block, None))
    app.connect("autodoc-process-docstring", to_rst, priority=100)  # before Napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-resolved", link_names)
    app.connect("source-read", fill_lists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
