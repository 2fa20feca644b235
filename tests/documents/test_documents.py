"""The README and the pages of the site: what they show runs, and what they name is there."""

import re

import pytest

from tests.documents import pages
from tests.documents.commands import ROOT


@pytest.mark.parametrize("path", pages.paths(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_shows_runs_and_what_it_names_is_there(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = pages.read(path)
    names = pages.run(page, tmp_path)
    assert pages.problems(page, names) == []


def test_the_readme_shows_an_update_of_ones_own_model_in_its_first_block():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 100
    first = pages.read(ROOT / "README.md").blocks[0]
    assert first.info == "python"
    assert all(name in first.text for name in ("updcomp.diff", "updcomp.encode", "updcomp.apply"))
    # The commands of a fresh machine stand there to be copied.
    setup = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python"
    assert f"    {setup} run.py\n" in text
    assert f"    {setup} -m pytest\n" in text


def test_every_picture_is_shown_on_a_page():
    shown = "".join(path.read_text() for path in pages.paths())
    assert [path.name for path in (ROOT / "docs").rglob("*.svg") if f"/{path.name})" not in shown] == []


WRONG = {
    "a flag": ("Use `--bujet=10`.", "`--bujet=10`: no such flag"),
    "a flag's value": ("Use `--model=mpl`.", "--model"),
    "an experiment": ("Use `--experiment=quikstart`.", "quikstart"),
    "a flag of a command": ("```bash\npython run.py --sampels=3\n```", "sampels"),
    "a method of a command": ("```bash\npython run.py --settings=low_rnk:rank=1\n```", "low_rnk"),
    "an option of the server": ("```bash\npython -m updcomp diff a b -o c --max-bites=1\n```", "max-bites"),
    "a command of the device": ("    python -m updcomp.edge instal STORE\n", "instal"),
    "a flag of a module": ("```bash\npython -m tests.fuzz --tarjet=all\n```", "--tarjet: no such flag"),
    "a program": ("```bash\nupdcomp-edge init\n```", "updcomp-edge: no such program"),
    "a preset of a command": ("```bash\npython run.py --flagfile=experiments/presets/x.flags\n```", "x.flags"),
    "a preset": ("See `experiments/presets/mlp_mist.flags`.", "mlp_mist.flags`: no such file"),
    "a bare preset": ("See `mlp_mist.flags`.", "mlp_mist.flags`: no such file"),
    "a file that is installed": ("Run `pip install -r requirement.txt`.", "requirement.txt: no such file"),
    "a folder": ("See `updcomp/wires/`.", "updcomp/wires/`: no such file"),
    "a function": ("Use `selection.topk`.", "selection.topk: no such name"),
    "a called function": ("Use `methods.lowrank(rank=1)`.", "methods.lowrank: no such name"),
    "an argument": ("Use `methods.low_rank(ratio=1)`.", "ratio: no such argument"),
    "a class": ("A `Tassk`.", "Tassk: no such word"),
    "an attribute": ("A `training.Task.epoch`.", "training.Task.epoch: no such name"),
    "a word": ("The option `fixd_share`.", "fixd_share: no such word"),
    "a name of the page": ("```python\nx = 1\n```\n`x.imaginry` is 0.", "x.imaginry: no such name"),
    "a link": ("[here](nowhere.md)", "link to nowhere.md: no such file"),
    "an anchor": ("# Title\n\n[here](#tittle)", "link to #tittle: no such heading"),
    "an image": ("![picture](none.png)", "image to none.png: no such file"),
    "a page of the contents": ("```{toctree}\n:hidden:\n\nnone\n```", "toctree: none: no such page"),
    "an included file": ("```{include} none.md\n```", "include of none.md: no such file"),
    "a name of the reference": ("```{eval-rst}\n.. automodule:: updcomp.mehtods\n```", "updcomp.mehtods: no such name"),
    "python that is not run": ("```python\n# Not run by the tests: slow.\nx = = 1\n```", "python block"),
    "a block without a language": ("```\nx\n```", "block of no language"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_there_is_found(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, problem = WRONG[what]
    (tmp_path / "page.md").write_text(f"{text}\n" if text.startswith("#") else f"Text.\n\n{text}\n")
    page = pages.read(tmp_path / "page.md")
    names = pages.run(page, tmp_path) if "x = 1" in text else {}
    found = pages.problems(page, names)
    assert len(found) == 1, found
    assert problem in found[0]


def test_what_a_page_shows_can_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        pages.run(pages.read(tmp_path / "page.md"), tmp_path)
    (tmp_path / "page.md").write_text("```bash\npython -m updcomp.edge verify a.npz b.upd\n```\n")
    with pytest.raises(AssertionError, match=re.escape("updcomp.edge verify")):
        pages.run(pages.read(tmp_path / "page.md"), tmp_path)
