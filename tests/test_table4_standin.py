"""Table 4 end to end on a stand-in: a tiny Open-Sora, four prompts, and a program in VBench's place.

The program takes VBench's arguments, looks for the videos where VBench does, and writes files of
its form with made-up scores.
"""

from __future__ import annotations

import json
import stat
import sys
from functools import partial

import pytest
import tiny_pipelines as tiny
from conftest import ROOT, done, refused
from PIL import Image

import reproduce
from eval.vbench import DIMENSIONS
from scripts import vbench

INFO = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red bus", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
    {"prompt_en": "The bund Shanghai, oil painting", "dimension": ["appearance_style"]},
    {"prompt_en": "The bund Shanghai, oil painting", "dimension": ["overall_consistency"]},
]
PROGRAM = f"""#!{sys.executable}
import json, os, shutil, sys, zlib
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert os.environ["CUDA_VISIBLE_DEVICES"] in ("0", "1")
if sys.argv[1] == "static_filter":
    kept = os.path.join(words["--result_path"], "filtered_videos")
    os.makedirs(kept)
    for name in sorted(os.listdir(words["--videos_path"]))[:3]:
        shutil.copy(os.path.join(words["--videos_path"], name), kept)
    sys.exit(0)
assert sys.argv[1] == "evaluate"
prompts = {{e["prompt_en"] for e in json.load(open(words["--full_json_dir"]))}}
videos = sorted(os.listdir(words["--videos_path"]))
assert {{name.rpartition("-")[0] for name in videos}} <= prompts, videos
dimension = words["--dimension"]
broken = os.path.join(os.path.dirname(__file__), "broken")
if os.path.exists(broken) and open(broken).read() == dimension:
    open(os.path.join(words["--output_path"], "half_eval_results.json"), "w").write('{{"co')
    sys.exit(1)
value = 0.2 + zlib.crc32((dimension + videos[0]).encode()) % 100 / 200
rows = [{{"video_path": name, "video_results": value + 0.01 * i}} for i, name in enumerate(videos)]
name = os.path.join(words["--output_path"], "results_2026-01-01-00:00:00_eval_results.json")
json.dump({{dimension: [value, rows]}}, open(name, "w"))
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tiny.opensora(tmp_path_factory.mktemp("table4"))
    (folder / "VBench_full_info.json").write_text(json.dumps(INFO))
    return folder


@pytest.fixture
def tool(script):
    return partial(script, vbench.main)


def test_table4(command, tool, parts, monkeypatch, tmp_path):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    model = {"id": parts / "net", "text_encoder": parts / "t5", "vae": parts / "vae"}
    model |= {"precision": "fp32", "num_frames": 3, "height": 32, "width": 48, "name": "standin"}
    words = [f"model.{key}={value}" for key, value in model.items()]
    table = ["experiment=table4", *words, "experiment.steps=[3]", "num_samples=6", "batch_size=6"]
    refused(command(reproduce, *table), "no prompts at")

    # The suite: every prompt once.
    refused(tool("prompts"), "run `python -m scripts.vbench setup`, or pass --info")
    out = done(tool("prompts", "--info", parts / "VBench_full_info.json"))
    home = tmp_path / "downloads/vbench"
    prompts = list(dict.fromkeys(e["prompt_en"] for e in INFO))
    assert (home / "prompts.txt").read_text().splitlines() == prompts
    assert (home / "flickering.txt").read_text() == "In a still frame, a stop sign\n"

    # Planned before anything long.
    out = done(command(reproduce, *table, "dry=true"))
    assert "4 cells, 72 image calls" in out and "memory while sampling: about" in out
    assert "bytes written:" in out and "calibration:" in out
    assert not (tmp_path / "downloads/opensora_text").exists()  # no encoder for a plan

    # Sampled, but not scored yet: the command says how, and continues after it.
    outcome = command(reproduce, *table)
    refused(outcome, "VBench has not scored runs/standin/")
    refused(outcome, "-m scripts.vbench run")
    runs = sorted((tmp_path / "runs/standin").iterdir())
    assert len(runs) == 4
    videos = {p.name for p in (runs[0] / "videos").iterdir()}
    assert videos == {f"{prompt}-{k}.mp4" for prompt in prompts for k in (0, 1)}
    refused(tool("run", runs[0]), "bin/vbench is missing: run `python -m scripts.vbench setup`")
    program = home / "env/bin/vbench"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    # One dimension fails; what is done is kept, and the same command continues.
    (program.parent / "broken").write_text("scene")
    outcome = tool("run", runs[0], "--gpus", "0,1")
    refused(outcome, "VBench failed on scene (see")
    refused(outcome, "run the same command")
    out = done(tool("score", runs[0], "--partial"))
    assert "no total: " in out and "scene" in out and out.count("total ") == out.count("no total ")
    (program.parent / "broken").unlink()
    first = {p: p.stat().st_mtime_ns for p in (runs[0] / "vbench").glob("*.json")}
    done(tool("run", *runs, "--gpus", "0,1", "--dimensions", *list(DIMENSIONS)[1:]))
    refused(
        command(reproduce, *table), "VBench has no result for subject_consistency: run `python -m"
    )
    out = done(tool("run", *runs, "--gpus", "0,1"))
    for run in runs:
        assert len(list((run / "vbench").glob("*_eval_results.json"))) == len(DIMENSIONS)
    assert first == {p: p.stat().st_mtime_ns for p in first}
    assert not list((tmp_path / "runs").rglob(".part*"))

    # Temporal flickering from videos of its own, more of them, where they are sampled.
    flickering = ["experiment=table4_flickering", *words, "experiment.steps=[3]"]
    flickering += ["num_samples=5", "batch_size=5"]
    done(command(reproduce, *flickering))
    more = sorted(set((tmp_path / "runs/standin").iterdir()) - set(runs))
    assert len(more) == 4
    (runs[0] / "vbench/temporal_flickering_eval_results.json").unlink()
    done(tool("run", runs[0], "--flickering", more[0]))
    result = json.loads((runs[0] / "vbench/temporal_flickering_eval_results.json").read_text())
    seen = {row["video_path"] for row in result["temporal_flickering"][1]}
    assert seen == {f"In a still frame, a stop sign-{k}.mp4" for k in range(3)}  # static
    refused(
        tool("run", *runs, "--flickering", more[0]), "give as many --flickering folders as runs, 4"
    )
    # A table of both kinds would mix protocols.
    refused(command(reproduce, *table, "out=t4"), "a table never mixes protocols: options")
    (runs[0] / "vbench/temporal_flickering_eval_results.json").unlink()
    done(tool("run", runs[0]))

    out = done(command(reproduce, *table, "out=t4"))
    for said in (
        *("# Table 4 on standin", "Total score (vbench), higher is better", "(N=6)", "3 prompts ("),
        *("in turn", "| DDPM (as shipped) |", "| Mix |", "| OpenSora_1.1 | 74.26 |"),
        *("steps not stated", "another model than ours"),
    ):
        assert said in out, said
    records = json.loads((tmp_path / "t4/records.json").read_text())
    assert {r["row"] for r in records} == {"DDPM (as shipped)", "DDIM", "Skipped-Step", "Mix"}
    assert set(records[0]["dimensions"]) == set(DIMENSIONS)
    assert {r["row"]: r["options"]["static_filter"] for r in records}["Mix"] is False
    total = records[0]["scores"]["total"]["value"]
    quality, semantic = (records[0]["scores"][k]["value"] for k in ("quality", "semantic"))
    assert total == pytest.approx((4 * quality + semantic) / 5)
    assert "Total" in (tmp_path / "t4/table.tex").read_text()

    # Figure 7: frames side by side, the cactus first.
    figure = ["experiment=figure7", *words, "experiment.steps=[2]", "experiment.frames=3"]
    done(command(reproduce, *figure, "out=f7"))
    assert Image.open(tmp_path / "f7/figure.png").width > 800
    text = (tmp_path / "f7/figure.md").read_text()
    assert "DDPM (as shipped) (variance learned)" in text
    assert not list((ROOT / "results").glob("standin*"))


def test_runs_that_vbench_cannot_read_are_refused(tool, monkeypatch, tmp_path):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    program = tmp_path / "env/bin/vbench"
    program.parent.mkdir(parents=True)
    program.touch()
    run = tmp_path / "run"
    run.mkdir()
    facts = {"config": {"names": "id"}, "plan": "", "nfe": 1, "num_samples": 1, "shard_size": 1}
    for more, message in (
        ({"complete": False}, "is no complete run of videos"),
        ({"complete": True, "videos": True}, "was not sampled with names=prompt"),
    ):
        (run / "manifest.json").write_text(json.dumps({**facts, **more}))
        refused(tool("run", run, "--env", tmp_path / "env"), message)
    out = done(tool("setup", "--dry", "--env", tmp_path / "other"))
    assert "vbench==0.1.5" in out and "detectron2" in out
    assert {path.name for path in tmp_path.iterdir()} == {"env", "run"}
