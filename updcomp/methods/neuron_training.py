"""One training of chosen neurons: choose, compile or reuse, train an epoch, measure, choose again."""

import functools
import hashlib
import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from updcomp import arrays, neurons, quantize
from updcomp.layers import Layer
from updcomp.methods import base, choosing, neuron_probes
from updcomp.methods.choosing import Model
from updcomp.methods.column_shapes import Shape, Shapes, views_of
from updcomp.methods.neuron_budgets import Options, Outcome, Spent
from updcomp.methods.neuron_probes import Probe
from updcomp.methods.selections import SELECTIONS, Scene
from updcomp.neurons import Choice, Cost, Memory, Velocity
from updcomp.partition import KERNEL, Partition
from updcomp.training import analysis, devices, loop, steps, tasks
from updcomp.training.checkpoints import Checkpoints
from updcomp.training.compilation import measured
from updcomp.training.loop import Training
from updcomp.training.optimizers import OptimizerFactory
from updcomp.training.plans import Frozen, Named, Plan, as_trained, part_of, with_part
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire import views
from updcomp.wire.errors import BudgetError
from updcomp.wire.kinds.columns import Columns
from updcomp.wire.packet import Packet

_TRIES = 8  # to find a choice of which the compiler says that it fits
_BETTER = 3  # of them to find one that uses the budget
_FULL = 0.95  # share of the budget that counts as used
_CAREFUL = 0.99  # factor of the limits with each try
_SELECTION = 2**31 + 16  # folded into a method's key


class NeuronTraining:
    """The training of a `methods.neurons`."""

    def __init__(self, key: jax.Array, deployed: PyTree, task: Task, options: Options) -> None:
        """Finds the layers, and measures what training all neurons takes.

        Raises:
          Error: there are none, or not one fits the budget.
        """
        self._key, self._options, self._selection = key, options, SELECTIONS[options.selection]
        model = choosing.model_of(deployed, task)
        self._layers = neuron_probes.layers_of(model, task)
        self._model = _chosen(model, self._layers)
        self._views = views_of(self._layers)
        self._start = self._model.trained()
        plan = Plan("neurons", self._model.partition, tuple((name, as_trained) for name in sorted(self._start)))
        rates = dict.fromkeys(self._start, options.rate)
        frozen = Frozen(self._model.variables, {})
        self._training = loop.begin(key, task, plan, self._start, frozen, rates=rates)
        self._probe = Probe(task, plan, self._layers, self._model.variables, options.probe)
        self._forward = self._probe.forward()
        self._full, memory = self._measure()
        self._memory = memory._replace(microbatches=options.microbatches)
        self._task = task = task._replace(microbatches=options.microbatches * task.microbatches)
        tasks.check(task, self._training.mesh)
        self._training = self._training._replace(task=self._training.task._replace(microbatches=task.microbatches))
        self._limits = options.budget.limits(self._full)
        self._strictness = Cost(1.0, 1.0, 1.0)  # factors of the limits, where more is compiled than was expected
        whole_leaves = not self._selection.again  # a leaf that trains whole has no room for other choices
        self._shapes = Shapes(self._layers, options.shapes, self._cost_of, whole_leaves=whole_leaves)
        self._tried: list[Any] = []  # shapes that were compiled
        first = functools.partial(self._probe.squared_gradients, self._start, jax.random.fold_in(key, _SELECTION))
        self._first = functools.cache(first)  # the gradients of the deployed model
        if self._selection.moves:
            self._probe.measure(self._training.state.trainable)
        self._velocity: dict[str, Velocity] | None = None
        self._spent = Cost(0.0, 0.0, 0.0)
        self._seconds: list[tuple[float, float]] = []  # of choosing and of the steps, by epoch
        self._partitions: list[Partition] = []

    def outcome(self) -> Outcome:
        """Trains all epochs."""
        task = self._task
        saved = Checkpoints(Path(task.checkpoints) / self._folder()) if task.checkpoints else None
        if saved and (found := saved.restore_latest(self._state())):
            self._restore(*found)
        while self._training.epoch < task.epochs:
            self._run_epoch()
            if saved:
                saved.save_now_and_then(self._training.epoch, self._state())
        return Outcome(self._packet(), self._report(), self._full, tuple(self._partitions))

    def _run_epoch(self) -> None:
        start = time.perf_counter()
        with measured() as compilation:
            if not self._partitions or self._selection.again:
                self._choose()
        start += compilation.seconds
        training = self._training
        # What trains is donated, so its values before are copied where they will be compared.
        moves = self._selection.moves
        before = _part_of(training.plan, training.state.trainable, training.frozen) if moves else {}
        chosen = time.perf_counter()
        self._training = training = loop.run_epoch(training)
        ended = time.perf_counter()
        if moves and training.epoch < self._task.epochs:
            old = _with_part(training.plan, training.state.trainable, before, training.frozen)
            self._velocity = self._probe.accelerated(self._velocity, old, training.state.trainable)
        self._seconds.append(
            (chosen - start + time.perf_counter() - ended, training.step_seconds * training.steps_per_epoch)
        )
        self._partitions.append(training.plan.partition)

    def _cost_of(self, counts: neurons.Counts) -> Cost:
        """The cost that is expected of a choice: of its weights, and of all that its shape has room for."""
        expected = neurons.cost(self._layers, self._shapes.room(self._shapes.of(counts)), self._memory)
        return expected._replace(weights=neurons.weights(self._layers, counts))

    def _measure(self) -> tuple[Cost, Memory]:
        """What training all neurons takes, by the compiler, and the factors that explain its memory."""
        size = sum(leaf.size for leaf in self._start.values())
        # Of one device, as the compiler reports: weights, gradients, and the optimizer's state.
        weights = (2 * devices.bytes_of_one(self._start) + devices.bytes_of_one(self._training.state.optimizer)) / size
        peak = self._peak(self._training)
        memory = neurons.fit_memory(
            self._layers,
            per_weight=weights,
            forward_bytes=self._forward.memory,
            training_bytes=max(0.0, peak - weights * size),
        )
        return Cost(size, analysis.step_flops(self._training) - self._forward.flops, peak), memory

    def _peak(self, training: Training) -> int:
        """Bytes at the peak of a step: columns that train are temporaries, leaves that train whole are not."""
        parts = training.plan.parts
        whole = self._start if parts is None else [name for name, view in parts if view is None]
        held = sum(devices.bytes_of_one(self._start[name]) for name in whole) + devices.bytes_of_one(
            training.state.optimizer
        )
        return analysis.step_memory(training) + held

    def _choose(self) -> None:
        """Chooses neurons, and makes them what trains, once the compiler says that they fit the budget.

        The first choice is made again while the compiler's report says that there is room for more. Where no other one
        fits, an earlier choice stays.
        """
        found: tuple[Training, Cost, Shape] | None = None
        before, scene = self._strictness, self._scene()
        for number in range(_TRIES):
            limits = Cost(*(limit * factor for limit, factor in zip(self._limits, self._strictness, strict=True)))
            choice, shape = self._selected(scene._replace(limits=limits))
            if self._probe.peak_bytes > self._limits.memory:
                least = f"expected at least memory={self._probe.peak_bytes:,}, what choosing takes"
                raise BudgetError(f"budget: {least}, found {_said(self._limits)}")
            if not choice:
                if self._strictness == before:
                    break
                halfway = (math.sqrt(old * new) for old, new in zip(before, self._strictness, strict=True))
                self._strictness = Cost(*halfway)
                continue
            training = self._with(choice, shape)
            spent = self._measured(training, choice)
            fits = not self._selection.limited or spent.within(self._limits)
            if fits and (found is None or spent.weights > found[1].weights):
                found = training, spent, shape
            used = max(own / limit for own, limit in zip(spent, self._limits, strict=True))
            if found and (self._partitions or not self._selection.limited or used > _FULL or number >= _BETTER):
                break
            before, expected = self._strictness, self._cost_of({name: len(own) for name, own in choice.items()})
            careful = _CAREFUL ** (number + 1)
            self._strictness = Cost(
                *(careful * guess / own if own else 1.0 for guess, own in zip(expected, spent, strict=True))
            )._replace(weights=1.0)
        if found:
            self._training, spent, shape = found
            self._shapes.add(shape)
            memory = max(spent.memory, self._probe.peak_bytes)
            spent = spent._replace(flops=self._flops(self._training), memory=memory)
            self._spent = Cost(*map(max, self._spent, spent))
        elif not self._partitions:
            raise self._impossible()

    def _selected(self, scene: Scene) -> tuple[Choice, Shape]:
        """A choice and its shape: where there may be no more shapes, what is selected within one of them."""
        choice = self._selection.choose(scene)
        if (shape := self._shapes.near(choice)) is not None:
            return choice, shape
        within = [
            (self._selection.choose(scene._replace(cost_of=self._shapes.within(shape))), shape)
            for shape in self._shapes.known
        ]
        return max(within, key=lambda found: sum(map(len, found[0].values())))

    def _impossible(self) -> BudgetError:
        least = neurons.smallest(self._layers, self._cost_of)
        said = "at least about" if not least.within(self._limits) else "more than is left above"
        found = f"found {_said(self._limits)}; all neurons take {_said(self._full)}"
        advice = "more microbatches take less memory"
        return BudgetError(f"budget: expected {said} {_said(least)}, what one neuron takes, {found}; {advice}")

    def _with(self, choice: Choice, shape: Shape) -> Training:
        """The training in which these neurons train from here on."""
        training, numbers = self._training, self._shapes.numbers(choice, shape)
        parts = self._model.partition._replace(chosen=frozenset(shape))
        plan = training.plan._replace(partition=parts, parts=self._shapes.parts(shape))
        fixed = {name: devices.replicate(own, training.mesh) for name, own in numbers.items()}
        frozen = Frozen(training.frozen.deployed, fixed)
        same = plan == training.plan and all(
            np.array_equal(own, training.frozen.fixed[n]) for n, own in numbers.items()
        )
        if same and self._partitions:
            return training
        # Moments of other columns would be corrected for the steps of those before.
        optimizer = _fresh(plan, self._task.optimizer, training.state.trainable, frozen)
        optimizer = devices.place(optimizer, training.mesh)
        return training._replace(plan=plan, frozen=frozen, state=training.state._replace(optimizer=optimizer))

    def _measured(self, training: Training, choice: Choice) -> Cost:
        """What a step takes, by the compiler; operations are only counted where they are limited."""
        if (shape := training.plan.parts) not in self._tried:
            self._tried.append(shape)
        expected = self._cost_of({name: len(own) for name, own in choice.items()})
        flops = self._flops(training) if self._limits.flops < math.inf else expected.flops
        return Cost(expected.weights, flops, self._peak(training))

    def _flops(self, training: Training) -> float:
        return analysis.step_flops(training) - self._forward.flops

    def _scene(self) -> Scene:
        key = jax.random.fold_in(self._key, _SELECTION)
        epoch = self._training.epoch if self._selection.again else 0
        generator = np.random.default_rng([*jax.random.key_data(key).tolist(), epoch])
        gradients = functools.partial(self._probe.squared_gradients, key=key)
        now = functools.cache(functools.partial(gradients, self._training.state.trainable))
        return Scene(self._layers, self._limits, self._cost_of, generator, self._velocity, now, self._first)

    def _packet(self) -> Packet:
        """The columns that changed, up to the epoch that is kept."""
        best = loop.kept(self._training)[0]

        def block(name: str) -> Columns:
            change = arrays.to_host(views.split(best[name] - self._start[name], self._views[name])[0])
            columns = np.flatnonzero(change.any(axis=0))
            values = quantize.to_integers(change[:, columns], self._options.bits)
            return Columns(columns, *values, self._views[name])

        changed = (name for name in self._views if (best[name] != self._start[name]).any())
        return base.packet_of(self._model, {name: functools.partial(block, name) for name in changed})

    def _report(self) -> Spent:
        choosing, trained = zip(*self._seconds, strict=True) if self._seconds else ((math.nan,), (math.nan,))
        return Spent(
            weights=int(self._spent.weights),
            backward_flops=float(self._spent.flops),
            peak_bytes=int(self._spent.memory),
            step_seconds=statistics.median(trained) / self._training.steps_per_epoch,
            choosing_share=statistics.median(one / other for one, other in zip(choosing, trained, strict=True)),
            compiled=len(self._tried),
        )

    def _state(self) -> PyTree:
        """What a killed training goes on from; its shapes do not depend on the choice, so moments are left out."""
        state = self._training.state._replace(optimizer=())
        return state, self._velocity or self._probe.at_rest()

    def _restore(self, epoch: int, saved: PyTree) -> None:
        state, velocity = saved
        self._velocity = velocity
        kept = self._training.state.optimizer
        self._training = self._training._replace(epoch=epoch, state=state._replace(optimizer=kept))

    def _folder(self) -> str:
        """Of its own for each setting, as `loop.folder_of` does not know of those."""
        return f"{loop.folder_of(self._training)}-{hashlib.sha256(repr(self._options).encode()).hexdigest()[:8]}"


_part_of = jax.jit(part_of, static_argnums=0)
_with_part = jax.jit(with_part, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fresh(plan: Plan, factory: OptimizerFactory, trainable: Named, frozen: Frozen) -> Any:
    """The state of an optimizer that has done nothing yet."""
    return steps.optimizer_of(plan, factory, frozen.deployed).init(part_of(plan, trainable, frozen))


def _chosen(model: Model, layers: tuple[Layer, ...]) -> Model:
    """The model with the leaves of its layers chosen, and their depths."""
    bits = dict.fromkeys(neurons.whole(layers), 16)
    model = choosing.choose(model, bits)
    choosing.check_lossy(model, model.of_role(KERNEL), bits)
    depths = {name: layer.depth for layer in layers for name in (layer.kernel, layer.bias) if name}
    leaves = tuple(leaf._replace(depth=depths.get(leaf.name)) for leaf in model.partition.leaves)
    return model._replace(partition=model.partition._replace(leaves=leaves))


def _said(cost: Cost) -> str:
    return ", ".join(f"{name}={own:,.0f}" for name, own in cost._asdict().items() if own < math.inf)
