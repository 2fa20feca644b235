"""One seed of an experiment: its deployed model, what its updates are measured by, and the rows that this gives."""

import contextlib
import dataclasses
import fcntl
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
from tqdm import tqdm

from experiments import specs
from experiments.results import Identity, Results, Row
from experiments.specs import Setting
from experiments.worlds import World, keys_of
from updcomp import api, methods, processes, protocol, trees
from updcomp.methods import Method
from updcomp.training import batches, devices
from updcomp.training.batches import Stream
from updcomp.training.tasks import Epoch, Task
from updcomp.trees import PyTree
from updcomp.wire import apply
from updcomp.wire.errors import BudgetError, CostError, LeafError, NonFiniteError
from updcomp.wire.packet import Packet

Work = TypeVar("Work")

_log = logging.getLogger(__name__)

_SECONDS = ("train_seconds", "compile_seconds", "encode_seconds", "apply_seconds")
_MEASURED = ("update_bytes", "plain_bytes", "sent", *_SECONDS)  # by the protocol


class Scores(NamedTuple):
    """How well a model does."""

    test: float
    validation: float


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A method that may be one that does not work here: its update is empty then, and the experiment goes on."""

    make: Method
    compact: bool  # whether its update files have short fingerprints

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """The method's packet; an empty one where training diverges, or no device or no leaf takes the setting."""
        try:
            packet = self.make(key, deployed, task)
            api.encode(packet, deployed, compact=self.compact)
        except (NonFiniteError, BudgetError, CostError, LeafError) as error:
            _log.warning("nothing is sent: %s", error)
            return Packet({})
        return packet


class Run(NamedTuple):
    """One seed of an experiment."""

    results: Results
    world: World
    seed: int
    compact: bool = False  # whether update files have short fingerprints

    def scores(self, variables: PyTree) -> Scores:
        """How well a model does on the host's test data and on the validation data."""
        of = self.world.score.of
        return Scores(of(variables, self.world.test), of(variables, self.world.task.validation))

    def identity(self, method: str, setting: Setting, round_: int = 0) -> Identity:
        """Which update a row is about."""
        world, experiment = self.world, self.results.experiment
        return Identity(experiment, world.dataset, world.model, dict(world.about), method, setting, self.seed, round_)

    def lock(self, identity: Identity) -> Path:
        """The lock file of an update that several processes may want to make."""
        return self.results.workdir / "device" / f"{file_name(identity)}.lock"

    def measure(
        self,
        identity: Identity,
        make: Method,
        held: protocol.Copy,
        before: Scores,
        *,
        reference: Identity | None,
        extra: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """Trains, sends, applies and evaluates an update, and adds its row, unless it is there already.

        Args:
          identity: of the update.
          make: makes its packet.
          held: the model that the device holds.
          before: how well that does.
          reference: see `record`.
          extra: called once the update is made; gives further metrics of the row.
        """
        name, workdir = file_name(identity), self.results.workdir
        trainings, new = workdir / "checkpoints" / name, workdir / "device" / f"{name}.safetensors"
        if self.results.find(identity) is None:
            done = protocol.run_round(
                keys_of(self.seed).update,
                make,
                held,
                self.world.task._replace(checkpoints=trainings),
                update=workdir / "updates" / f"{name}.upd",
                new=new,
                compact=self.compact,
            )
            samples = samples_of(self.world.task)
            self.record(identity, done, before, reference=reference, samples=samples, extra=extra())

        processes.from_first(lambda: new.unlink(missing_ok=True))
        forget(trainings)

    def record(
        self,
        identity: Identity,
        done: protocol.Round,
        before: Scores,
        *,
        reference: Identity | None,
        samples: int,
        restart: bool = False,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> Row:
        """Adds the row of an update.

        Args:
          identity: of the update.
          done: what the protocol measured.
          before: how well the device's model did before.
          reference: identity of the full update that this one is compared with; None: there is none yet.
          samples: that it was trained on.
          restart: whether it is relative to the first model.
          extra: further metrics.

        Returns:
          The row.
        """
        score, after = self.world.score, self.scores(done.variables)
        full = self.results.find(reference) if reference else None
        full_update = full.metrics[score.name] if full else None
        metrics = {
            **{name: getattr(done, name) for name in _MEASURED},
            score.name: after.test,
            f"full_update_{score.name}": after.test if identity == reference else full_update,
            f"deployed_{score.name}": before.test,
            f"trained_{score.name}": after.test if done.sent else score.of(done.trained, self.world.test),
            f"validation_{score.name}": after.validation,
            f"deployed_validation_{score.name}": before.validation,
            "samples": samples,
            "restart": restart,
            **extra,
        }
        self.results.append(row := Row(identity, metrics))
        return row

    def after(self, row: Row) -> Scores:
        """How well the device's model did after a row's update."""
        name = self.world.score.name
        return Scores(row.metrics[name], row.metrics[f"validation_{name}"])

    def deployed(self) -> protocol.Copy:
        """The model that the device holds: trained once on the world before, and kept as the device's file."""
        world, keys = self.world, keys_of(self.seed)
        path = self.results.workdir / "device" / f"deployed-seed{self.seed}.safetensors"
        init = devices.split(world.init(keys.init), world.task.mesh)
        with alone(path.with_suffix(".lock"), wait=True):
            if processes.from_first(path.exists):
                return protocol.load(path, init)
            if world.before is None:
                return protocol.save(init, path)
            trainings = self.results.workdir / "checkpoints" / path.stem
            packet = methods.full()(keys.pretrain, init, world.before._replace(checkpoints=trainings))
            model = trees.HostModel(init)
            copy = protocol.save(trees.with_leaves(init, apply.changed_leaves(packet, model)), path)
            forget(trainings)
        return copy


def forget(trainings: Path) -> None:
    """Removes the checkpoints of an update that is done, and their parent once it is empty."""

    def remove() -> None:
        shutil.rmtree(trainings, ignore_errors=True)
        with contextlib.suppress(OSError):
            trainings.parent.rmdir()

    processes.from_first(remove)


def samples_of(task: Task) -> int:
    """How many samples a task trains on in an epoch."""
    if task.samples is not None:
        return len(task.samples)
    if isinstance(task.train, Stream):
        return task.train.steps * batches.rows(task.train.example)
    return batches.rows(task.train)


def file_name(identity: Identity) -> str:
    """A name for an update's files: its method, setting and seed."""
    return specs.file_name(identity.method, identity.setting, f"seed{identity.seed}")


@contextlib.contextmanager
def alone(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file, so that no other run does the same; the first process holds it for all of its run.

    Args:
      path: of the file.
      wait: whether to wait for the other process to end.

    Yields:
      Whether the lock is held; always where it waits.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> bool:
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            return True

        yield processes.from_first(lock)


def shared(work: Sequence[Work], lock_of: Callable[[Work], Path]) -> Iterator[Work]:
    """Work that several runs may share: what another run is doing comes last, after it has ended.

    Args:
      work: all of it; doing what is done already has to do nothing.
      lock_of: the lock file of each.

    Yields:
      Each, with its lock held.
    """
    busy = []
    for one in work:
        with alone(lock_of(one), wait=False) as held:
            if held:
                yield one
            else:
                busy.append(one)
    for one in busy:
        with alone(lock_of(one), wait=True):
            yield one


def with_progress(task: Task, progress: Any) -> Task:
    """The same task; a progress bar shows its epochs where they take more than a second."""

    def show(epoch: Epoch) -> None:
        text = f"epoch {epoch.number}: score {epoch.score:.4g}, loss {epoch.loss:.4g}"
        progress.set_postfix_str(text, refresh=epoch.seconds > 1)

    return task._replace(callback=show)


def progress_bar(total: int, unit: str) -> Any:
    """A bar that the first process shows."""
    return tqdm(total=total, unit=unit, dynamic_ncols=True, disable=not processes.is_first())


def publish(workdir: Path, write: Callable[[], str]) -> None:
    """Writes and prints a report, in the first process.

    Args:
      workdir: where it is written.
      write: writes it, and gives its text.
    """
    text = processes.from_first(write)
    if processes.is_first():
        print(f"{text}\n\nReport, plot, rows and update files: {workdir}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of updates that were not worth sending: the rows say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", protocol.NothingSentWarning)
        yield
