"""The floors of the house: each imports only from floors below it, and the device's floors need NumPy alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a module belongs to the first entry that it is, or lies in.
FLOORS = [
    {"updcomp.wire"},
    {"updcomp.edge"},
    {"updcomp.processes"},
    {
        f"updcomp.{name}"
        for name in (
            *(
                "arrays",
                "trees",
                "partition",
                "delta",
                "contribution",
                "selection",
                "factorize",
                "subspace",
                "quantize",
            ),
            *("neurons", "layers", "program", "products", "convolution", "differences", "changes", "lossy"),
        )
    },
    {"updcomp.api"},
    {"updcomp.training"},
    {"updcomp.methods"},
    {"updcomp.protocol", "updcomp.__main__"},
    {"experiments"},
    {"run"},
]
NUMPY_ONLY = 2  # floors
ALLOWED = set(sys.stdlib_module_names) | {"numpy"}


def _sources() -> list[Path]:
    return [*(ROOT / "updcomp").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "run.py"]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _floor(module: str) -> int | None:
    for height, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return height
    return None


def _imports(path: Path) -> set[str]:
    """Every module imported anywhere in a file; `from a import b` counts as a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if _exists(name) else str(node.module) for name in modules}
    return found


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_its_floor_and_below(path):
    module = _module(path)
    if module == "updcomp":  # re-exports lazily
        return
    height = _floor(module)
    assert height is not None, f"{module} stands on no floor"
    above = {name for name in _imports(path) if name == "updcomp" or (_floor(name) or 0) > height}
    assert not above, f"{module} imports from above: {sorted(above)}"


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_floors_of_the_device_import_numpy_alone(path):
    height = _floor(_module(path))
    if height is not None and height < NUMPY_ONLY:
        foreign = {name.split(".")[0] for name in _imports(path)} - ALLOWED - {"updcomp"}
        assert not foreign, f"{path.name} imports {sorted(foreign)}"


def test_a_fresh_process_that_imports_the_edge_loads_no_server_package():
    code = "import sys, updcomp.edge, updcomp.edge.files; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "numpy" in loaded
    assert not loaded & {"jax", "flax", "optax", "scipy", "orbax", "absl", "ml_dtypes", "safetensors"}
