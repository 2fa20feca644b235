"""The two forms of each notebook of docs/notebooks say the same. The build of the site in CI runs them.

To make the forms of a pair the same again, the one that was changed last counts, without outputs:

    jupytext --sync docs/notebooks/*.py && jupyter nbconvert --clear-output --inplace docs/notebooks/*.ipynb
"""

import json
import re
from pathlib import Path
from typing import Any

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
