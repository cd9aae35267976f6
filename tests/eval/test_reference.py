"""Reference files: complete or refused, named by content; and the floor of a perfect sampler."""

from __future__ import annotations

import io
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from test_metrics import refused

from eval.extractors import Extracted
from eval.frechet import frechet_distance, statistics
from eval.reference import Reference, build_reference, read_adm_statistics
from eval.scoring import Options, evaluate, real_floor

DELTA = Options(fid_se="delta")


class Pixels:
    """Features = the first 6 pixels; then 3 logits; then 5 spatial features."""

    name, num_features, digest = "pixels", 6, "weights-1"

    def __call__(self, images, batch_size=10):
        flat = images.reshape(len(images), -1).astype(np.float32) / 255
        return Extracted(flat[:, :6], flat[:, 6:9], spatial=flat[:, 9:14])


def images(n: int, seed: int = 0):
    return np.random.default_rng(seed).integers(256, size=(n, 4, 4, 1), dtype=np.uint8)


@pytest.fixture
def reference() -> Reference:
    return build_reference("noise", images(60), Pixels())


def test_build(reference):
    expected = Pixels()(images(60))
    np.testing.assert_array_equal(reference.features, expected.features)
    np.testing.assert_array_equal(reference.logits, expected.logits)
    np.testing.assert_allclose(reference.statistics.cov, np.cov(expected.features.T), rtol=1e-5)
    assert (reference.n, reference.statistics.n) == (60, 60)
    assert (reference.extractor, reference.weights) == ("pixels", "weights-1")
    assert repr(reference).startswith("Reference(noise, pixels, n=60, ")


def test_round_trip(reference, tmp_path):
    path = reference.save(tmp_path / "new" / "folder")
    assert path.name == f"noise-pixels-{reference.digest[:12]}.npz"
    loaded = Reference.load(path)
    assert loaded.digest == reference.digest
    assert (loaded.name, loaded.extractor, loaded.weights) == ("noise", "pixels", "weights-1")
    for key, array in reference._arrays().items():
        np.testing.assert_array_equal(loaded._arrays()[key], array)
        assert loaded._arrays()[key].dtype == array.dtype
    reference.save(path.parent)  # again: the same file
    assert [p.name for p in path.parent.iterdir()] == [path.name], "temporary files left"


def test_address_follows_the_content(reference):
    s = reference.statistics
    last = reference.features.copy()
    last[-1, -1] += 1e-6
    changed = [
        replace(reference, features=last),
        replace(reference, features=reference.features + np.float32(1e-6)),
        replace(reference, features=reference.features[::-1]),
        replace(reference, logits=reference.logits * 2),
        replace(reference, statistics=replace(s, mean=s.mean + 1e-12)),
        replace(reference, statistics=replace(s, cov=s.cov * 2)),
        replace(reference, statistics=replace(s, n=61)),
        replace(reference, extractor="other"),
        replace(reference, weights="weights-2"),
    ]
    assert len({reference.digest, *(other.digest for other in changed)}) == 1 + len(changed)
    assert replace(reference, name="renamed").digest == reference.digest
    assert build_reference("noise", images(60), Pixels()).digest == reference.digest


def test_an_interrupted_save_leaves_no_reference(reference, tmp_path, monkeypatch):
    def interrupted(path, **arrays):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reference.save(tmp_path)
    assert not list(tmp_path.iterdir()), "half a file left"


def zipped(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


DAMAGES = {  # of a file's content and its arrays
    "cut": lambda content, arrays: content[: len(content) // 2],
    "bit": lambda content, arrays: content[:400] + bytes([content[400] ^ 1]) + content[401:],
    "empty": lambda content, arrays: b"",
    "text": lambda content, arrays: b"version https://git-lfs.github.com/spec/v1",
    "values": lambda content, arrays: zipped(**{**arrays, "features": arrays["features"] + 1}),
    "missing": lambda content, arrays: zipped(**{k: arrays[k] for k in arrays if k != "cov"}),
    "pickle": lambda content, arrays: zipped(**{**arrays, "features": np.array([{}])}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_detected(reference, tmp_path, damage):
    path = reference.save(tmp_path)
    Reference.load(path)
    with np.load(path) as file:
        content = damage(path.read_bytes(), dict(file))
    path.write_bytes(content)
    said = r"is damaged \(.+\): delete it and build|holds Python objects .+: save plain arrays"
    refused(f"{path.name} ({said})", Reference.load, path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Reference.load(path)


@pytest.mark.parametrize("name", ["", "a/b", "../up", "two words"])
def test_names_that_are_no_file_names(reference, name):
    refused("must do as part of a file name", replace, reference, name=name)


def test_real_floor_is_an_evaluation_of_real_images(reference):
    real = Pixels()(images(80, seed=1))
    options = {"metrics": ("fid", "precision", "is"), "options": Options(bootstrap=10)}
    whole = real_floor(real, reference, 80, **options)
    assert list(whole) == ["fid", "precision", "is"]
    order = np.random.default_rng(0).choice(80, 80, replace=False)  # all of them, in some order
    assert sorted(order) == list(range(80))
    direct = evaluate(Extracted(real.features[order], real.logits[order]), reference, **options)
    assert whole == direct
    part = real_floor(real, reference, 40, **options)
    assert part["fid"].value > whole["fid"].value, "fewer samples: more bias"
    assert real_floor(real, reference, 40, **options) == part
    other = {**options, "options": Options(bootstrap=10, seed=1)}
    assert real_floor(real, reference, 40, **other) != part
    refused("a floor with 81 samples needs 81 real images", real_floor, real, reference, 81)


def test_balanced_floor_draws_equally_many_of_each_class(monkeypatch):
    labels, spy = np.repeat([0, 1, 2], 20), Mock()
    monkeypatch.setattr("eval.scoring.evaluate", spy)
    real = Extracted(np.arange(60)[:, None], np.arange(60)[:, None])
    real_floor(real, None, 31, labels=labels)
    rows = spy.call_args.args[0].features[:, 0]
    assert np.bincount(labels[rows]).tolist() == [11, 10, 10]
    assert np.array_equal(spy.call_args.kwargs["strata"], labels[rows])
    assert len(set(rows)) == 31
    refused("needs 21 real images of a kind, got 20", real_floor, real, None, 61, labels)


# --- published statistics ------------------------------------------------------------------


def adm_batch(path, **changes):
    """A reference batch in guided-diffusion's format: statistics of more images than it holds."""
    whole = images(500, 7)
    seen = Pixels()(whole)
    pool, spatial = statistics(seen.features), statistics(seen.spatial)
    arrays = {"arr_0": whole[:60], "mu": pool.mean, "sigma": pool.cov}
    arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.cov, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return pool, spatial


def test_fid_and_sfid_are_against_the_published_statistics(tmp_path):
    path = tmp_path / "VIRTUAL.npz"
    pool, spatial = adm_batch(path)
    published = read_adm_statistics(path, 500)
    with np.load(path) as file:
        reference = build_reference("r", file["arr_0"], Pixels(), published=published, source="s")
    assert (reference.n, reference.statistics.n, reference.spatial.n) == (60, 500, 500)
    samples = Pixels()(images(90, 3))
    scores = evaluate(samples, reference, metrics=["fid", "sfid", "is"], options=DELTA)
    expected = frechet_distance(statistics(samples.features), pool)
    assert scores["fid"].value == pytest.approx(expected, rel=1e-12)
    expected = frechet_distance(statistics(samples.spatial), spatial)
    assert scores["sfid"].value == pytest.approx(expected, rel=1e-12)
    own = build_reference("r", images(60, 7), Pixels())
    assert evaluate(samples, own, metrics=["fid"])["fid"].value != scores["fid"].value
    loaded = Reference.load(reference.save(tmp_path))
    assert (loaded.digest, loaded.source) == (reference.digest, "s")
    assert evaluate(samples, loaded, metrics=["sfid"], options=DELTA)["sfid"] == scores["sfid"]


def test_a_reference_batch_without_its_statistics_or_damaged_is_refused(tmp_path):
    path = tmp_path / "b.npz"
    for absent in ("mu", "sigma", "mu_s", "sigma_s"):
        adm_batch(path, **{absent: None})
        refused(f"b.npz has no {absent}: .*use reference=custom", read_adm_statistics, path, 500)
    adm_batch(path, mu=np.zeros(6, np.float32))
    assert read_adm_statistics(path, 500).features.mean.dtype == np.float64
    path.write_bytes(path.read_bytes()[:-100])
    refused("b.npz is damaged", read_adm_statistics, path, 500)


@pytest.mark.parametrize(("metric", "lacking"), [("sfid", "spatial"), ("is", "logits")])
def test_scores_an_extractor_cannot_give_are_refused(reference, metric, lacking):
    samples = Pixels()(images(60, 1))._replace(**{lacking: None})
    message = rf"{metric} needs what .* lacks: .* leave {metric} out"
    refused(message, evaluate, samples, reference, metrics=[metric])
