"""Runs an experiment: `python run.py` is the quickstart, `python run.py --help` lists everything."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import interrupts


def main(arguments: Sequence[str]) -> int:
    """Runs the experiment that the flags name.

    Args:
      arguments: the flags.

    Returns:
      The exit status: 0; 2 after an error in the input, which is one line; 130 after Ctrl-C, 143 before a preemption.
    """
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has what it wants; nothing may be flushed to it any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _say_how_to_go_on("interrupted", arguments)
        return 130


def _say_how_to_go_on(why: str, arguments: Sequence[str]) -> None:
    command = shlex.join(["python", "run.py", *arguments])
    print(f"updcomp: {why}; this goes on where it was: {command}", file=sys.stderr)


def _run(arguments: Sequence[str]) -> int:
    # Here, as JAX takes seconds to import, in which Ctrl-C is one line as well.
    from absl import flags, logging

    from experiments import by_name, flag_groups
    from updcomp import processes
    from updcomp.wire.errors import Error

    if {"--help", "-help", "-h"} & set(arguments):
        print(flag_groups.help_text(), flush=True)
        return 0
    logging.set_verbosity(logging.WARNING)  # Orbax logs every step of a checkpoint
    values = flag_groups.define()
    try:
        rest = values(["run.py", *arguments])[1:]
        if rest:
            raise Error(f"expected flags only, found {rest[0]!r}; see python run.py --help")
        joining = [name for name in flag_groups.JOINING if values[name].value is not None]
        if joining and not values.multihost:
            raise Error(f"--{joining[0]}: expected with --multihost, found without; give both or neither")
        if values.multihost and "devices" not in by_name(values.experiment).Config.__dataclass_fields__:
            raise Error(f"--multihost: {values.experiment} runs in one process; leave the flag out")
        if values.multihost:
            processes.initialise(**{name: values[name].value for name in flag_groups.JOINING})
        experiment = by_name(values.experiment)
        config = flag_groups.configure(experiment.Config, values.experiment, values)
        experiment.run(config, Path(values.workdir or Path("runs") / values.experiment))
    except flags.Error as error:
        print(f"updcomp: error: {error}; see python run.py --help", file=sys.stderr)
        return 2
    except Error as error:
        print(f"updcomp: error: {error}", file=sys.stderr)
        return 2
    except processes.PreemptedError:
        _say_how_to_go_on("preempted", arguments)
        return 143
    return 0


if __name__ == "__main__":
    interrupts.install()
    status = main(sys.argv[1:])
    if status and "--multihost" in sys.argv:  # the end that JAX has for processes waits for those that do not fail
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
