"""The notebooks of docs/notebooks run as they stand, and their two forms say the same.

To make the forms of a pair the same again, the one that was changed last counts, without outputs:

    jupytext --sync docs/notebooks/*.py && jupyter nbconvert --clear-output --inplace docs/notebooks/*.ipynb
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = sorted({path.stem for path in FOLDER.iterdir() if path.suffix in (".ipynb", ".py")})


def notebook(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def cells_of_notebook(name: str) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook(name)]


def cells_of_text(name: str) -> list[tuple[str, str]]:
    """The percent format: `# %%` begins a cell of code, `# %% [markdown]` one of text, a comment in each line."""
    _, *parts = re.split(r"^# %%", (FOLDER / f"{name}.py").read_text(), flags=re.MULTILINE)
    cells = []
    for head, _, body in (part.partition("\n") for part in parts):
        if "[markdown]" in head:
            cells.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            cells.append(("code", body.strip()))
    return cells


@pytest.fixture
def _without_display():
    backend = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


def test_there_are_notebooks():
    assert {"by_hand", "checkpoints", "own_model"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_of_a_notebook_have_the_same_cells(name):
    assert cells_of_text(name) == cells_of_notebook(name)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs(name):
    code = [cell for cell in notebook(name) if cell["cell_type"] == "code"]
    assert code
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("_without_display")
def test_the_cells_of_a_notebook_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, (kind, source) in enumerate(cells_of_notebook(name)):
        if kind == "code":
            exec(compile(source, f"{name}.ipynb, cell {number}", "exec"), names)
    assert list(tmp_path.iterdir()) == [], "a notebook leaves nothing behind"
