"""The CLIP score, with a tiny CLIP of the real architecture and random weights."""

from __future__ import annotations

import json
from unittest.mock import Mock

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from standin_scorers import tiny_clip
from test_metrics import refused

import evaluate
from eval.agreement import clip_score
from eval.extractors import ClipExtractor
from eval.records import score
from eval.scoring import evaluate as scores_of
from files.whole import file_sha256

PROMPTS = ["a cat", "a chair designed to look like an octopus", "a red bus", "ein Bär"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The model's config and its weights; beside them the same as safetensors."""
    path, weights = tiny_clip(tmp_path_factory.mktemp("clip"))
    tensors = {k: w.contiguous() for k, w in torch.load(weights, weights_only=True).items()}
    save_file(tensors, weights.with_suffix(".safetensors"))
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
    drawn = (rng.standard_normal((50, 8)) for _ in range(2))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in drawn)
    cosines = [max(100 * float(np.dot(x, y)), 0) for x, y in zip(a, b, strict=True)]
    got = clip_score(a.astype(np.float32), b.astype(np.float32))
    assert got[:2] == pytest.approx((np.mean(cosines), np.std(cosines, ddof=1) / 50**0.5), rel=1e-5)
    assert clip_score(a, a).value == pytest.approx(100)
    assert clip_score(a, -a).value == 0
    refused("50 images but 49 prompts", clip_score, a, b[:49])
    seen = ClipExtractor(str(tiny[0]), str(tiny[1]))(images())
    message = "clip_score needs what .* leave clip_score out"
    refused(message, scores_of, seen, None, metrics=["clip_score"])
    message = "fid compares with real images: give a reference"
    refused(message, scores_of, seen, None, metrics=["fid"])


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-x", "openai", "open_clip knows no model 'ViT-x'"),
        ("ViT-g-14", "openai", "is a file, or one of laion2b_s12b_b42k, laion2b_s34b_b88k"),
        ("absent.json", "openai", "no model config at absent.json"),
        ("ViT-B-32", "{weights}", "is damaged or not of ViT-B-32"),
        ("{model}", "{folder}/damaged.pt", "is damaged or not of tiny-clip"),
        ("{model}", "{folder}/evil.pt", "is damaged or not of tiny-clip"),
        ("{model}", "absent.pt", "no weights 'absent.pt' of tiny-clip"),
    ],
)
def test_mistakes_are_named_and_no_code_is_run(tiny, tmp_path, model, pretrained, message):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"visual": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "damaged.pt").write_bytes(tiny[1].read_bytes()[:5000])
    places = {"model": tiny[0], "weights": tiny[1], "folder": tmp_path}
    error = FileNotFoundError if model == "absent.json" else ValueError
    with pytest.raises(error, match=message) as caught:
        ClipExtractor(model.format(**places), pretrained.format(**places))
    assert "\n" not in str(caught.value) and not (tmp_path / "was-run").exists()


def test_when_the_hub_does_not_answer(monkeypatch, tmp_path):
    offline = Mock(side_effect=RuntimeError("Failed to download weights for tag\nand more"))
    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    with pytest.raises(FileNotFoundError, match="fetch its file elsewhere and pass its path as"):
        ClipExtractor("ViT-B-32", "openai", tmp_path)


# --- evaluate.py ----------------------------------------------------------------------------------


@pytest.fixture
def scored(command, tiny, tmp_path):
    """evaluate.py by that CLIP: its output if it succeeds, else its error."""
    words = ["metrics=clip", f"metrics.model={tiny[0]}", f"metrics.pretrained={tiny[1]}"]
    np.savez(tmp_path / "x.npz", arr_0=images())

    def call(*more, status=0):
        ended, out, err = command(evaluate, "reference=none", *words, *more)
        assert ended == status, err
        return err if status else out

    return call


def expected(tiny, x, texts):
    extractor = ClipExtractor(str(tiny[0]), str(tiny[1]))
    return clip_score(extractor(x).features, extractor.encode_text(texts))


def test_samples_with_a_file_of_prompts(scored, tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    out = scored("samples=x.npz", "prompts=mine.txt")
    want = expected(tiny, images(), PROMPTS)
    record = json.loads((tmp_path / "x.evaluation-clip.json").read_text())
    assert score(record, "clip_score")[:2] == pytest.approx(want[:2])
    assert record["clip"] == {"model": "tiny-clip", "pretrained": "random", "image_size": 32}
    assert record["extractor"] == "clip-tiny-clip-random-32"
    assert (record["reference"], record["reference_n"], record["floor"]) == (None, None, None)
    assert record["prompts"] == file_sha256(tmp_path / "mine.txt")[:12]
    assert "CLIP score" in out and f"{want.value:.2f} ±" in out and "no reference" in out


def test_a_runs_folder_has_its_prompts(scored, tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    labels = np.array([2, 0, 0, 3])
    np.savez(run / "samples.npz", arr_0=images(), arr_1=labels)
    want = expected(tiny, images(), [PROMPTS[k] for k in labels])
    for samples in ("run", "run/samples.npz"):
        scored(f"samples={samples}", "out=record.json")
        record = json.loads((tmp_path / "record.json").read_text())
        assert score(record, "clip_score")[:2] == pytest.approx(want[:2])
        assert "prompts" not in record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no prompts at mine.txt: give prompts=FILE"),
        (b"", "one prompt a line, but it is empty"),
        (b"a\n\nb\nc\n", "line 2 is blank"),
        (b"a\nb\n", "has 2 prompts, but sample 2 is of prompt 2"),
        (b"a\n\xff\nb\nc\n", "is not UTF-8 text"),
    ],
)
def test_bad_prompts_are_one_line(scored, tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    err = scored("samples=x.npz", "prompts=mine.txt", status=2)
    assert message in err and err.startswith("error: "), err


def test_no_prompts_and_no_reference(scored, command, tmp_path):
    assert "give prompts=FILE with one prompt a line" in scored("samples=x.npz", status=2)
    np.savez(tmp_path / "digits.npz", arr_0=images(8, 28)[..., :1])
    words = ["metrics=digits", "metrics.options.kid_subset_size=4", "metrics.scores=[is,kid]"]
    status, _, err = command(evaluate, "samples=digits.npz", "reference=none", *words)
    assert status == 2 and "kid compares with real images: give a reference" in err
