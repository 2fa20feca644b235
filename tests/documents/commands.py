"""What must hold for a command: its program would take it."""

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
from absl import flags as absl_flags

import updcomp
from experiments import EXPERIMENTS, by_name, flag_groups, settings
from updcomp import __main__ as server
from updcomp.edge import __main__ as device

ROOT = Path(__file__).parents[2]
FOREIGN = {  # with flags of their own
    *(
        "pip",
        "venv",
        "pytest",
        "sphinx",
        "ruff",
        "mypy",
        "jupytext",
        "cmake",
        "cd",
        "git",
        "gcloud",
        "rsync",
        "tfds",
        "jupyter",
    ),
}
OWN = {"updcomp": server, "updcomp.edge": device}
PLACEHOLDER = re.compile(r"[A-Z]{2,}")


def problems(words: list[str], *, within_a_line: bool = False) -> Iterator[str]:
    """What a command names that is not there; within a line it may be cut short."""
    said = shlex.join(words)
    program, *rest = words
    if program in ("python", "python3") and rest[0] != "-c":
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
    elif program in ("python", "python3"):
        compile(rest[1], said, "exec")
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
        with mock.patch.object(jax, "device_count", return_value=1024):  # a reader may have more than this machine
            config = flag_groups.configure(by_name(values.experiment).Config, values.experiment, values)
        file = getattr(config, "settings_file", None)
        if isinstance(config, settings.ComparisonConfig) and (file is None or Path(file).exists()):
            settings.choose(config)
    except (absl_flags.Error, updcomp.Error) as error:
        yield f"command run.py {' '.join(words)}: {error}"


@functools.cache
def _own_flags() -> frozenset[str]:
    found = {"--help", *(f"--{name}" for name in flag_groups.define()), "--flagfile"}
    for module in OWN.values():
        parser = module._parser()
        commands = next(action for action in parser._actions if action.choices)
        for command in (parser, *commands.choices.values()):
            found |= {option for action in command._actions for option in action.option_strings}
    return frozenset(found)


def flag_problems(word: str) -> Iterator[str]:
    """What a flag within a line gets wrong: its name, or for `run.py` a value that no experiment takes."""
    name, _, value = word.partition("=")
    if name.startswith("--") and name not in _own_flags():
        yield f"`{word}`: no such flag"
    elif value and not PLACEHOLDER.fullmatch(value) and name.removeprefix("--") in flag_groups.define():
        tried = (
            [word] if name == "--experiment" else [f"{word} --experiment={experiment}" for experiment in EXPERIMENTS]
        )
        found = [list(_run_command(shlex.split(words))) for words in tried]
        if all(found):
            yield f"`{word}`: {found[0][0]}"
