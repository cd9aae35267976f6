"""What the README says in code is true."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs_and_prints_what_it_says(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope: dict = {}
    exec(block, scope)
    assert scope["images"].shape == (4, 1, 28, 28)
    out = capsys.readouterr().out
    said = re.search(r"# (\[10, 10\]) in (\d+) calls", block)
    assert out.strip().endswith(f"{said[1]} {said[2]}")


def test_every_target_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z0-9_]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_result_tables_are_those_of_the_stored_records():
    """Every row of the results section stands in a rendered table, digit by digit."""
    section = README.split("## Results on digits")[1].split("\n## ")[0]
    rendered = "\n".join(path.read_text() for path in ROOT.glob("results/digits/*/*.md"))
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 8
    for row in rows:
        assert row in rendered, row


def test_links_and_named_files_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
