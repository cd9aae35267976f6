"""The three commands as their user meets them: outputs, no-ops, and one line for each mistake."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import FEW, ROOT, done, refused, write_standin
from PIL import Image

import evaluate
import reproduce
import sample
from eval.records import load_records, save_records
from experiments import config as configuration
from experiments import experiment
from experiments.cells import Settings
from experiments.config import composed, load_backbone, pick_device, settings_of
from experiments.folder import read_manifest
from files.whole import write_text
from models.adm.backbone import load
from models.weights import read_weights

SMALL = ["model.checkpoint=unet-1000", "batch_size=40"]


def sample_into(command, out, *overrides):
    return command(sample, *SMALL, f"out={out}", "steps=3", "num_samples=5", *overrides)


def test_sample_writes_samples_grid_and_manifest(command, tmp_path):
    status, out, _ = sample_into(command, "a", "sampler=mix", "show_plan=true")
    assert status == 0
    assert "3 network calls" in out
    assert "x0_previous" in out  # the plan's table
    with np.load(tmp_path / "a" / "samples.npz") as file:
        assert file["arr_0"].shape == (5, 28, 28, 1)
    assert (tmp_path / "a" / "grid.png").is_file()
    config = read_manifest(tmp_path / "a")["config"]
    assert config["sampler"] == {"name": "mix", "cutoff": 291}
    assert config["spacing"] == "even"
    assert len(config["model"]["sha256"]) == 64


def test_every_part_has_a_progress_bar_and_every_torchrun_has_one(command, monkeypatch):
    for part in (0, 1):
        _, _, err = sample_into(command, "a", "shard_size=2", "parts=2", f"part={part}")
        assert "image call" in err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "image call" not in sample_into(command, "b", "shard_size=2")[2]


def test_same_command_twice_is_a_no_op_and_another_config_is_refused(command):
    assert sample_into(command, "a")[0] == 0
    status, _, err = sample_into(command, "a")
    assert status == 0 and "image call" not in err  # no progress bar: nothing was sampled
    refused(sample_into(command, "a", "sampler.cutoff=400"), "cutoff is 291 there, 400 here")


def test_float32_is_float32_on_a_gpu_too(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pick_device("cpu")
    assert torch.backends.cudnn.allow_tf32 is False


def test_default_folders_differ_by_config(command, tmp_path):
    for overrides in (["seed=0"], ["seed=1"], ["sampler=ddim"], ["label=7"]):
        done(command(sample, *SMALL, "steps=2", "num_samples=2", *overrides))
    assert len(list((tmp_path / "runs" / "digits").iterdir())) == 4


@pytest.mark.parametrize(("label", "labels"), [("balanced", [0, 1, 2, 3, 4]), ("7", [7] * 5)])
def test_label_and_png(command, tmp_path, label, labels):
    assert sample_into(command, "a", f"label={label}", "format=png")[0] == 0
    with np.load(tmp_path / "a" / "samples.npz") as file:
        assert file["arr_1"].tolist() == labels
        images = file["arr_0"]
    third = np.asarray(Image.open(tmp_path / "a" / "png" / "000002.png"))
    assert np.array_equal(third, images[2, ..., 0])


MISTAKES = {
    "model=imagenet": "no model 'imagenet': choose one of adm, adm_imagenet, adm_imagenet128",
    "sampler=mixx": "no sampler 'mixx': choose one of churn, ddim, ddpm, deis, deis_ab, diffusers",
    "sampler.cutof=3": "there is no setting sampler.cutof: did you mean sampler.cutoff=3?",
    "stesp=50": "there is no setting stesp: did you mean steps=50?",
    "steps=0": "steps must be between 1 and T = 1000, got 0",
    "steps=1001": "steps must be between 1 and T = 1000, got 1001",
    "steps=many": "steps must be an integer or null, got 'many'",
    "spacing=evne": "unknown spacing 'evne': choose one of even, linspace, ddim, leading, trailing",
    "spacing=[999,1000]": "timesteps must lie in 0..999",
    "sampler.cutoff=-1": "must not be negative",
    "sampler.cutoff=1001": "cutoff must be in 0..1000",
    "sampler.skipped_steps=1": "exactly one of cutoff, cutoff_sigma, cutoff_log_snr and skipped",
    "label=true": "label must be an integer or balanced or null, got True",
    "seed=1.5": "seed must be an integer",
    "seed=null": "seed must be an integer",
    "num_samples=many": "num_samples must be an integer or null, got 'many'",
    "batch_size=1.5": "batch_size must be an integer, got 1.5",
    "sampler.cutoff=x": "sampler.cutoff must be a number or null, got 'x'",
    "spacing=7": "spacing must be text or a list of integers, got 7",
    "spacing=[1.5,7]": "spacing must be text or a list of integers, got [1.5, 7]",
    "spacing=[999,500,0]": "set steps=null",
    "label=10": "label must be in 0..9, balanced or null, got 10",
    "seed=-1": "seed must be an integer in 0..2^64 - 1",
    "num_samples=0": "num_samples must be at least 1",
    "format=jpeg": "unknown format 'jpeg': choose npz or png",
    "model.checkpoint=none": "no checkpoint 'none': use unet-1000",
    "out=/dev/null/x": "choose another out=DIR",
    "device=cuda:99": "device=cuda:99 is not available here",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_the_remedy(command, mistake, tmp_path):
    outcome = command(sample, *SMALL, "num_samples=2", "out=here", mistake)
    refused(outcome, MISTAKES[mistake])
    assert not list(tmp_path.glob("here/**/*.npz"))


def test_unwritable_folder(command, tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "here").write_text("a file where the folder should be")
    else:
        (tmp_path / "here").mkdir(mode=0o555)
    refused(sample_into(command, "here"), "choose another out=DIR")


@pytest.fixture
def some_samples(tmp_path):
    """90 real held-out digits as an .npz and as a folder of PNG files."""
    images = np.load(ROOT / "models/digits/mnist10k.npz")["images"][9::110][:90, ..., None]
    np.savez(tmp_path / "mine.npz", arr_0=images)
    (tmp_path / "pngs").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "pngs" / f"{i:03d}.png")
    return tmp_path


def test_evaluate_npz_and_pngs_agree_and_print_the_floor(command, some_samples):
    out = done(command(evaluate, "samples=mine.npz", "reference=digits", *FEW))
    assert "FID (digits)" in out
    assert "real (floor)" in out
    done(command(evaluate, "samples=pngs", *FEW))
    a = json.loads((some_samples / "mine.evaluation-digits.json").read_text())
    b = json.loads((some_samples / "pngs" / "evaluation-digits.json").read_text())
    assert a["scores"] == b["scores"]
    assert set(a["scores"]) == {"is", "fid", "kid", "precision", "recall"}
    assert a["n"] == 90
    assert a["reference_n"] == 4300
    assert a["scores"]["precision"]["value"] > 0.8  # they are real digits, after all


def test_evaluate_against_ones_own_images(command, some_samples):
    args = ["reference=custom", "reference.images.path=mine.npz"]
    done(command(evaluate, "samples=pngs", *args, *FEW))
    record = json.loads((some_samples / "pngs" / "evaluation-digits.json").read_text())
    assert record["scores"]["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert record["floor"] is None


MINE = "samples=mine.npz"
EVALUATION_MISTAKES = {
    "": "samples",
    "samples=nowhere": "no samples at nowhere",
    "samples=colour.npz": "digits features need 28 x 28 images",
    "samples=cut.npz": "cut.npz is damaged (",
    "samples=sixteen": "has 16 bits a channel: save it with 8",
    "samples=truncated": "0.png is damaged",
    f"{MINE} metrics.scores=[fid,ssim]": "unknown metric ssim: choose among is, is_infinity, fid",
    f"{MINE} num_samples=60": "FID with 64 features needs more than 64 samples",
    f"{MINE} num_samples=91": "has 90 samples, not 91",
    f"{MINE} num_samples=0": "num_samples must be an integer of at least 1",
    f"{MINE} reference=imagenet": "no reference 'imagenet': choose one of adm, adm_imagenet128",
    f"{MINE} labels=banana": "unknown labels 'banana'",
    f"{MINE} metrics.extractor=vgg": "unknown extractor 'vgg'",
    f"{MINE} metrics.weights=cut.npz": "does not hold the digits classifier",
    f"{MINE} metrics.weights=gone.safetensors": "gone.safetensors is missing",
    f"{MINE} metrics.options.k=0": "metrics.options.k must be an integer of at least",
    f"{MINE} metrics.options.kid_subset_size=1000": "KID draws subsets of 1000",
    f"{MINE} +metrics.options.foo=3": "there is no setting metrics.options.foo: choose among",
}


@pytest.mark.parametrize("overrides", EVALUATION_MISTAKES)
def test_evaluation_mistakes(command, some_samples, overrides):
    np.savez(some_samples / "colour.npz", arr_0=np.zeros((90, 32, 32, 3), np.uint8))
    whole = (some_samples / "mine.npz").read_bytes()
    (some_samples / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for folder in ("sixteen", "truncated"):
        (some_samples / folder).mkdir()
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(some_samples / "sixteen" / "0.png")
    png = (some_samples / "pngs" / "000.png").read_bytes()
    (some_samples / "truncated" / "0.png").write_bytes(png[: len(png) // 2])
    refused(command(evaluate, *FEW, *overrides.split()), EVALUATION_MISTAKES[overrides])


def test_changed_samples_options_and_references_are_evaluated_anew(command, some_samples):
    """A stored record or reference stands only for exactly what it was made of."""

    def fid(*overrides):
        done(command(evaluate, *overrides, *FEW))
        return json.loads((some_samples / "r.json").read_text())["scores"].get("fid")

    first = fid("samples=mine.npz", "out=r.json")
    noise = np.random.default_rng(0).integers(0, 256, (90, 28, 28, 1), dtype=np.uint8)
    np.savez(some_samples / "mine.npz", arr_0=noise)
    assert fid("samples=mine.npz", "out=r.json") != first
    assert fid("samples=mine.npz", "out=r.json", "metrics.scores=[is]") is None
    mine = ["reference=custom", "out=r.json", "samples=mine.npz"]
    assert fid(*mine, "reference.images.path=mine.npz")["value"] == pytest.approx(0, abs=1e-6)
    assert fid(*mine, "reference.images.path=pngs")["value"] > 10


def test_a_run_is_evaluated_once_and_anew_for_other_scores(command, tmp_path):
    args = ["samples=a", *FEW]
    assert sample_into(command, "a", "num_samples=70")[0] == 0
    done(command(evaluate, *args, "metrics.scores=[fid]"))
    record = tmp_path / "a" / "evaluation-digits.json"
    written = record.stat().st_mtime_ns
    done(command(evaluate, *args, "metrics.scores=[fid]"))
    assert record.stat().st_mtime_ns == written
    out = done(command(evaluate, *args, "metrics.scores=[fid,is]"))
    assert "IS (digits)" in out


def table(command, *overrides):
    words = ["experiment=table1_small", *SMALL, "experiment.steps=[2]", "num_samples=70", *FEW]
    return command(reproduce, *words, "out=out", *overrides)


def test_table1_from_nothing_then_no_work_then_from_records(command, tmp_path):
    out = done(table(command))
    text = (tmp_path / "out" / "table.md").read_text()
    for word in ("DDPM", "DDIM", "Skipped-Step", "Mix", "*Real*", "FID (digits)", "N=70", "91.69"):
        assert word in text
    assert text.strip() in out
    for name in ("table.csv", "table.tex", "table.png", "records.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert "image call" not in table(command)[2]
    assert before == {p: p.stat().st_mtime_ns for p in before}
    (tmp_path / "out" / "table.md").unlink()
    assert table(command, "render_only=true")[0] == 0
    assert (tmp_path / "out" / "table.md").read_text() == text


def test_figure4_at_both_ends_is_skipped_step_and_ddim(command, tmp_path):
    done(table(command, "experiment=figure4_small", "experiment.cutoffs=[0,500,1000]"))
    assert (tmp_path / "out" / "figure.png").stat().st_size > 0
    done(table(command, "model.precision=fp32", "out=t"))
    by_cutoff = {r["row"]: r for r in json.loads((tmp_path / "out/records.json").read_text())}
    by_row = {r["row"]: r for r in json.loads((tmp_path / "t/records.json").read_text())}
    assert by_cutoff["cutoff 0"]["scores"] == by_row["Skipped-Step"]["scores"]
    assert by_cutoff["cutoff 1000"]["scores"] == by_row["DDIM"]["scores"]


def test_a_table_of_another_kind_is_not_overwritten(command, tmp_path):
    assert table(command)[0] == 0
    text = (tmp_path / "out" / "table.md").read_text()
    for word, said in (
        ("seed=1", "seed is 0 there, 1 here"),
        ("label=null", "label is balanced"),
        ("model.precision=fp16", "there, fp16 here"),
    ):
        outcome = table(command, word)
        refused(outcome, said)
        refused(outcome, "choose another out=DIR")
    assert (tmp_path / "out" / "table.md").read_text() == text


def test_several_processes_share_a_table_and_the_last_one_renders_it(
    command, monkeypatch, tmp_path
):
    """As torchrun starts them; an exit status other than 0 would make it stop the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert not (tmp_path / "out" / "table.md").exists()
        out = done(table(command, "shard_size=35"))
        assert ("the one that ends last goes on" in out) == (rank == "1")
    text = (tmp_path / "out" / "table.md").read_text()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.chdir(tmp_path / "runs")
    assert table(command, "shard_size=35")[0] == 0
    assert (tmp_path / "runs" / "out" / "table.md").read_text() == text


TABLE_MISTAKES = {
    "experiment=table9": "no experiment 'table9': choose one of advise, compare, figure2, figure2_small, figure3",
    "experiment=tune_small": "is run by `python -m scripts.tune`",
    "experiment.renderer=tabel": "unknown experiment.renderer 'tabel': choose one of table, cutoffs",
    "experiment.num_samples=[70,80]": "2 entries for 1 step counts",
    "metrics.scores=[fid]": "which metrics.scores lacks",
    "render_only=true": "no records at out/records.json",
    "stage=smaple": "unknown stage 'smaple': choose all, sample, evaluate, render",
    "only=2": "only= is for stage=sample or stage=evaluate",
    "parts=0": "parts must be an integer of at least 1",
    # Said before days of sampling:
    "num_samples=60": "FID with 64 features needs more than 64 samples",
    "metrics.options.kid_subset_size=80": "KID draws subsets of 80",
}


@pytest.mark.parametrize("mistake", TABLE_MISTAKES)
def test_a_mistake_in_a_table_is_one_line_before_sampling(command, mistake, tmp_path):
    n = ["num_samples=null"] if "entries" in TABLE_MISTAKES[mistake] else []
    refused(table(command, *n, mistake), TABLE_MISTAKES[mistake])
    assert not list(tmp_path.glob("runs/**/*.npz"))


def test_stages_of_a_table_in_the_order_of_a_cluster(command, tmp_path):
    unsampled = "DDPM at 2 steps is not complete in runs/digits/ddpm-"
    refused(table(command, "stage=evaluate"), unsampled)
    wrong = table(command, "stage=sample", "only=7")
    refused(wrong, "is no step count of this experiment: choose among [2]")
    done(table(command, "stage=sample", "only=2"))
    unscored = "DDPM at 2 steps is not evaluated: run stage=evaluate first"
    refused(table(command, "stage=render"), unscored)
    done(table(command, "stage=evaluate", "only=[2]"))
    assert not (tmp_path / "out").exists()
    done(table(command, "stage=render"))
    assert (tmp_path / "out" / "table.md").is_file()


def test_a_precision_is_another_config_and_fp32_the_one_that_it_was():
    """As a committed record has it, made when digits had no choice of precision."""
    records = json.loads((ROOT / "results/digits/study/records.json").read_text())
    record = next(r for r in records if (r["row"], r["steps"]) == ("DDIM", 5))
    stated = record["cell"]["config"]
    assert "precision" not in stated["model"]
    for precision, more in (("fp32", {}), ("bf16", {"precision": "bf16"})):
        words = ["experiment=study", f"model.precision={precision}"]
        cfg = composed("reproduce", *words)
        settings = settings_of(cfg, load_backbone(cfg), "even", "id")
        config = settings.cell("DDIM", {"name": "ddim", "eta": 0.0}, 5, 4).config
        assert config == {**stated, "model": {**stated["model"], **more}}


def test_a_machine_without_bf16_is_told_of_fp32(command, monkeypatch):
    for module in (configuration, experiment):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    said = "bf16 would be slow on this device: sampling in fp32, into out"
    assert said in done(table(command, "stage=sample"))


def test_a_card_that_changes_pixels_but_no_shape_is_another_config(tmp_path, unet_forward):
    digests = set()
    for heads in (16, 8):
        card = write_standin(tmp_path, "t64", unet_forward)
        entries = yaml.safe_load(card.read_text())
        entries["network"]["num_head_channels"] = heads
        card.write_text(yaml.safe_dump(entries, sort_keys=False))
        model = {"name": "mine", "_target_": "", "card": str(card), "checkpoint": "t64.pt"}
        backbone = load(str(card), str(tmp_path / "t64.pt"))
        settings = Settings(model, backbone, "even", seed=0, label=None)
        digests.add(settings.cell("DDIM", {"name": "ddim"}, 2, 4).digest)
    assert len(digests) == 2


NO_ERROR = ("metrics.options.bootstrap=0", "metrics.options.fid_se=bootstrap")


def test_the_difference_of_two_sets_is_paired_if_they_share_their_noise(command, tmp_path):
    for name, seed in (("mix", 0), ("ddim", 0), ("other", 1)):
        sampler = "mix" if name == "other" else name
        more = (f"sampler={sampler}", f"seed={seed}", f"out={name}")
        done(command(sample, "model=digits", "steps=3", "num_samples=80", *more))
    args = ("samples=mix", "reference=digits", "metrics.scores=[fid,is]")
    out = done(command(evaluate, *args, "against=ddim"))
    assert "positive where the first is better (paired: both are made from the same noise)" in out
    assert re.search(
        r"\nIS +[+-]\d+\.\d+ ± \d+\.\d+ +(better than|worse than|not told .*) the second", out
    )
    for other in ("other", "ddim/samples.npz"):
        assert "better (as if independent)" in done(command(evaluate, *args, f"against={other}"))
    mine = tmp_path / "mix/evaluation-digits.json"
    text = mine.read_text()
    record = load_records(mine)
    for value in record["scores"].values():
        del value["spread"]  # as records were before
    save_records(mine, record)
    out = done(command(evaluate, *args, "against=ddim"))
    assert "independent; a record of before does not tell what they share: remove it" in out
    mine.write_text(text)
    done(command(sample, "model=digits", "sampler=mix", "steps=3", "num_samples=70", "out=fewer"))
    refused(
        command(evaluate, *args, "against=fewer"),
        "80 samples do not compare with 70: set num_samples=70",
    )
    records = [tmp_path / name / "evaluation-digits.json" for name in ("fewer", "ddim")]
    assert not records[0].exists()  # it was refused before the work
    before = records[1].read_text()
    message = "evaluation-digits.json is the record of ddim: choose another out=FILE"
    refused(command(evaluate, *args, "against=ddim", f"out={records[1]}"), message)
    assert records[1].read_text() == before
    out = done(command(evaluate, *args, "against=fewer", "num_samples=70", *NO_ERROR))
    assert "the same noise; alone: FID)" in out and "nan" not in out
    assert re.search(r"\nFID +[+-]\d+\.\d+ +not told apart from the second", out)


REFUSED_BY_THE_SYSTEM = {
    "a folder for a file": (
        lambda: write_text(Path("folder"), "x"),
        "a folder is where a file should be, move it away or name another",
    ),
    "weights that are a folder": (
        lambda: read_weights(Path("folder")),
        "a folder is where a file should be, move it away or name another",
    ),
    "a file for a folder": (
        lambda: write_text(Path("file/x"), "x"),
        "a file is where a folder should be, choose another out=DIR",
    ),
    "below nothing": (lambda: Path("nowhere/x").write_bytes(b""), "is not there, correct it"),
    "a long name": (lambda: write_text(Path("n" * 300), "x"), "choose a shorter name"),
    "a circle of links": (lambda: Path("loop").read_bytes(), "leads to itself, remove it"),
}


@pytest.mark.parametrize("case", REFUSED_BY_THE_SYSTEM)
def test_what_the_system_refuses_has_a_remedy(script, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("loop").symlink_to("loop")
    call, remedy = REFUSED_BY_THE_SYSTEM[case]
    status, _, err = script(call)
    assert status == 2 and len(err.splitlines()) == 1 and err.strip().endswith(remedy), err
