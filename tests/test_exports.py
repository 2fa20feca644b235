"""Whatever the library compiles lowers for GPUs and TPUs as well: exported for both, on a machine without either."""

import ast
import contextlib
import functools
import importlib
import inspect
import pkgutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import updcomp
from experiments import scale_cells
from tests.methods import worlds
from tests.methods.test_sharded import sharded
from updcomp import contribution, convolution, delta, methods, quantize, selection
from updcomp.training import analysis, classification, devices, make_score, shifts, steps, validation
from updcomp.training.data import Dataset
from updcomp.training.language_model import language_model
from updcomp.training.transformer import transformer

PLATFORMS = ("cuda", "tpu")
JITTED = type(jax.jit(lambda: 0))
METHODS = {
    "full": {},
    "partial": {"ratio": 0.3},
    "low_rank": {"rank": 2},
    "subspace": {"rank": 2},
    "random_mask": {"ratio": 0.3},
    "magnitude_mask": {"ratio": 0.3},
    "neurons": {"selection": "velocity", "weights": 0.5},
    "random_low_rank": {"rank": 2},
    "truncated_svd": {"rank": 2},
}
MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(updcomp.__path__, "updcomp.")
    if not info.name.endswith("__main__")
]


class Exporting:
    """A compiled function that is exported for other platforms when it is called; of a training no step is run."""

    def __init__(self, function, where, exports):
        self.function, self.where, self.exports = function, where, exports

    def __call__(self, *args, **options):
        self.lower(*args, **options)
        return args[0] if args and isinstance(args[0], steps.State) else self.function(*args, **options)

    def lower(self, *args, **options):
        leaves, structure = jax.tree.flatten((args, options))
        shapes = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) if hasattr(x, "dtype") else x for x in leaves)
        if (key := (self.where, self.function, structure, shapes)) not in self.exports:
            self.exports[key] = export.export(self.function, platforms=PLATFORMS)(*args, **options)


@contextlib.contextmanager
def exporting():
    """Within it, what the library compiles is exported: (where it is compiled, ...) -> what was exported."""
    exports, jit = {}, jax.jit

    def jit_and_export(function, **options):
        caller = sys._getframe(1)
        where = caller.f_globals["__name__"], caller.f_code.co_qualname
        return Exporting(jit(function, **options), where, exports)

    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in compiled_members():
            patch.setattr(module, name, Exporting(value, (module.__name__, name), exports))
        for module, name, value in members():
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                # Neither what other tests have compiled, nor for them what is exported here.
                patch.setattr(module, name, functools.lru_cache(value.__wrapped__))
        patch.setattr(jax, "jit", jit_and_export)
        patch.setattr(analysis, "temporary_bytes", lambda lowered: 1)
        patch.setattr(analysis, "flops", lambda lowered: 1.0)
        patch.setattr(analysis, "step_flops", lambda training: 1.0)  # of programs that never run
        patch.setattr(analysis, "_known", {})
        yield exports


def members():
    return [(module, name, value) for module in MODULES for name, value in vars(module).items()]


def compiled_members():
    return [found for found in members() if isinstance(found[2], JITTED)]


def compiled_within(tree, outer=()):
    """The qualified names of the functions that call `jax.jit` when they are called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                yield from compiled_within(ast.Expr(decorator), outer)
            inner = (*outer, node.name) if isinstance(node, ast.ClassDef) else (*outer, node.name, "<locals>")
            yield from compiled_within(ast.Module(node.body, []), inner)
        elif outer and isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.jit":
            yield ".".join(outer).removesuffix(".<locals>")
        else:
            yield from compiled_within(node, outer)


def all_compiled():
    """Every place in the library where something is compiled."""
    within = {
        (module.__name__, name)
        for module in MODULES
        if hasattr(module, "jax")
        for name in compiled_within(ast.parse(inspect.getsource(module)))
    }
    return within | {(module.__name__, name) for module, name, _ in compiled_members()}


def text():
    """A language model whose blocks are scanned, and its task."""
    network = transformer(vocabulary=11, width=8, depth=2, heads=2, length=6, stacked=True, dropout=0.1)
    data = {"tokens": jnp.zeros((8, 7), jnp.uint8), "mask": jnp.ones((8, 6), bool)}
    _, task = worlds.tokens()
    task = task._replace(objective=language_model(network.apply), train=data, validation=data, axes=network.axes)
    return network.init(worlds.KEY), task._replace(batch_size=4)


def images():
    """Convolutions and batch norm, and their task."""
    network, generator = worlds.MODELS["cnn"], np.random.default_rng(0)
    data = jax.device_put(Dataset(generator.integers(0, 256, (8, 8, 8, 1), np.uint8), np.arange(8, dtype=np.int32)))
    _, task = worlds.regression()
    task = task._replace(objective=classification(network.apply), train=data, validation=data, batch_size=4)
    return network.init(worlds.KEY, data.images), task


def train(method, deployed, task):
    packet = method(worlds.KEY, deployed, task._replace(epochs=2))  # the velocities of neurons need two
    assert dict(packet.blocks).keys() == packet.blocks.keys()  # lazy ones are made


def test_every_program_of_the_library_lowers_for_gpus_and_tpus():
    with exporting() as exports:
        deployed, task = worlds.regression()
        for name, options in METHODS.items():
            for model in (deployed, sharded(deployed)):
                train(methods.METHODS[name](**options), model, task)
        train(methods.partial(ratio=0.3, fixed_share=0.5), deployed, task)
        train(methods.neurons(selection="gradient", weights=0.5), *images())
        train(methods.full(bits=8), *text())
        validation.score(deployed, task)
        make_score(task.objective)(deployed, task.validation)
        delta.to_block(jnp.zeros(4), jnp.ones(4), 4)
        other = {**deployed, "first": {**deployed["first"], "kernel": deployed["first"]["kernel"].at[0, 0].add(1)}}
        assert dict(updcomp.diff(sharded(deployed), sharded(other)).blocks)
        still = Dataset(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32))
        shifts.shift_dataset(still, shifts.random_rotation, worlds.KEY, low=30.0, high=45.0)
    assert METHODS.keys() < methods.METHODS.keys()  # the others train by programs of these
    assert {where for where, *_ in exports} == all_compiled()
    spans = {(where, exported.nr_devices) for (where, *_), exported in exports.items()}
    trained = {where for where, _ in spans if where[0] == "updcomp.training.steps"}
    assert trained
    assert {(where, count) for where in trained for count in (1, 2)} <= spans


def tree(count):
    scores = {"a": jnp.arange(2048.0).reshape(32, 64), "b": jnp.ones(2048)}
    return devices.split(scores, devices.make_mesh(jax.devices()[:count], model=count))


@pytest.mark.parametrize("count", [1, 2])
def test_pure_functions_lower_for_gpus_and_tpus(count):
    scores, exports = tree(count), {}

    def combined(old, new):
        return contribution.combine(contribution.squared_change(old, new), new)

    def rounded(leaf):
        return quantize.straight_through(leaf, quantize.dynamic_step(leaf, 4), 4)

    for function, args in (
        (lambda scores: selection.top_k(scores, 5), [scores]),
        (combined, [scores, scores]),
        (rounded, [scores["a"]]),
        (scale_cells.choose, [scores]),
        (scale_cells.checked, [scores["a"], scores["a"] > 0, np.uint32(0)]),
        (functools.partial(scale_cells.scores_of, {"a": (4, 4)}), []),
    ):
        Exporting(jax.jit(function), None, exports)(*args)
    assert {exported.nr_devices for exported in exports.values() if exported.in_avals} == {count}


def test_what_only_the_cpu_computes_does_not_pass():
    with pytest.raises(NotImplementedError):
        Exporting(jax.jit(jnp.linalg.eig), None, {}).lower(jnp.eye(2))


def test_convolutions_are_chosen_by_the_platform_that_they_are_lowered_for():
    def programs(platform):
        layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        function = jax.jit(lambda images, kernel: convolution.convolve(images, kernel, (1, 1), "SAME", **layout))
        return export.export(function, platforms=[platform])(
            jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
        ).mlir_module()

    assert "stablehlo.convolution" not in programs("cpu")
    assert all("stablehlo.convolution" in programs(platform) for platform in PLATFORMS)
