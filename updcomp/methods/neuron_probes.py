"""What neurons are chosen by: their gradients and how their outputs move, on a few training samples."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays, convolution, layers, neurons
from updcomp.layers import Layer
from updcomp.methods.choosing import Model
from updcomp.neurons import Velocity
from updcomp.partition import AUX, KERNEL
from updcomp.training import analysis, batches, devices, objectives
from updcomp.training.batches import Stream
from updcomp.training.objectives import Objective
from updcomp.training.plans import Frozen, Named, Plan, variables_of
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire import views
from updcomp.wire.errors import Error, NonFiniteError

_ROWS = 2  # that are computed at a time: choosing should take less memory than training


class Forward(NamedTuple):
    """What the forward pass of a batch takes, by the compiler."""

    flops: float
    memory: int  # bytes


def layers_of(model: Model, task: Task) -> tuple[Layer, ...]:
    """The layers of a model, as its task's loss uses them.

    Raises:
      Error: there are none.
    """
    names = [leaf.name for role in (KERNEL, AUX) for leaf in model.partition.of_role(role)]
    train = not model.partition.moved  # as they will be trained
    loss = functools.partial(_loss, task.objective, train)
    example = batches.example(task.train, task.batch_size)
    found = layers.find(loss, model.variables, example, jax.random.key(0), names=names)
    if not found:
        kernels = [leaf.name for leaf in model.partition.of_role(KERNEL)][:8]
        expected = "expected a dot product or a convolution with a kernel as such, once it is transposed or cast"
        raise Error(f"neurons: {expected}, found none in the loss; the model's kernels are {kernels}; use partial()")
    return found


def _at_rest(layers_: tuple[Layer, ...]) -> dict[str, Velocity]:
    """The velocities before the first epoch."""
    return {layer.kernel: neurons.at_rest(layer.neurons) for layer in layers_}


def _loss(objective: Objective, train: bool, variables: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
    return objectives.loss_of(objective, variables, batch, key, train=train)[0]


class Probe:
    """The first training samples, and what is computed on them."""

    def __init__(self, task: Task, plan: Plan, layers_: tuple[Layer, ...], deployed: PyTree, count: int) -> None:
        """Takes the samples.

        Args:
          task: has them; of a stream, its first batch.
          plan: of training all neurons.
          layers_: of the model.
          deployed: the model, on devices.
          count: how many samples, if there are so many.
        """
        train = task.train.example if isinstance(task.train, Stream) else task.train
        chosen = (
            np.arange(batches.rows(train)) if isinstance(task.train, Stream) or task.samples is None else task.samples
        )
        rows = np.asarray(chosen)[:count]
        self._mesh = devices.mesh_for(task.mesh, deployed)
        self._rows = devices.replicate(jax.tree.map(lambda leaf: leaf[rows], train), self._mesh)
        self._deployed, self._task = deployed, task
        self._of = (task.objective, plan._replace(name=""), layers_)
        self._peaks: dict[str, int] = {}

    @property
    def peak_bytes(self) -> int:
        """The most memory that anything here took, by the compiler."""
        return max(self._peaks.values(), default=0)

    def forward(self) -> Forward:
        """What the forward pass of a batch takes."""
        task = self._task
        sharding = devices.batch_sharding(self._mesh, task.batch_axes)
        rows = batches.rows_per_step(task.train, task.batch_size, sharding)
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=sharding),
            batches.example(task.train, rows),
        )
        return _forward(*self._of[:2], _shapes(self._deployed), _shapes(batch))

    def squared_gradients(self, trainable: Named, key: jax.Array) -> dict[str, np.ndarray]:
        """The mean over parts of a few samples of the squared norm of each neuron's gradient, its bias included.

        Args:
          trainable: all kernels and biases.
          key: of the loss.

        Returns:
          Kernel's name -> float32 (neurons,).
        """
        found = self._call("gradients", _gradients(*self._of), trainable, self._deployed, self._rows, key)
        return _finite({name: arrays.to_host(own) for name, own in found.items()})

    def accelerated(self, velocity: dict[str, Velocity] | None, old: Named, new: Named) -> dict[str, Velocity]:
        """The velocities after an epoch.

        Args:
          velocity: before it; None at the start.
          old: all kernels and biases before it.
          new: the same after it.

        Returns:
          Kernel's name -> velocity.
        """
        moved = self._call("velocities", _accelerated(*self._of), *self._moving(velocity, old, new))
        _finite({name: arrays.to_host(own.value) for name, own in moved.items()})
        return dict(moved)

    def at_rest(self) -> dict[str, Velocity]:
        """Velocities before any epoch."""
        return dict(devices.replicate(_at_rest(self._of[2]), self._mesh))

    def measure(self, trainable: Named) -> None:
        """Finds out how much memory velocities take, before there are any."""
        self._compile("velocities", _accelerated(*self._of), *self._moving(None, trainable, trainable))

    def _moving(self, velocity: dict[str, Velocity] | None, old: Named, new: Named) -> tuple[Any, ...]:
        return velocity or self.at_rest(), old, new, self._deployed, self._rows

    def _call(self, name: str, function: Any, *args: Any) -> Any:
        self._compile(name, function, *args)
        return function(*args)

    def _compile(self, name: str, function: Any, *args: Any) -> None:
        if name not in self._peaks:
            held = sum(leaf.nbytes for leaf in args[1].values()) if name == "velocities" else 0  # the weights before
            self._peaks[name] = held + analysis.temporary_bytes(function.lower(*args))


def _finite(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same.

    Raises:
      NonFiniteError: one is not finite.
    """
    for name, own in found.items():
        if not np.isfinite(own).all():
            expected = "expected finite gradients and outputs of the samples that neurons are chosen by"
            raise NonFiniteError(f"leaf {name!r}: {expected}, found NaN or infinity; lower the learning rate")
    return found


@functools.lru_cache(maxsize=64)
def _forward(objective: Objective, plan: Plan, deployed: Any, example: Any) -> Forward:
    variables, batch = (jax.tree.unflatten(*shapes) for shapes in (deployed, example))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def lowered() -> Any:
        return jax.jit(lambda *args: _loss(objective, plan.train, *args)).lower(variables, batch, key)

    memory = analysis.temporary_bytes(lowered())
    with convolution.native():
        return Forward(analysis.flops(lowered()), memory)


def _shapes(tree: PyTree) -> tuple[Any, tuple[Any, ...]]:
    """What is compiled for, and where it is on a mesh: the compiler reports of one device."""
    leaves, structure = jax.tree.flatten(tree)
    on_mesh = [leaf.sharding if isinstance(leaf.sharding, jax.sharding.NamedSharding) else None for leaf in leaves]
    shapes = zip(leaves, on_mesh, strict=True)
    return structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for leaf, place in shapes)


@functools.lru_cache(maxsize=64)
def _gradients(objective: Objective, plan: Plan, layers_: tuple[Layer, ...]) -> Callable[..., Any]:
    def loss(trainable: Named, deployed: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        return _loss(objective, plan.train, variables_of(plan, trainable, {}, Frozen(deployed, {})), batch, key)

    def squares(gradients: Named) -> dict[str, jax.Array]:
        found = {}
        for layer in layers_:
            found[layer.kernel] = jnp.sum(views.split(gradients[layer.kernel], layer.view)[0] ** 2, axis=0)
            if layer.bias:
                found[layer.kernel] += gradients[layer.bias].reshape(-1) ** 2
        return found

    def mean_squares(trainable: Named, deployed: PyTree, rows: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        parts = _in_parts(rows)
        keys = jax.random.split(key, batches.rows(parts))

        def add(total: dict[str, jax.Array], part: Any) -> tuple[dict[str, jax.Array], None]:
            own = squares(jax.grad(loss)(trainable, deployed, *part))
            return jax.tree.map(jnp.add, total, own), None

        zeros = {layer.kernel: jnp.zeros(layer.neurons, jnp.float32) for layer in layers_}
        total, _ = jax.lax.scan(add, zeros, (parts, keys))
        return jax.tree.map(lambda own: own / len(keys), total)

    return jax.jit(mean_squares)


@functools.lru_cache(maxsize=64)
def _accelerated(objective: Objective, plan: Plan, layers_: tuple[Layer, ...]) -> Callable[..., Any]:
    names = [layer.kernel for layer in layers_]

    def outputs(trainable: Named, deployed: PyTree, rows: PyTree) -> dict[str, jax.Array]:
        variables = variables_of(plan, trainable, {}, Frozen(deployed, {}))
        return layers.outputs(
            functools.partial(_loss, objective, False), variables, rows, jax.random.key(0), names=names
        )

    def alike(old: Named, new: Named, deployed: PyTree, rows: PyTree) -> dict[str, Any]:
        """The similarity in space, or what each sample gives where there is none."""
        before, after = outputs(old, deployed, rows), outputs(new, deployed, rows)
        pairs = {name: (before[name], after[name]) for name in names}
        return {name: pair if pair[0].shape[1] == 1 else neurons.similarity(*pair) for name, pair in pairs.items()}

    def merged(found: Any) -> jax.Array:
        if not isinstance(found, tuple):
            return jnp.mean(found, axis=0)
        return neurons.similarity(*(part.reshape(-1, *part.shape[2:]) for part in found))

    def accelerate(
        velocity: dict[str, Velocity], old: Named, new: Named, deployed: PyTree, rows: PyTree
    ) -> dict[str, Velocity]:
        parts = _in_parts(rows)
        found = jax.lax.map(functools.partial(alike, old, new, deployed), parts)
        return {name: neurons.accelerate(velocity[name], merged(found[name])) for name in names}

    return jax.jit(accelerate)


def _in_parts(rows: PyTree) -> PyTree:
    """The rows as equal parts, which are computed one after another: (parts, rows of each, ...)."""
    count = batches.rows(rows)
    size = next(size for size in range(min(_ROWS, count), 0, -1) if count % size == 0)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
