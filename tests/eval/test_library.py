"""`evaluate` and the command `skipped-step evaluate`, on the extractor of pixels: no network is needed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, done, refused
from omegaconf import OmegaConf
from PIL import Image
from test_metrics import refused as raises

import eval as evaluation
import evaluate as command_of_the_clone
from eval import command as command_line
from eval import library, protocols
from eval.extractors import extractor_named
from eval.library import evaluate
from eval.records import load_records
from eval.reference import build_reference, floor_path
from experiments.config import composed
from files import places

PIXELS = {"extractor": "pixels", "scores": ["fid", "precision", "recall"], "allow_few": True}
WORDS = ["metrics.extractor=pixels", "metrics.scores=[fid,precision,recall]"]
FEW = "metrics.options.allow_few=true"


def images(n: int, seed: int, size: int = 4):
    return np.random.default_rng(seed).integers(256, size=(n, size, size, 3), dtype=np.uint8)


def jpegs(folder, n: int, seed: int):
    """Pictures of several sizes."""
    folder.mkdir()
    for i, pixels in enumerate(images(n, seed, 30)):
        Image.fromarray(pixels[: 20 + i % 3]).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Files of 60 samples, of 70 real images and of 60 more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))
    for seed, (name, n) in enumerate({"fake": 60, "real": 70, "more": 60}.items()):
        np.savez(tmp_path / f"{name}.npz", arr_0=images(n, seed))


@pytest.fixture
def skipped_step(monkeypatch, capsys):
    """The outcome of the command: (exit status, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["skipped-step", "evaluate", *map(str, words)])
        status = 0
        try:
            command_line.main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def test_arrays_and_files_and_the_clones_command_give_the_same(command, skipped_step, tmp_path):
    scores = evaluate(images(60, 0), "real.npz", settings=PIXELS)
    assert list(scores) == PIXELS["scores"] and all(s.se > 0 for s in scores.values())
    of_file = evaluate("fake.npz", "real.npz", settings=PIXELS)
    done(skipped_step("fake.npz", *WORDS, FEW, "--reference", "real.npz", "--out", "ours.json",
                      "--floor", "more.npz"))  # fmt: skip
    custom = ["reference=custom", "reference.images.path=real.npz", "reference.floor.path=more.npz"]
    words = ["samples=fake.npz", "metrics=adm", *WORDS, FEW, *custom, "out=theirs.json"]
    done(command(command_of_the_clone, *words))
    ours, theirs = (load_records(tmp_path / f"{name}.json") for name in ("ours", "theirs"))
    assert ours["scores"] == theirs["scores"] and ours["floor"] == theirs["floor"]
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ == {"reference", "floor_of"}  # its name: of the file here, `custom` there
    for name, value in scores.items():
        stored = ours["scores"][name]
        assert (value.value, value.se) == (stored["value"], stored["se"])
        assert of_file[name][:2] == value[:2]


def test_folders_of_pictures_of_several_sizes(skipped_step, tmp_path):
    for seed, name in enumerate(("generated", "photos")):
        jpegs(tmp_path / name, 30, seed)
    words = ["generated", *WORDS, FEW, "--reference", "photos"]
    refused(skipped_step(*words), "20 of 30 pictures in generated are not 30 x 21")
    _, _, err = skipped_step(*words)
    assert "let a preprocessing do it (--resize center_lanczos:256)" in err
    out = done(skipped_step(*words, "--resize", "bicubic:8", "--out", "r.json"))
    assert "both at 8 pixels by bicubic" in out and "record: r.json" in out
    record = load_records(tmp_path / "r.json")
    assert record["preprocess"] == {"name": "bicubic", "size": 8} and record["n"] == 30
    # A zip is its folder.
    shutil.make_archive("photos", "zip", "photos")
    zipped = [*words[:-1], "photos.zip", "--floor", "photos.zip", "--resize", "bicubic:8"]
    done(skipped_step(*zipped, "--out", "z.json"))
    assert load_records(tmp_path / "z.json")["scores"] == record["scores"]


def test_stored_references(skipped_step, tmp_path):
    extractor = extractor_named("pixels")
    build_reference("mine", images(70, 1), extractor).write(tmp_path / "mine.npz")
    build_reference("mine_floor", images(60, 2), extractor).write(floor_path(tmp_path / "mine.npz"))
    words = ["fake.npz", *WORDS, FEW, "--reference"]
    done(skipped_step(*words, "mine.npz", "--out", "stored.json"))
    done(skipped_step(*words, "real.npz", "--floor", "more.npz", "--out", "read.json"))
    stored, read = (load_records(tmp_path / f"{name}.json") for name in ("stored", "read"))
    for key in ("scores", "floor", "reference_digest", "extractor_weights"):
        assert stored[key] == read[key]
    refused(skipped_step(*words, "mine.npz", "--floor", "more.npz"), "leave floor and resize out")
    other = skipped_step("fake.npz", "--protocol", "clean", "--reference", "mine.npz", *WORDS[1:])
    assert other[0] == 2


def test_remedies_work_as_they_are_typed(skipped_step, tmp_path):
    np.savez(tmp_path / "large.npz", arr_0=images(60, 3, size=8))
    words = ["large.npz", *WORDS, "--reference"]
    _, _, err = skipped_step(*words, "large.npz")
    (remedy,) = re.findall(r"metrics\.options\.\S+", err)
    assert remedy == FEW
    done(skipped_step(*words, "large.npz", remedy))
    words[0] = "fake.npz"
    _, _, err = skipped_step(*words, "large.npz", remedy)
    assert "are 4 x 4 pixels, the reference's images 8 x 8" in err
    (resize,) = re.findall(r"\((--resize .*)\)", err)
    done(skipped_step(*words, "large.npz", remedy, *resize.split()))


def test_remedies_in_python_work_as_they_are_typed(tmp_path):
    np.savez(tmp_path / "large.npz", arr_0=images(60, 3, size=8))
    given: dict = {"settings": {k: v for k, v in PIXELS.items() if k != "allow_few"}}
    with pytest.raises(ValueError, match="or, for a trial run, give") as few:
        evaluate("large.npz", "large.npz", **given)
    remedy = ast.literal_eval(re.search(r"settings=(\{.*?\})", str(few.value))[1])
    given["settings"] |= remedy
    assert evaluate("large.npz", "large.npz", **given)["precision"].value == 1
    with pytest.raises(ValueError, match="bring both to one") as sizes:
        evaluate("fake.npz", "large.npz", **given)
    resize = re.search(r'resize="(.*?)"', str(sizes.value))[1]
    assert resize == "center_lanczos:4"
    evaluate("fake.npz", "large.npz", resize=resize, **given)


def test_what_does_not_fit_is_refused(skipped_step, tmp_path):
    raises(r"uint8 \[N, H, W, C\]", evaluate, images(60, 0)[..., 0], "real.npz")
    raises(r"uint8 \[N, H, W, C\]", evaluate, images(60, 0) / 255, "real.npz")
    how = {"settings": PIXELS, "num_samples": 61}
    raises("between 1 and the 60", evaluate, "fake.npz", "real.npz", **how)
    raises("between 1 and the 60", evaluate, "fake.npz", "real.npz", **how | {"num_samples": 0})
    raises("unknown protocol 'fid'", evaluate, "fake.npz", "real.npz", "fid")
    raises('device="gpu" is not', evaluate, "fake.npz", "real.npz", settings=PIXELS, device="gpu")
    refused(skipped_step("fake.npz", "--reference", "real.npz", "--floor", "no"), "no floor at no")
    (tmp_path / "mine.json").write_text('"notes"')
    words = ["fake.npz", *WORDS, FEW, "--reference", "real.npz", "--out"]
    refused(skipped_step(*words, "mine.json"), "is no record of scores")
    # A batch of guided-diffusion's form that lacks a part is not taken for plain images.
    np.savez(tmp_path / "part.npz", arr_0=images(9, 1), mu=np.zeros(2048), sigma=np.eye(2048))
    monkey = {"settings": PIXELS | {"extractor": "inception"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(library.__dict__, "Evaluation", Unnamed)
        raises("has no mu_s, sigma_s", evaluate, "fake.npz", "part.npz", **monkey)


class Unnamed(library.Evaluation):
    """With pixels for Inception."""

    def __init__(self, metrics, source, device):
        super().__init__({**metrics, "extractor": "pixels"}, source, device)
        self.extractor.name = "inception"


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_protocols_are_those_of_the_configs(name):
    hydras = OmegaConf.to_container(composed("evaluate", f"metrics={name}").metrics, resolve=True)
    ours = protocols.protocol_named(name)
    assert {k: v for k, v in ours.items() if "weights" not in k} == {
        k: v for k, v in hydras.items() if "weights" not in k
    }
    # Files that the config puts into the folder of downloads are where the extractor itself looks.
    assert all(ours[key] is None for key in ours if "weights" in key)
    assert "${" not in json.dumps(ours)
    changed = protocols.protocol_named(name, {"metrics.options.seed": 7, "weights": "w"})
    assert (changed["options"]["seed"], changed["weights"]) == (7, "w")
    assert protocols.protocol_named(name) == ours


def test_the_gate(skipped_step, tmp_path, monkeypatch):
    """As the clone's, with the words of this command."""
    (tmp_path / "fake.npz").rename(tmp_path / "batch.npz")
    words = ["batch.npz", *WORDS, FEW, "--reference", "real.npz"]
    fid = evaluate("batch.npz", "real.npz", settings=PIXELS)["fid"].value
    published = {"batch": {"url": "here", "scores": {"adm": {"fid": fid}}}, "other": {"scores": {}}}
    card = {"url": "here/real.npz", "statistics_n": 70, "published": published}
    for module in (library, command_line):
        monkeypatch.setattr(module, "published_reference", lambda file: ("adm_mine", card))
    assert "protocol gate: PASS" in done(skipped_step(*words))
    for more, reason in (
        (["--num-samples", "50"], "the whole batch, without --num-samples"),
        (["metrics.options.k=5"], "metrics.options.k=3"),
        (["--protocol", "clean"], "--protocol adm"),
    ):
        assert f"no verdict: it needs {reason}" in done(skipped_step(*words, *more))
    published["batch"]["scores"]["adm"]["fid"] += 1
    status, out, _ = skipped_step(*words)
    assert status == 1 and "protocol gate: FAIL" in out
    (tmp_path / "batch.npz").rename(tmp_path / "admnet_imagenet64.npz")
    out = done(skipped_step("admnet_imagenet64.npz", *words[1:]))
    assert "judged with the batch of adm_imagenet64 as --reference" in out


def test_published_references_are_known_by_their_files():
    for name in ("adm_imagenet256", "adm_lsun_cat256"):
        url = composed("evaluate", f"reference={name}").reference.url
        found = protocols.published_reference(url.rsplit("/", 1)[-1])
        assert found and found[0] == name and found[1]["statistics_n"] > 1_000_000
    assert protocols.published_reference("mine.npz") is None


def test_where_downloads_go(monkeypatch, tmp_path):
    monkeypatch.delenv("SKIPPED_STEP_DOWNLOADS")
    assert places.downloads() == ROOT / "downloads"
    monkeypatch.setattr(places, "IS_CLONE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.downloads() == tmp_path / "skipped-step"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.downloads() == tmp_path / ".cache/skipped-step"


def test_the_example_of_the_docs(monkeypatch, tmp_path, capsys):
    page = (ROOT / "docs/evaluation.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "fake.npz").rename(tmp_path / "samples.npz")
    (tmp_path / "real.npz").rename(tmp_path / "VIRTUAL_imagenet256_labeled.npz")
    monkeypatch.setitem(sys.modules, "skipped_step.evaluation", evaluation)
    stated = protocols.stated

    def small(group, name):
        content = stated(group, name)
        if group == "metrics":
            content |= {"extractor": "pixels", "scores": ["fid"]}
            content["options"]["allow_few"] = True
        return content

    monkeypatch.setattr(protocols, "stated", small)
    exec(block, {})
    assert re.fullmatch(r"FID \d+\.\d\d ± \d+\.\d\d\n", capsys.readouterr().out)
