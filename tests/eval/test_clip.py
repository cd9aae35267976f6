"""The CLIP score, with a tiny CLIP of the real architecture and random weights."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from standin_scorers import tiny_clip

import evaluate
from eval.extractors import ClipExtractor
from eval.metrics import clip_score
from eval.scoring import evaluate as scores_of
from files.whole import file_sha256

PROMPTS = ["a cat", "a chair designed to look like an octopus", "a red bus", "ein Bär"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path, weights = tiny_clip(tmp_path_factory.mktemp("clip"))
    named = torch.load(weights, weights_only=True)
    save_file(
        {key: value.contiguous() for key, value in named.items()},
        weights.with_suffix(".safetensors"),
    )
    return path, weights


def images(n=4, size=48):
    return np.random.default_rng(1).integers(256, size=(n, size, size, 3), dtype=np.uint8)


def test_features_are_open_clips(tiny):
    extractor = ClipExtractor(str(tiny[0]), str(tiny[1]))
    assert extractor.name == "clip-tiny-clip-random-32"
    assert extractor.facts == {"model": "tiny-clip", "pretrained": "random", "image_size": 32}
    net, _, prepare = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(tiny[1]))
    net.eval()
    x = images()
    with torch.no_grad():
        seen = net.encode_image(torch.stack([prepare(Image.fromarray(i)) for i in x]))
        read = net.encode_text(open_clip.tokenize(PROMPTS))
    for got, want in ((extractor(x, 3).features, seen), (extractor.encode_text(PROMPTS, 3), read)):
        want = (want / want.norm(dim=1, keepdim=True)).numpy()
        assert got.shape == (4, 16) == (4, extractor.num_features) and got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-5)
    grey = x[..., :1]
    same = extractor(grey).features, extractor(grey.repeat(3, axis=-1)).features
    np.testing.assert_array_equal(*same)
    # The weights identify it, whatever file they came from; safetensors do as well.
    other = ClipExtractor(str(tiny[0]), str(tiny[1].with_suffix(".safetensors")))
    assert other.digest == extractor.digest


def test_the_score(tiny):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((50, 8)) for _ in range(2))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    cosines = [max(100 * float(np.dot(x, y)), 0) for x, y in zip(a, b, strict=True)]
    score = clip_score(a.astype(np.float32), b.astype(np.float32))
    assert score.value == pytest.approx(np.mean(cosines), rel=1e-5)
    assert score.se == pytest.approx(np.std(cosines, ddof=1) / 50**0.5, rel=1e-5)
    assert clip_score(a, a).value == pytest.approx(100)
    assert clip_score(a, -a).value == 0
    with pytest.raises(ValueError, match="50 images but 49 prompts"):
        clip_score(a, b[:49])
    extracted = ClipExtractor(str(tiny[0]), str(tiny[1]))(images())
    with pytest.raises(ValueError, match=r"clip_score needs what .* leave clip_score out"):
        scores_of(extracted, None, metrics=["clip_score"])
    with pytest.raises(ValueError, match="fid compares with real images: give a reference"):
        scores_of(extracted, None, metrics=["fid"])


@pytest.mark.parametrize(
    ("model", "pretrained", "error", "message"),
    [
        ("ViT-x", "openai", ValueError, "open_clip knows no model 'ViT-x'"),
        ("ViT-g-14", "openai", ValueError, "is a file, or one of laion2b_s12b_b42k, laion2b_s34b_b88k"),
        ("absent.json", "openai", FileNotFoundError, "no model config at absent.json"),
        ("ViT-B-32", "{weights}", ValueError, "is damaged or not of ViT-B-32"),
        ("{model}", "{damaged}", ValueError, "is damaged or not of tiny-clip"),
        ("{model}", "absent.pt", ValueError, "no weights 'absent.pt' of tiny-clip"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tiny, tmp_path, model, pretrained, error, message):
    (tmp_path / "damaged.pt").write_bytes(tiny[1].read_bytes()[:5000])
    known = {"model": tiny[0], "weights": tiny[1], "damaged": tmp_path / "damaged.pt"}
    with pytest.raises(error, match=message) as caught:
        ClipExtractor(model.format(**known), pretrained.format(**known))
    assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"visual": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="is damaged or not of tiny-clip"):
        ClipExtractor(str(tiny[0]), str(tmp_path / "evil.pt"))
    assert not (tmp_path / "was-run").exists()


def test_when_the_hub_does_not_answer(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise RuntimeError("Failed to download weights for tag\nand more")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", refuse)
    with pytest.raises(FileNotFoundError, match="fetch its file elsewhere and pass its path as"):
        ClipExtractor("ViT-B-32", "openai", tmp_path)


# --- evaluate.py ----------------------------------------------------------------------------------


@pytest.fixture
def scored(command, tiny, tmp_path):
    """evaluate.py by that CLIP: (exit status, stdout, stderr)."""
    words = [
        "metrics=clip",
        "reference=none",
        f"metrics.model={tiny[0]}",
        f"metrics.pretrained={tiny[1]}",
    ]
    (tmp_path / "prompts.txt").unlink(missing_ok=True)

    def call(*more):
        return command(evaluate, *words, *more)

    return call


def expected(tiny, x, texts):
    extractor = ClipExtractor(str(tiny[0]), str(tiny[1]))
    return clip_score(extractor(x).features, extractor.encode_text(texts))


def write_prompts(path, prompts):
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")


def test_samples_with_a_file_of_prompts(scored, tiny, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=images())
    write_prompts(tmp_path / "mine.txt", PROMPTS)
    status, out, err = scored("samples=x.npz", "prompts=mine.txt")
    assert status == 0, err
    want = expected(tiny, images(), PROMPTS)
    record = json.loads((tmp_path / "x.evaluation-clip.json").read_text())
    assert record["scores"]["clip_score"]["value"] == pytest.approx(want.value)
    assert record["scores"]["clip_score"]["se"] == pytest.approx(want.se)
    assert record["clip"] == {"model": "tiny-clip", "pretrained": "random", "image_size": 32}
    assert record["extractor"] == "clip-tiny-clip-random-32"
    assert (record["reference"], record["reference_n"], record["floor"]) == (None, None, None)
    assert record["prompts"] == file_sha256(tmp_path / "mine.txt")[:12]
    assert "CLIP score" in out and f"{want.value:.2f} ±" in out and "no reference" in out


def test_a_runs_folder_has_its_prompts(scored, tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_prompts(run / "prompts.txt", PROMPTS)
    labels = np.array([2, 0, 0, 3])
    np.savez(run / "samples.npz", arr_0=images(), arr_1=labels)
    for samples in ("run", "run/samples.npz"):
        status, _, err = scored(f"samples={samples}", "out=record.json")
        assert status == 0, err
        record = json.loads((tmp_path / "record.json").read_text())
        want = expected(tiny, images(), [PROMPTS[k] for k in labels])
        assert record["scores"]["clip_score"]["value"] == pytest.approx(want.value)
        assert "prompts" not in record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no prompts at mine.txt: give prompts=FILE"),
        (b"", "one prompt a line, but it is empty"),
        (b"a\n\nb\nc\n", "line 2 is blank"),
        (b"a\nb\n", "has 2 prompts, but sample 3 is of prompt 3"),
        (b"a\n\xff\nb\nc\n", "is not UTF-8 text"),
    ],
)
def test_bad_prompts_are_one_line(scored, tmp_path, content, message):
    np.savez(tmp_path / "x.npz", arr_0=images())
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    status, _, err = scored("samples=x.npz", "prompts=mine.txt")
    assert status == 2 and message in err and err.startswith("error: "), err


def test_no_prompts_and_no_reference(scored, command, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=images())
    status, _, err = scored("samples=x.npz")
    assert status == 2 and "give prompts=FILE with one prompt a line" in err
    np.savez(tmp_path / "digits.npz", arr_0=images(8, 28)[..., :1])
    status, _, err = command(evaluate, "samples=digits.npz", "metrics=digits", "reference=none",
                             "metrics.options.kid_subset_size=4", "metrics.scores=[is,kid]")  # fmt: skip
    assert status == 2 and "kid compares with real images: give a reference" in err
