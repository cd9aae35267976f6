"""The whole way of Table 3 on a stand-in: real formats, real code, tiny random networks.

MS-COCO in little, a tiny Stable Diffusion pipeline, random weights of the real Inception and a tiny
CLIP: from the annotations to the rendered tables.  The numbers mean nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from conftest import ROOT, done, interrupt, refused, standin_inception
from PIL import Image
from standin_scorers import CleanInception, tiny_clip
from test_prepare_coco import PICTURES, annotations

import evaluate
import reproduce
import sample
from eval import networks
from eval.preprocessing import Preprocessing
from files.whole import file_sha256
from scripts import prepare_coco

# clean-fid's network is TorchScript, which torch is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What a user has downloaded."""
    folder = tmp_path_factory.mktemp("table3")
    (folder / "captions_val2014.json").write_text(json.dumps(annotations()))
    (folder / "val2014").mkdir()
    for image, content in PICTURES.items():
        (folder / f"val2014/COCO_val2014_{image:012d}.jpg").write_bytes(content)
    standin_inception(folder / "inception.pth")
    torch.jit.script(CleanInception()).save(str(folder / "inception-2015-12-05.pt"))
    tiny_clip(folder)
    tiny.stable_diffusion(folder / "sd")
    return folder


@pytest.fixture
def coco(script):
    return partial(script, prepare_coco.main)


@pytest.fixture(autouse=True)
def published(site, monkeypatch):
    """The stand-ins pass for the published files."""
    for name, file in (
        ("INCEPTION", "inception.pth"),
        ("CLEAN_INCEPTION", "inception-2015-12-05.pt"),
    ):
        digest = file_sha256(site / file)
        monkeypatch.setattr(networks, name, replace(getattr(networks, name), sha256=digest))


def test_from_captions_to_table3(command, coco, site, monkeypatch, tmp_path):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    model = ["model=sd", "model.name=standin", f"model.id={site / 'sd/pipeline'}"]
    model += ["model.precision=fp32"]
    small = [*model, "num_samples=4", "experiment.steps=[3]", "shard_size=2"]
    options = {"allow_few": "true", "kid_subset_size": 4, "is_splits": 2}
    few = [f"metrics.options.{key}={value}" for key, value in options.items()]
    # Nothing is there yet, and the commands say how to get it.
    outcome = command(reproduce, "experiment=table3", *small, *few)
    refused(outcome, "no prompts at")
    refused(outcome, "prompts=FILE")

    done(coco("captions", "--annotations", site / "captions_val2014.json", "--count", 4))
    outcome = command(reproduce, "experiment=table3", *small, *few)
    refused(outcome, "`python -m scripts.download inception` fetches")
    weights = tmp_path / "downloads/weights-inception-2015-12-05-6726825d.pth"
    weights.symlink_to(site / "inception.pth")
    outcome = command(reproduce, "experiment=table3", *small, *few)
    refused(outcome, "make it with `python -m scripts.prepare_coco images")
    assert not list((tmp_path / "runs").rglob("shard-*.npz"))  # said before days of sampling
    out = done(coco("images", "--images", site / "val2014", "--statistics", "table3"))
    (statistics,) = (tmp_path / "downloads/references").iterdir()
    said = f"table3: Reference(coco_center_lanczos256, inception, n=10, {statistics.stem[-12:]})"
    assert said in out

    status, out, _ = command(reproduce, "experiment=table3", *small, "dry=true")
    assert status == 0 and "2 cells, 24 image calls" in out

    # Interrupted between two shards, and continued.
    clip = [f"metrics.model={site / 'tiny-clip.json'}", f"metrics.pretrained={site / 'random.pt'}"]
    cut = ["experiment=table3_clip", *small, "experiment.steps=[30]", "out=cut", *clip]
    pattern = "runs/standin/*/shards/shard-00000.npz"
    interrupt([sys.executable, str(ROOT / "reproduce.py"), *cut], tmp_path, pattern)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob(pattern)}
    out = done(command(reproduce, *cut))
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len(list(tmp_path.glob("runs/standin/*/shards/shard-*.npz"))) == 4
    assert "CLIP score (clip-tiny-clip-random-32), higher is better" in out

    out = done(command(reproduce, "experiment=table3", *small, *few, "out=t3"))
    # The statistics are used, not made anew.
    assert list((tmp_path / "downloads/references").iterdir()) == [statistics]
    for words in (
        *("Table 3 on standin", "Model `standin`, checkpoint `pipeline`", "4 prompts ("),
        "classifier-free guidance 7.5 (two network evaluations a call)",
        *("spacing `leading+1`", "both at 256 pixels by center_lanczos"),
        *("reference `coco_center_lanczos256` (10 images", "| DDIM |", "| Mix |"),
        *("another model than ours", "| SD_2.1 | 17.48 | 19.23 |"),
    ):
        assert words in out, words
    records = json.loads((tmp_path / "t3/records.json").read_text())
    assert {r["row"] for r in records} == {"DDIM", "Mix"}
    assert records[0]["preprocess"] == {"name": "center_lanczos", "size": 256}
    config = records[0]["cell"]["config"]
    assert config["prompts"]["count"] == 4 and config["evaluations_per_call"] == 2
    assert not config["model"]["set_alpha_to_one"]

    # Another way of preprocessing is another reference, and other scores of the same samples.
    done(coco("images", "--images", site / "val2014", "--preprocess", "bicubic"))
    inception_score = ["metrics.scores=[is]", "experiment.metrics=[is]", "~experiment.rows.Mix"]
    words = ["experiment=table3", *small, *few, "reference=coco_bicubic256", *inception_score]
    out = done(command(reproduce, *words, "out=t3b"))
    assert "both at 256 pixels by bicubic" in out
    other = json.loads((tmp_path / "t3b/records.json").read_text())[0]
    there = next(r for r in records if r["row"] == "DDIM")
    assert other["cell"] == there["cell"] and other["scores"]["is"] != there["scores"]["is"]

    # The same samples by clean-fid and by CLIP.
    before = sorted((tmp_path / "runs").rglob("shard-*.npz"))
    clean = [f"metrics.weights={site / 'inception-2015-12-05.pt'}", few[0], "~experiment.rows.Mix"]
    out = done(command(reproduce, "experiment=table3_clean", *small, *clean, "out=t3c"))
    assert "FID (clean), lower is better" in out
    out = done(command(reproduce, "experiment=table3_clip", *small, *clip, "out=t3d"))
    assert "CLIP score (clip-tiny-clip-random-32), higher is better" in out
    assert "no reference" in out
    assert sorted((tmp_path / "runs").rglob("shard-*.npz")) == before
    record = json.loads((tmp_path / "t3d/records.json").read_text())[0]
    assert record["clip"] == {"model": "tiny-clip", "pretrained": "random", "image_size": 32}
    assert record["reference"] is None

    # A second time nothing is sampled or scored anew, and it renders from the records alone.
    stored = (tmp_path / "t3/records.json").read_bytes()
    done(command(reproduce, "experiment=table3", *small, *few, "out=t3"))
    assert (tmp_path / "t3/records.json").read_bytes() == stored
    words = ["experiment=table3", *model, "render_only=true", "out=t3"]
    done(command(reproduce, *words))
    assert not list((ROOT / "results").glob("standin*"))


def test_figure_5_with_its_own_prompts_over_the_pictures(command, site, tmp_path):
    words = ["model=sd", "model.name=standin", f"model.id={site / 'sd/pipeline'}"]
    words += ["model.precision=fp32", "experiment=figure5", "experiment.steps=[3]", "out=figure5"]
    done(command(reproduce, *words))
    assert Image.open(tmp_path / "figure5/figure.png").width > 1000
    assert "same x_T, prompt and noise" in (tmp_path / "figure5/figure.md").read_text()


def test_samples_are_reduced_as_the_reference_was(command, coco, site, monkeypatch, tmp_path):
    """evaluate.py on 512-pixel samples gives what it gives on the same, reduced by hand."""
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    done(coco("images", "--images", site / "val2014", "--preprocess", "bicubic"))
    large = np.random.default_rng(0).integers(256, size=(4, 512, 512, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", arr_0=large)
    np.savez(tmp_path / "small.npz", arr_0=Preprocessing("bicubic", 256)(large))
    words = ["reference=coco_bicubic256", "metrics=torch_fidelity", "metrics.extractor=inception"]
    words += ["metrics.scores=[is]", "metrics.options.is_splits=2"]
    values = []
    for name in ("large", "small"):
        samples = [f"samples={name}.npz", f"metrics.weights={site / 'inception.pth'}"]
        out = done(command(evaluate, *samples, *words, "out=record.json"))
        assert "both at 256 pixels by bicubic" in out
        values.append(json.loads(Path("record.json").read_text())["scores"]["is"]["value"])
    assert values[0] == values[1]


def test_the_command_line_of_the_readme(command, site, tmp_path):
    (tmp_path / "file.txt").write_text("a cat\na dog\n")
    words = ["model=sd21", f"model.id={site / 'sd/pipeline'}", "prompts=file.txt", "sampler=mix"]
    out = done(command(sample, *words, "steps=20", "model.precision=bf16"))
    assert "2 samples, 20 network calls each (two evaluations a call): runs/sd21/mix-" in out
