"""Run by tests/test_wheel.py where only the wheel is found: guided-diffusion's golden numbers.

Its evaluator was recorded from features on.  Images that carry the number of a row stand for those, and
a network that looks the row up for Inception: all else is what a user calls.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np

GOLDEN = Path(sys.argv[1])
# What must not be needed: other extras, and the clone's own folders.
ABSENT = {"hydra", "omegaconf", "diffusers", "matplotlib", "transformers", "open_clip", "wandb"}
ABSENT |= {"eval", "files", "models", "sampling", "experiments", "report"}


class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent())

import skipped_step  # noqa: E402

assert not [name for name in sys.modules if name.startswith("skipped_step.evaluation")]
from skipped_step.evaluation import evaluate  # noqa: E402
from skipped_step.evaluation import extractors as ext  # noqa: E402

assert not ABSENT & set(sys.modules)
RECORDED = json.loads((GOLDEN / "evaluator.json").read_text())
ARRAYS = np.load(GOLDEN / "evaluator.npz")
MAIN = [ARRAYS["main/samples"], ARRAYS["main/ref"]]
LOGITS = np.log(ARRAYS["is/softmax"])


class Golden(ext.Extractor):
    """Row `number` of set `which` of an image whose first pixel is (which, number // 256, number % 256)."""

    name, num_features = "inception", 64

    def __init__(self, weights=None, device="cpu"):
        super().__init__("0" * 64, device)

    def forward(self, x):
        which, high, low = x[:, :, 0, 0].int().numpy().T
        rows = 256 * high + low
        features = np.stack([MAIN[w][r] for w, r in zip(which, rows, strict=True)])
        tensor = ext.torch.from_numpy
        parts = {"features": features, "spatial": features, "logits": LOGITS[rows % len(LOGITS)]}
        return {name: tensor(np.ascontiguousarray(part)) for name, part in parts.items()}


def images(which, n):
    pixels = np.zeros((n, 4, 4, 3), np.uint8)
    pixels[:, 0, 0, 0] = which
    pixels[:, 0, 0, 1], pixels[:, 0, 0, 2] = np.divmod(np.arange(n), 256)
    return pixels


ext.EXTRACTORS["inception"] = Golden
real = MAIN[1].astype(np.float64)
mu, sigma = real.mean(0), np.cov(real, rowvar=False)
np.savez("batch.npz", arr_0=images(1, 1000), mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
np.savez("samples.npz", arr_0=images(0, 800))
case = RECORDED["cases"]["main"]
for samples in (images(0, 800), "samples.npz"):
    scores = evaluate(samples, "batch.npz", protocol="adm", device="cpu")
    assert list(scores) == ["fid", "sfid", "is", "precision", "recall"]
    assert abs(scores["fid"].value / case["fid_float64_means_and_eigenvalues"] - 1) < 1e-6
    assert scores["sfid"].value == scores["fid"].value  # of the same features here
    both = [scores[name].value for name in ("precision", "recall")]
    assert np.allclose(both, case["precision_recall_exact_float64"], atol=1e-12)
    assert all(score.se > 0 for score in scores.values())
for chunk, recorded in RECORDED["inception_score"]["float64"].items():
    settings = {"scores": ["is"], "metrics.options.is_chunk_size": int(chunk)}
    score = evaluate(images(1, 1000), "batch.npz", settings=settings)["is"]
    assert abs(score.value - recorded) < 1e-6, chunk
# The command prints and stores the same.
sys.argv[1:] = [
    "evaluate",
    "samples.npz",
    "--reference",
    "batch.npz",
    "--device",
    "cpu",
    "--out",
    "record.json",
]
from skipped_step.command import main  # noqa: E402

main()
record = json.loads(Path("record.json").read_text())
assert record["scores"]["fid"]["value"] == scores["fid"].value and record["protocol"] == "adm"
assert not ABSENT & set(sys.modules), ABSENT & set(sys.modules)
print(skipped_step.__file__)
