"""Tables and figures are rendered from records and say what the records say."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from eval.metrics import Score
from eval.records import load_records, protocol, save_records, score
from eval.sheets import Pictures, write_sheets
from eval.table import Cell, check_one_protocol, load_cells, save_cells, undecided_best
from report.paper import paper_value
from report.pictures import write_pictures
from report.render import write_cutoff_figure, write_table
from report.words import format_score, made_sentence


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


def test_cells_round_trip_with_their_column(tmp_path):
    cells = [Cell("Heun", 10, record(3.0, 0.05, name="heun")), Cell("DDIM", 10, record(2.0, 0.1))]
    path = tmp_path / "records.json"
    save_cells(path, cells)
    assert load_cells(path) == cells
    for other in ([record(3.0, 0.05)], {"row": "Heun"}):
        save_records(path, other)
        with pytest.raises(ValueError, match="holds no table's records: remove it and run again"):
            load_cells(path)


def test_the_papers_own_model_has_its_numbers_beside_ours_with_the_difference(tmp_path):
    paper = {**PAPER, "backbone": "digits"}
    write_table(tmp_path, "A table", CELLS, ["fid", "is"], paper)
    text = (tmp_path / "table.md").read_text()
    assert "| DDPM | **2.00 ± 0.10** | **3.00 ± 0.10** (16.75, -13.75) |" in text
    assert "| DDPM | **8.80 ± 0.20** | **8.70 ± 0.20** (69.44, -60.74) |" in text
    assert "another data set" not in text
    assert "In parentheses: the paper's number" in text
    assert "(16.75, -13.75)" in (tmp_path / "table.tex").read_text()
    with open(tmp_path / "table.csv") as file:
        rows = {(r["sampler"], r["steps"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["DDPM", "25", "fid"]["difference"]) == pytest.approx(-13.75)
    assert rows["DDPM", "50", "fid"]["difference"] == ""
    write_table(tmp_path, "A table", CELLS, ["fid", "is"], PAPER)
    assert "16.75," not in (tmp_path / "table.md").read_text()
    with open(tmp_path / "table.csv") as file:
        assert {row["difference"] for row in csv.DictReader(file)} == {""}


def test_a_table_without_real_images_has_no_floor(tmp_path):
    cells = [Cell(c.row, c.steps, {**c.record, "floor": None}) for c in CELLS]
    write_table(tmp_path, "A table", cells, ["fid"], PAPER)
    for name in ("table.md", "table.tex"):
        text = (tmp_path / name).read_text()
        assert "*Real*" not in text and "\nReal" not in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", "clean"),
        ("extractor", "inception"),
        ("extractor_weights", "xyz"),
        ("reference", "custom"),
        ("reference_digest", "xyz"),
        ("options", {"k": 5}),
    ],
)
def test_protocols_are_never_mixed(tmp_path, key, value):
    other = Cell("Mix", 50, {**record(2.0, 0.1), key: value})
    with pytest.raises(ValueError, match=rf"never mixes protocols: {key} is .* row Mix at 50"):
        write_table(tmp_path, "A table", [*CELLS, other], ["fid"], None)
    with pytest.raises(ValueError, match="never mixes protocols"):
        write_cutoff_figure(tmp_path, "A figure", [*CELLS, other], ["fid"], None)
    assert list(tmp_path.iterdir()) == []


def test_a_column_never_mixes_numbers_of_samples():
    check_one_protocol([*CELLS, Cell("Mix", 1000, record(2.0, 0.1, n=7))])  # another column may
    with pytest.raises(ValueError, match="100 and 99 at 50 steps"):
        check_one_protocol([*CELLS, Cell("Mix", 50, record(2.0, 0.1, n=99))])


def test_pictures_are_labelled_rows(tmp_path):
    config = {**CELLS[0].record["cell"]["config"], "sampler": {"name": "mix", "cutoff": 291}}
    images = np.zeros((4, 8, 8, 3), np.uint8)
    rows = [Pictures("Mix", s, images, list("0123"), config) for s in (5, 50)]
    write_pictures(tmp_path, "Samples", rows)
    text = (tmp_path / "figure.md").read_text()
    assert text.index("| 1 | Mix (name mix, cutoff 291) | 50 |") < text.index("| 2 | Mix")
    assert "The first 4 samples of the seed" in text
    width, height = Image.open(tmp_path / "figure.png").size
    assert width > height


@pytest.mark.parametrize(("side", "shown"), [(28, 28), (200, 128)])
def test_sheets_hold_the_pictures_of_every_sampler(tmp_path, side, shown):
    config = CELLS[0].record["cell"]["config"]
    grey = np.random.default_rng(0).integers(0, 256, (3, side, side, 1), np.uint8)
    rows = [
        Pictures(row, steps, grey + np.uint8(i), list("abc"), config)
        for steps in (5, 10)
        for i, row in enumerate(("Mix", "DDIM"))
    ]
    write_sheets(tmp_path, rows)
    index = json.loads((tmp_path / "pictures.json").read_text())
    assert (index["width"], index["height"], index["titles"]) == (shown, shown, ["a", "b", "c"])
    assert list(index["sheets"]) == ["5", "10"]
    assert index["sheets"]["5"]["rows"] == ["Mix", "DDIM"]
    sheet = np.asarray(Image.open(tmp_path / index["sheets"]["5"]["file"]))
    assert sheet.shape == (2 * shown, 3 * shown, 3)
    if side == shown:  # kept without loss
        assert np.array_equal(sheet[shown:, :shown, 0], grey[0, ..., 0] + np.uint8(1))


def test_guidance_and_precision_are_told():
    made = CELLS[0].record["cell"]["config"]
    assert "guidance" not in made_sentence(made)
    guided = {**made, "guidance": {"name": "classifier", "scale": 1.5, "sha256": "0"}}
    guided["model"] = {**made["model"], "precision": "fp16"}
    assert "precision fp16, classifier guidance with scale 1.5;" in made_sentence(guided)


def of_stable_diffusion(id: str, **more) -> list[Cell]:
    """A row of Table 3 as this repository names it, of a pipeline of that id."""
    cells = []
    for steps, value in ((50, 17.0), (10, 25.0)):
        one = record(value, 0.1)
        made = one["cell"]["config"]
        made = {**made, "label": None, "prompts": {"count": 30000, "sha256": "ab" * 32}, **more}
        made["model"] = {**made["model"], "name": "sd21", "id": id, "guidance_scale": 7.5}
        made["evaluations_per_call"] = 2
        cells.append(Cell("DDIM", steps, {**one, "cell": {**one["cell"], "config": made}}))
    return cells


def test_table3_has_the_papers_numbers_beside_only_for_the_papers_pipeline(tmp_path):
    paper = yaml.safe_load((ROOT / "results/paper/table3.yaml").read_text())
    cells = of_stable_diffusion("stable-diffusion-2-1-base")
    write_table(tmp_path, "Table 3", cells, ["is", "fid"], paper)
    text = (tmp_path / "table.md").read_text()
    assert "(17.48, -0.48)" in text and "(25.64, -0.64)" in text and "(39.11, " in text
    assert "classifier-free guidance 7.5 (two network evaluations a call)" in text
    assert "30000 prompts (abababababab) a sample each" in text
    write_table(tmp_path, "Table 3", of_stable_diffusion("my-pipeline"), ["is", "fid"], paper)
    text = (tmp_path / "table.md").read_text()
    assert (
        "(17.48" not in text and "| SD_2.1 | 17.48 |" in text and "another model than ours" in text
    )
    text = made_sentence(of_stable_diffusion("x", label="balanced")[0].record["cell"]["config"])
    assert "30000 prompts (abababababab) in turn" in text


def test_a_table_never_mixes_preprocessings_or_prompts(tmp_path):
    for key, value in (("preprocess", {"name": "bicubic", "size": 256}), ("prompts", "0" * 12)):
        cells = [CELLS[0], Cell("DDIM", 25, {**record(4.0, 0.05), key: value})]
        with pytest.raises(ValueError, match=f"never mixes protocols: {key} is None in row DDPM"):
            check_one_protocol(cells)
