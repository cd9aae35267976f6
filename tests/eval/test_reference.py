"""Reference files: complete or refused, named by content; and the floor of a perfect sampler."""

from __future__ import annotations

import io
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from eval.extractors import Extracted
from eval.reference import Reference, build_reference
from eval.scoring import Options, evaluate, real_floor


class Pixels:
    """Features = the first 6 pixels; logits = the first 3."""

    name, num_features, digest = "pixels", 6, "weights-1"

    def __call__(self, images, batch_size=10):
        flat = images.reshape(len(images), -1).astype(np.float32) / 255
        return Extracted(flat[:, :6], flat[:, :3])


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
    with pytest.raises(ValueError, match=f"{path.name} is damaged: delete it and build"):
        Reference.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Reference.load(path)


@pytest.mark.parametrize("name", ["", "a/b", "../up", "two words"])
def test_names_that_are_no_file_names(reference, name):
    with pytest.raises(ValueError, match="must do as part of a file name"):
        replace(reference, name=name)


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
    with pytest.raises(ValueError, match="a floor with 81 samples needs 81 real images"):
        real_floor(real, reference, 81)


def test_balanced_floor_draws_equally_many_of_each_class(monkeypatch):
    labels, spy = np.repeat([0, 1, 2], 20), Mock()
    monkeypatch.setattr("eval.scoring.evaluate", spy)
    real = Extracted(np.arange(60)[:, None], np.arange(60)[:, None])
    real_floor(real, None, 31, labels=labels)
    rows = spy.call_args.args[0].features[:, 0]
    assert np.bincount(labels[rows]).tolist() == [11, 10, 10]
    assert np.array_equal(spy.call_args.kwargs["strata"], labels[rows])
    assert len(set(rows)) == 31
    with pytest.raises(ValueError, match="needs 21 real images of a kind, got 20"):
        real_floor(real, None, 61, labels=labels)
