"""The README's Python runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_readme_runs(capsys):
    diff, train = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(diff, {})
    sizes = capsys.readouterr().out.split()
    assert int(sizes[1]) <= 2_000
    exec(train, {})
    before, after = map(float, capsys.readouterr().out.split())
    assert after > before


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([\w/.]+)\)", text)
    paths = re.findall(r"`((?:updcomp|experiments|docs)/[\w/]*(?:\.\w+)?)`", text)
    assert links
    assert paths
    assert [path for path in links + paths if not (ROOT / path).exists()] == []
