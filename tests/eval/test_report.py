"""Tables and figures are rendered from records and say what the records say."""

from __future__ import annotations

import csv

import pytest
import yaml
from PIL import Image

from eval.metrics import Score
from eval.records import load_records, protocol, save_records, score
from eval.report import (
    Cell,
    format_score,
    paper_value,
    undecided_best,
    write_cutoff_figure,
    write_table,
)


def record(fid: float, se: float, n: int = 100, **sampler) -> dict:
    def values(f):
        return {"fid": {"value": f, "se": se}, "is": {"value": 9.0 - f / 10, "se": 0.1}}

    model = {"name": "digits", "checkpoint": "unet-1", "sha256": "0" * 64, "clip": True}
    config = {"sampler": sampler, "spacing": "even", "seed": 0, "label": None, "model": model}
    cell = {"nfe": 25, "config": config}
    return {
        "protocol": "digits", "n": n, "extractor": "digits", "extractor_weights": "abc", "reference": "digits",
        "reference_n": 5000, "reference_digest": "def", "options": {}, "cell": cell, "run": {"seconds_per_sample": 0.5},
        "scores": values(fid), "floor": values(1.0),
    }  # fmt: skip


CELLS = [
    Cell("DDPM", 25, record(3.00, 0.05)),
    Cell("DDIM", 25, record(4.00, 0.05)),
    Cell("Mix", 25, record(3.10, 0.05)),
    Cell("DDPM", 50, record(2.00, 0.05)),
]
PAPER = yaml.safe_load("""
title: Table 1
source: the paper
dataset: ImageNet
rows: [{name: DDPM, cells: [{steps: 25, is: 69.44, fid: 16.75}]}]
""")


def test_table_in_all_four_formats(tmp_path):
    write_table(tmp_path, "A table", CELLS, ["fid", "is"], PAPER)
    text = (tmp_path / "table.md").read_text()
    assert "| Sampler | 50 steps (N=100) | 25 steps (N=100) |" in text
    assert "| DDIM | - | 4.00 ± 0.10 |" in text
    assert "| Mix | - | **3.10 ± 0.10** |" in text  # not told from the best
    assert "| *Real* | 1.00 ± 0.10 | 1.00 ± 0.10 |" in text
    assert "FID (digits), lower is better" in text
    assert "another data set" in text
    assert "spacing `even`, seed 0, labels at random" in text
    assert "| DDPM | 16.75 |" in text
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    first = next(r for r in rows if r["sampler"] == "DDPM" and r["steps"] == "25")
    assert (first["metric"], first["value"], first["paper"]) == ("fid", "3.0", "16.75")
    latex = (tmp_path / "table.tex").read_text()
    assert latex.count("\\begin{tabular}{lrrrr}") == 1
    assert "FID (digits)" in latex
    assert "Real & " in latex
    assert "$\\mathbf{3.00 \\pm 0.10}$" in latex
    assert Image.open(tmp_path / "table.png").width > 400


def test_ranking_needs_a_difference_beyond_the_interval():
    a, b = Score(3.0, 0.05), Score(3.1, 0.05)  # difference 0.1, its half width 0.139
    assert undecided_best("fid", {"a": a, "b": b}) == {"a", "b"}
    assert undecided_best("fid", {"a": a, "b": Score(3.2, 0.05)}) == {"a"}
    assert undecided_best("is", {"a": a, "b": Score(3.2, 0.05)}) == {"b"}  # higher is better
    assert undecided_best("fid", {}) == set()


def test_format():
    assert format_score("fid", Score(3.14159, 0.1)) == "3.14 ± 0.20"
    assert format_score("kid", Score(0.00123, 0.0001)) == "0.0012 ± 0.0002"
    assert format_score("recall", Score(0.5, float("nan"))) == "0.500"
    assert format_score("fid", None) == "-"


def test_paper_value_is_found_by_row_steps_and_metric():
    assert paper_value(PAPER, "DDPM", 25, "fid") == 16.75
    assert paper_value(PAPER, "DDPM", 25, "recall") is None
    assert paper_value(PAPER, "DDPM", 10, "fid") is None
    assert paper_value(None, "DDPM", 25, "fid") is None


def test_cutoff_figure(tmp_path):
    cells = [Cell(f"cutoff {c}", 25, record(3 + c / 1000, 0.05, name="mix", cutoff=c))
             for c in (0, 291, 1000)]  # fmt: skip
    paper = {"optimal_cutoffs": [100, 400], "source": "the paper", "dataset": "ImageNet"}
    write_cutoff_figure(tmp_path, "Cutoffs", cells, ["fid", "is"], paper)
    text = (tmp_path / "figure.md").read_text()
    assert text.index("| 0 | **3.00 ± 0.10** |") < text.index("| 291 |") < text.index("| 1000 |")
    assert "[100, 400]" in text
    assert "another data set" in text
    assert Image.open(tmp_path / "figure.png").width > 400


def test_records_round_trip_and_protocol(tmp_path):
    path = tmp_path / "deep" / "records.json"
    save_records(path, [record(3.0, 0.05)])
    (loaded,) = load_records(path)
    assert score(loaded, "fid") == Score(3.0, 0.05)
    assert score(loaded, "fid", "floor") == Score(1.0, 0.05)
    assert score(loaded, "kid") is None
    assert protocol(record(3.0, 0.05)) == protocol(record(9.9, 1.0))
    assert protocol(record(3.0, 0.05)) != protocol(record(3.0, 0.05, n=200))
    path.write_text("[")
    with pytest.raises(ValueError, match="is damaged"):
        load_records(path)
    with pytest.raises(FileNotFoundError, match="without render_only"):
        load_records(tmp_path / "none.json")
