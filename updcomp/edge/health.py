"""The trial of a new version: a health check that has a limited time."""

import concurrent.futures
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from updcomp.wire import errors

Check: TypeAlias = Callable[[Path], bool | None] | Sequence[str]


class TrialError(errors.Error):
    """A new version failed its health check."""


def trial(check: Check, timeout: float) -> Callable[[Path], None]:
    """A function that runs a health check on a model file, and returns only if the model is healthy.

    A command runs in a process group of its own, which is killed when the time is over, when the command has ended, or
    when this process is interrupted: one that hangs, crashes or leaks does no harm. That is the check for a device.

    A function runs in a thread of this process, for what models run with (JAX, PyTorch, OpenMP) does not survive a
    fork, and a good model must not fail for that. A thread cannot be stopped: one that takes too long is left behind,
    and its verdict comes to nothing. One that crashes the process has interrupted the trial, as a kill does.

    Args:
      check: a command as a list of arguments, to which the file's path is added: status 0 means healthy, its output
        goes to stderr; or a function of the path: healthy unless it raises or returns something false (None is not).
        It must leave the file as it is.
      timeout: seconds until the model counts as unhealthy.

    Returns:
      A function of the file's path that raises a TrialError if the model is not healthy, or the check has not ended in
      time or cannot be run.

    Raises:
      Error: the check is neither, or the time not positive.

    >>> trial(lambda path: path.suffix == ".safetensors", timeout=10)(Path("model.safetensors"))
    """
    if not timeout > 0:
        raise errors.Error(f"timeout: expected a number of seconds above 0, found {timeout}")
    if callable(check):
        return functools.partial(_call, check, timeout)
    if isinstance(check, str) or not check:
        raise errors.Error(f"check: expected a function, or a command as a list of its arguments, found {check!r}")
    if shutil.which(str(check[0])) is None:
        raise errors.Error(f"check: expected a command that can be run, found {str(check[0])!r}; nothing was installed")
    return functools.partial(_execute, tuple(map(str, check)), timeout)


def _execute(command: tuple[str, ...], timeout: float, path: Path) -> None:
    started = list[subprocess.Popen[bytes]]()

    def start() -> None:
        arguments = [*command, str(path)]
        started.append(subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True))

    try:
        # A signal interrupts the main thread alone: whatever has been started is known when it comes to be ended.
        with concurrent.futures.ThreadPoolExecutor(1) as starter:
            starter.submit(start).result()
        status = started[0].wait(min(timeout, threading.TIMEOUT_MAX))
    except subprocess.TimeoutExpired:
        raise _too_late(timeout) from None
    except (OSError, ValueError) as error:
        raise TrialError(f"check {command[0]!r}: cannot be run: {error}") from None
    finally:
        for process in started:
            # What it has started is in its group, and may be left even if it has ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        ended = f"status {status}" if status > 0 else f"signal {-status}"
        raise TrialError(f"check {command[0]!r}: expected it to end with status 0, found {ended}")


def _call(check: Callable[[Path], bool | None], timeout: float, path: Path) -> None:
    complaints = list[str]()

    def judge() -> None:
        try:
            verdict = check(path)
            healthy = verdict is None or bool(verdict)
            complaints.append("" if healthy else f"expected it to return true or None, found {verdict!r}")
        except BaseException as error:
            complaints.append(" ".join(f"{type(error).__name__}: {error}".split()))

    thread = threading.Thread(target=judge, name="updcomp health check", daemon=True)
    thread.start()
    thread.join(min(timeout, threading.TIMEOUT_MAX))
    if not complaints:
        raise _too_late(timeout)
    if complaints[0]:
        raise TrialError(f"check: {complaints[0]}")


def _too_late(timeout: float) -> TrialError:
    return TrialError(f"check: expected it to end within {timeout:g} s")
