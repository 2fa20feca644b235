"""The README's Python runs as it stands."""

import re
from pathlib import Path
from typing import Any

import updcomp

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diff, store, train, neurons = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(diff, names)
    exec(store, names)
    assert names["version"] == 2
    assert names["model"]["layer/kernel"].tobytes() == names["new"]["layer"]["kernel"].tobytes()
    sizes = capsys.readouterr().out.split()
    assert int(sizes[1]) <= 2_000
    exec(train, {})
    before, after = map(float, capsys.readouterr().out.split())
    assert after > before
    names = {}
    exec(neurons, names)
    score = updcomp.training.make_score(names["task"].objective)
    assert names["outcome"].spent.peak_bytes <= 0.5 * names["outcome"].full.memory
    assert score(names["new"], names["validation"]) > score(names["deployed"], names["validation"])


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([\w/.]+)\)", text)
    paths = re.findall(r"`((?:updcomp|experiments|docs)/[\w/]*(?:\.\w+)?)`", text)
    assert links
    assert paths
    assert [path for path in links + paths if not (ROOT / path).exists()] == []
