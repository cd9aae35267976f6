"""`python -m scripts.reference`: a file of real images' features, made once and scored against."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import done, refused
from PIL import Image
from test_dinov2 import TINY, dinov2_weights
from test_metrics import refused as raises

import eval.reference
import evaluate
from eval import networks
from eval.extractors import extractor_named
from eval.frechet import frechet_distance, statistics
from eval.records import load_records
from eval.reference import Reference, floor_path
from files.zips import pictures_of
from scripts import reference, variance

PIXELS = ["metrics=pixels", "metrics.scores=[fid,precision,recall]"]
PLAIN = ["metrics.options.allow_few=true", "metrics.options.fid_se=delta"]


def jpegs(folder: Path, n: int, seed: int, size: tuple[int, int] | None = (4, 4)) -> Path:
    """Pictures of one size, or of several."""
    rng = np.random.default_rng(seed)
    (folder / "below").mkdir(parents=True)
    for i in range(n):
        width, height = size or (20 + i % 3, 30)
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if i % 2 else "") / f"{i}.jpg", quality=95)
    return folder


@pytest.fixture
def sets(tmp_path):
    """Folders of real pictures, of others and of samples."""
    for i, (name, n) in enumerate({"real": 70, "others": 60, "fake": 60}.items()):
        jpegs(tmp_path / name, n, i)
    return tmp_path


@pytest.fixture
def make(script, sets, monkeypatch):
    monkeypatch.chdir(sets)
    return lambda *words: script(reference.main, *words)


def scored(command, *words) -> dict:
    done(command(evaluate, "samples=fake", "out=r.json", *PLAIN, *words))
    return load_records(Path("r.json"))


def test_two_commands_on_folders_of_jpegs_with_dinov2(make, command, sets, monkeypatch):
    """Of several sizes: brought to the network's as dgm-eval does it, samples included."""
    monkeypatch.setattr(networks, "DINOV2_LAYOUT", TINY)
    torch.save(dinov2_weights(), sets / "random.pth")
    for i, name in enumerate(("real", "fake")):
        jpegs(sets / "several" / name, 40, i, size=None)
    metrics = ["metrics=dinov2", "metrics.weights=random.pth"]
    sizes = ["reference.preprocess=bicubic", "reference.size=224"]
    out = done(make("several/real", "--out", "mine.npz", *metrics, *sizes))
    assert "mine.npz  40 images 224 x 224, 32 features of dinov2" in out
    words = ["samples=several/fake", "reference=stored", "reference.file=mine.npz", *metrics]
    done(command(evaluate, *words, "out=r.json"))
    record = load_records(Path("r.json"))
    assert record["reference"] == "mine" and record["reference_n"] == record["n"] == 40
    assert record["preprocess"] == {"name": "bicubic", "size": 224}
    custom = ["reference=custom", "reference.images.path=several/real", *sizes]
    done(command(evaluate, "samples=several/fake", *custom, *metrics, "out=c.json"))
    other = load_records(Path("c.json"))
    for key in ("scores", "reference_digest", "preprocess", "extractor_weights"):
        assert record[key] == other[key], key
    # As dgm-eval: each picture is stretched from its own size.
    extractor = extractor_named("dinov2", weights="random.pth")
    names = sorted((sets / "several/fake").rglob("*.jpg"), key=lambda p: int(p.stem))
    alone = [extractor(np.asarray(Image.open(p))[None]).features[0] for p in names]
    real = Reference.load(sets / "mine.npz")
    want = frechet_distance(statistics(np.stack(alone)), real.statistics)
    assert record["scores"]["fid"]["value"] == pytest.approx(want, rel=1e-5)
    assert make("several/real", "--out", "x.npz", *metrics)[0] == 2  # of several sizes


def test_a_floor_of_a_second_set_or_a_part(make, command, sets):
    out = done(make("real", "--out", "mine.npz", "--floor", "others", *PIXELS))
    assert "mine.floor.npz  60 images" in out
    record = scored(command, *PIXELS, "reference=stored", "reference.file=mine.npz")
    custom = ["reference=custom", "reference.images.path=real", "reference.floor.path=others"]
    other = scored(command, *PIXELS, *custom)
    assert record["scores"] == other["scores"] and record["floor"] == other["floor"]
    assert record["floor"]["fid"]["value"] > 0
    assert record["floor_of"] != other["floor_of"]
    whole = Reference.load(sets / "mine.npz")
    out = done(make("real", "--out", "mine.npz", "--split", "20", *PIXELS))
    rest, part = Reference.load(sets / "mine.npz"), Reference.load(floor_path(sets / "mine.npz"))
    assert (rest.n, part.n, part.name) == (50, 20, "mine_floor")
    rows = np.concatenate([rest.features, part.features])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(whole.features, axis=0))
    np.testing.assert_allclose(rest.statistics.mean, rest.features.mean(0), atol=1e-6)
    done(make("real", "--out", "mine.npz", *PIXELS))
    assert not floor_path(sets / "mine.npz").exists()  # which was of another reference
    assert Reference.load(sets / "mine.npz").digest == whole.digest


def test_records_know_the_floor(make, command, sets):
    """A run's record is made again when its floor has become another."""
    done(make("real", "--out", "mine.npz", "--floor", "others", *PIXELS))
    stored = ["reference=stored", "reference.file=mine.npz"]
    first = scored(command, *PIXELS, *stored)
    done(make("real", "--out", "mine.npz", "--floor", "fake", *PIXELS))
    second = scored(command, *PIXELS, *stored)
    assert first["floor_of"] != second["floor_of"] and first["floor"] != second["floor"]
    assert first["reference_digest"] == second["reference_digest"]


# --- zips ------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, Path | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path


def test_a_zip_is_its_folder(make, sets):
    files = {str(p.relative_to(sets)): p for p in (sets / "real").rglob("*.jpg")}
    leftovers = {"__MACOSX/real/._0.jpg": b"x", "real/.DS_Store": b"x"}
    zipped(sets / "real.zip", files | leftovers)
    for name in ("real", "real.zip"):
        done(make(name, "--out", f"{name}.npz", *PIXELS))
    a, b = (Reference.load(sets / f"{name}.npz") for name in ("real", "real.zip"))
    assert a.digest == b.digest and len(b.source) == 64 and not a.source


def test_members_stay_in_their_folder(sets, tmp_path):
    picture = (sets / "real/0.jpg").read_bytes()
    names = ["../../out.jpg", f"{tmp_path}/absolute.jpg", "a/../../b.jpg", "c\\d.jpg"]
    archive = zipped(tmp_path / "evil.zip", dict.fromkeys(names, picture))
    before = sorted(tmp_path.rglob("*"))
    with pictures_of(archive) as folder:
        inside = [p for p in folder.rglob("*") if p.is_file()]
        assert len(inside) == 4 and folder.parent != tmp_path
    assert not folder.exists() and sorted(tmp_path.rglob("*")) == before


def test_zips_that_do_not_do(make, sets):
    picture = sets / "real/0.jpg"
    zipped(sets / "two.zip", {"a/1.jpg": picture, "./a/1.jpg": picture})
    zipped(sets / "text.zip", {"a.txt": b"hello"})
    zipped(sets / "tiff.zip", {"a.jpg": picture, "b.tiff": b"x"})
    content = zipped(sets / "cut.zip", {"a.jpg": picture}).read_bytes()
    (sets / "cut.zip").write_bytes(content[:-30])
    flipped = bytearray(content)
    flipped[200] ^= 1
    (sets / "bit.zip").write_bytes(flipped)
    for name, said in {
        "two": "two.zip is damaged",
        "cut": "cut.zip is damaged",
        "bit": "bit.zip is damaged",
        "text": "no PNG, JPEG or WebP files",
        "tiff": "1 of 2 pictures",
    }.items():
        refused(make(f"{name}.zip", "--out", "x.npz", *PIXELS), said)
    assert not (sets / "x.npz").exists()


# --- formats of others -------------------------------------------------------------------------------


def dgm_eval(path: Path, features, model: str) -> Path:
    """As its `save_outputs`: float64, the network's name, and a pickled dictionary."""
    reps = features.astype(np.float64)
    np.savez(path, model=model, reps=reps, hparams=np.array({"nsample": 5}, dtype=object))
    return path


def test_dgm_evals_features_are_the_images(make, command, sets):
    done(make("real", "--out", "mine.npz", *PIXELS))
    mine = Reference.load(sets / "mine.npz")
    dgm_eval(sets / "reps.npz", mine.features, "pixels")
    done(make("reps.npz", "--out", "theirs.npz", "--floor", "others", *PIXELS))
    theirs = Reference.load(sets / "theirs.npz")
    assert theirs.digest == mine.digest and theirs.size == ""
    stored = [*PIXELS, "reference=stored"]
    a, b = (scored(command, *stored, f"reference.file={f}.npz") for f in ("mine", "theirs"))
    assert a["scores"] == b["scores"]
    dgm_eval(sets / "reps.npz", mine.features, "inception")
    refused(
        make("reps.npz", "--out", "x.npz", *PIXELS), "48 features of inception, not 0 of pixels"
    )
    dgm_eval(sets / "reps.npz", mine.features[:, 0] * np.nan, "pixels")
    refused(make("reps.npz", "--out", "x.npz", *PIXELS), "reps.npz is damaged")


def test_statistics_alone(make, command, sets):
    done(make("real", "--out", "mine.npz", *PIXELS))
    s = Reference.load(sets / "mine.npz").statistics
    np.savez(sets / "stats.npz", mu=s.mean, sigma=s.cov)
    refused(make("stats.npz", "--out", "x.npz", *PIXELS), "give --statistics-n N")
    done(make("stats.npz", "--out", "s.npz", "--statistics-n", "70", *PIXELS))
    assert Reference.load(sets / "s.npz").n == 0
    fid = [*PIXELS, "metrics.scores=[fid]", "reference=stored"]
    a, b = (scored(command, *fid, f"reference.file={f}.npz")["scores"] for f in ("mine", "s"))
    assert a == b
    words = ["samples=fake", "reference=stored", "reference.file=s.npz", *PLAIN, *PIXELS]
    refused(command(evaluate, *words), "s.npz holds statistics alone: leave precision out")
    np.savez(sets / "stats.npz", mu=s.mean, sigma=s.cov[:5])
    refused(make("stats.npz", "--out", "x.npz", "--statistics-n", "70", *PIXELS), "is damaged")


def test_adms_batches(tmp_path):
    """Statistics of the whole data set take the place of those of the images, for its Inception."""
    x = np.random.default_rng(0).integers(256, size=(9, 4, 4, 3), dtype=np.uint8)
    pool, spatial = (statistics(np.random.default_rng(i).normal(size=(30, 5))) for i in (1, 2))
    arrays = {"mu": pool.mean, "sigma": pool.cov, "mu_s": spatial.mean, "sigma_s": spatial.cov}
    np.savez(tmp_path / "adm.npz", arr_0=x, **arrays)

    class Named(type(extractor_named("pixels"))):
        name = "inception"

    maker = reference.Maker(Named(), None)
    made = maker.of(tmp_path / "adm.npz", "adm", 1000)
    assert (made.n, made.statistics.n, made.size) == (9, 1000, "4 x 4")
    np.testing.assert_array_equal(made.statistics.mean, pool.mean)
    np.testing.assert_array_equal(made.spatial.cov, spatial.cov)
    raises("give --statistics-n N, for ImageNet", maker.of, tmp_path / "adm.npz", "adm")
    pixels = reference.Maker(extractor_named("pixels"), None).of(tmp_path / "adm.npz", "adm")
    assert pixels.statistics.n == 9


# --- what cannot be meant ----------------------------------------------------------------------------


def test_references_of_another_extractor(make, command, sets):
    done(make("real", "--out", "mine.npz", *PIXELS))
    words = ["samples=fake", "reference=stored"]
    other = command(evaluate, *words, "reference.file=mine.npz", "metrics=digits")
    refused(other, "mine.npz was made with the extractor pixels")
    refused(command(evaluate, *words, *PIXELS), "reference.file is missing: give")
    refused(command(evaluate, *words, "reference.file=no.npz", *PIXELS), "no reference at no.npz")
    np.savez(sets / "images.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    outcome = command(evaluate, *words, "reference.file=images.npz", *PIXELS)
    refused(outcome, "images.npz is no reference: make one of it with `python -m scripts.reference")
    content = (sets / "mine.npz").read_bytes()
    (sets / "mine.npz").write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
    refused(command(evaluate, *words, "reference.file=mine.npz", *PIXELS), "mine.npz is damaged")


def test_mistakes_of_the_command(make, script, sets):
    (sets / "notes.npz").write_text("mine")
    done(make("real", "--out", "mine.npz", *PIXELS))
    for words, said in (
        (("real", "--out", "notes.npz"), "notes.npz is there and no reference"),
        (("real", "--out", "x.txt"), "--out must be an .npz file"),
        (("real", "--out", "a b.npz"), "reference name 'a b' must do"),
        (("real", "--out", "x.npz", "--floor", "real"), "real holds what real does"),
        (("real", "--out", "x.npz", "--floor", "others", "--split", "3"), "give one of them"),
        (("real", "--out", "x.npz", "--split", "69"), "between 2 and 68 of the 70"),
        (("mine.npz", "--out", "x.npz"), "is a reference already"),
        (("nowhere", "--out", "x.npz"), "no samples at nowhere"),
        (("real", "--out", "x.npz", "metrics.scorse=[fid]"), "metrics.scores"),
    ):
        refused(make(*words, *PIXELS), said)
    assert not (sets / "x.npz").exists()
    outcome = script(variance.main, "model=digits", "reference=stored", "reference.file=mine.npz")
    refused(outcome, "reference=stored has no images")


def test_the_file_is_documented(make, sets):
    """What stands in eval/reference.py is what there is."""
    done(
        make(
            "real", "--out", "mine.npz", "reference.preprocess=bicubic", "reference.size=3", *PIXELS
        )
    )
    with np.load(sets / "mine.npz") as file:
        keys = set(file)
    said = eval.reference.__doc__
    assert all(key in said for key in keys) and "preprocess" in keys
