"""Runs an experiment: `python run.py` is the quickstart, `python run.py --help` lists everything."""

import sys
from pathlib import Path

from absl import app, flags, logging

from experiments import by_name, flag_groups
from updcomp.wire.errors import Error


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a wrong one is one line and exit status 2."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"updcomp: error: {error}; see python run.py --help", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> int:
    """Runs the experiment that the flags name; an error in the input is one line and exit status 2."""
    if len(argv) > 1:
        print(f"updcomp: error: expected flags only, found {argv[1]!r}; see python run.py --help", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a checkpoint
    name = flags.FLAGS.experiment
    try:
        experiment = by_name(name)
        config = flag_groups.configure(experiment.Config, name)
        experiment.run(config, Path(flags.FLAGS.workdir or Path("runs") / name))
    except Error as error:
        print(f"updcomp: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    flag_groups.define()
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(flag_groups.help_text())
    else:
        app.run(main, flags_parser=parse)
