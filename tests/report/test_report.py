"""Tables and figures are rendered from records and say what the records say."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import yaml
from conftest import ROOT
from matplotlib.pyplot import imread
from PIL import Image

from eval.records import Record, save_records
from eval.score import Score
from eval.sheets import Pictures, read_sheets, write_sheets
from eval.table import Table, cutoff
from eval.words import format_score
from report.paper import Paper
from report.render import RENDERERS, render, write_cutoffs, write_table
from report.words import sampling_sentence


def record(row: str, steps: int, fid: float, se: float = 0.05, n: int = 100, **sampler) -> Record:
    def values(f):
        return {"fid": {"value": f, "se": se}, "is": {"value": 9.0 - f / 10, "se": 0.1}}

    model = {"name": "digits", "checkpoint": "unet-1", "sha256": "0" * 64, "clip": True}
    config = {"sampler": sampler, "spacing": "even", "seed": 0, "label": None, "model": model}
    return {
        **{"row": row, "steps": steps, "protocol": "digits", "n": n},
        **{"extractor": "digits", "extractor_weights": "abc", "options": {}},
        **{"reference": "digits", "reference_n": 5000, "reference_digest": "def"},
        **{"cell": {"nfe": 25, "config": config}, "run": {"seconds_per_sample": 0.5}},
        **{"scores": values(fid), "floor": values(1.0)},
    }


CELLS = [("DDPM", 25, 3.00), ("DDIM", 25, 4.00), ("Mix", 25, 3.10), ("DDPM", 50, 2.00)]
RECORDS = [record(*cell) for cell in CELLS]
TABLE = Table(RECORDS)
CONFIG = RECORDS[0]["cell"]["config"]
PAPER = yaml.safe_load("""
title: Table 1
source: the paper
dataset: ImageNet
rows: [{name: DDPM, cells: [{steps: 25, is: 69.44, fid: 16.75}]}]
""")


def csv_of(path) -> dict[tuple[str, str, str], dict[str, str]]:
    with path.open() as file:
        return {(r["sampler"], r["steps"], r["metric"]): r for r in csv.DictReader(file)}


# --- the table --------------------------------------------------------------------------------


def test_a_table_knows_its_rows_columns_and_cells():
    assert TABLE.rows == ["DDPM", "DDIM", "Mix"] and TABLE.columns == [50, 25]
    assert TABLE.record("Mix", 25) is RECORDS[2] and TABLE.record("Mix", 50) is None
    assert [r["row"] for r in TABLE.column(25)] == TABLE.rows and TABLE.n(50) == 100
    assert TABLE.value("DDPM", 50, "fid") == TABLE.score("DDPM", 50, "fid") == Score(2.0, 0.05)
    assert TABLE.value("DDIM", 50, "fid") is None and TABLE.value("DDIM", 25, "kid") is None
    assert TABLE.floor(25, "fid") == Score(1.0, 0.05)
    with pytest.raises(ValueError, match="lack kid of DDIM at 25 steps"):
        TABLE.score("DDIM", 25, "kid")


def test_ranking_needs_a_difference_beyond_the_interval():
    near = Table([record("a", 25, 3.0), record("b", 25, 3.1)])  # half the interval is 0.139
    assert near.best(25, "fid") == "a" and near.tied(25, "fid") == {"a", "b"}
    far = Table([record("a", 25, 3.0), record("b", 25, 3.2), record("c", 25, 9.0)])
    assert far.tied(25, "fid") == {"a"} and far.tied(25, "fid", ["b", "c"]) == {"b"}
    assert far.best(25, "is", ["b", "c"]) == "b"  # higher is better
    assert far.tied(25, "kid") == set()
    with pytest.raises(ValueError, match="no row has a score kid"):
        far.best(25, "kid")


def test_round_trip_with_the_column_of_each_record(tmp_path):
    path = tmp_path / "deep" / "records.json"
    TABLE.save(path)
    assert Table.load(path).records == RECORDS
    assert list(json.loads(path.read_text())[0])[:3] == ["row", "steps", "protocol"]
    for other in ([{"row": "Heun"}], {"row": "Heun"}, []):
        save_records(path, other)
        with pytest.raises(ValueError, match="remove it and run again"):
            Table.load(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="is damaged"):
        Table.load(path)
    with pytest.raises(FileNotFoundError, match="without render_only"):
        Table.load(tmp_path / "none.json")


OTHERS = {"protocol": "clean", "extractor": "inception", "extractor_weights": "xyz"}
OTHERS |= {"reference": "custom", "reference_digest": "xyz", "options": {"k": 5}}
OTHERS |= {"preprocess": {"name": "bicubic", "size": 256}, "prompts": "0" * 12}


@pytest.mark.parametrize("key", OTHERS)
def test_protocols_are_never_mixed(key):
    other = {**record("Mix", 50, 2.0), key: OTHERS[key]}
    with pytest.raises(ValueError, match=rf"never mixes protocols: {key} is .* row Mix at 50"):
        Table([*RECORDS, other])


def test_precisions_are_never_mixed():
    config = {**CONFIG, "model": {**CONFIG["model"], "precision": "bf16"}}
    other = {**record("Mix", 50, 2.0), "cell": {"nfe": 50, "config": config}}
    with pytest.raises(ValueError, match=r"in fp32 in row DDPM at 25 .* in bf16 in row Mix at 50"):
        Table([*RECORDS, other])


def test_a_column_never_mixes_numbers_of_samples():
    Table([*RECORDS, record("Mix", 1000, 2.0, n=7)])  # another column may
    with pytest.raises(ValueError, match="100 and 99 at 50 steps"):
        Table([*RECORDS, record("Mix", 50, 2.0, n=99)])


# --- what is written of it --------------------------------------------------------------------


def test_table_in_all_formats(tmp_path):
    text = RENDERERS["table"](tmp_path, "A table", TABLE, ["fid", "is"], Paper(PAPER))
    assert (tmp_path / "table.md").read_text() == text
    for part in (
        "| Sampler | 50 steps (N=100) | 25 steps (N=100) |",
        "| DDIM | - | 4.00 ± 0.10 |",
        "| Mix | - | **3.10 ± 0.10** |",  # not told from the best
        "| *Real* | 1.00 ± 0.10 | 1.00 ± 0.10 |",
        "spacing `even`, seed 0, labels at random",
        "| DDPM | 16.75 |",
    ):
        assert part in text
    assert "FID (digits), lower is better" in text and "another data set" in text
    assert "![FID, IS against network calls a sample](table.png)" in text
    assert "Model `digits`, spacing `even`, seed 0; scored with `digits`; N = 100." in text
    rows = csv_of(tmp_path / "table.csv")
    row = rows["DDPM", "25", "fid"]
    assert (len(rows), row["value"], row["paper"]) == (8, "3.0", "16.75")
    latex = (tmp_path / "table.tex").read_text()
    assert latex.count("\\begin{tabular}{lrrrr}") == 1
    assert "FID (digits)" in latex and "Real & " in latex
    assert "$\\mathbf{3.00 \\pm 0.10}$" in latex
    assert imread(tmp_path / "table.png").shape[1] > 400
    assert Table.load(tmp_path / "records.json").records == RECORDS


def test_format():
    assert format_score("fid", Score(3.14159, 0.1)) == "3.14 ± 0.20"
    assert format_score("kid", Score(0.00123, 0.0001)) == "0.0012 ± 0.0002"
    assert format_score("kid", Score(1.23, 0.05)) == "1.23 ± 0.10"
    assert format_score("recall", Score(0.5, float("nan"))) == "0.500"
    assert format_score("fid", None) == "-"


def test_paper_value_is_found_by_row_steps_and_metric():
    wanted = (("DDPM", 25, "fid"), ("DDPM", 25, "recall"), ("DDPM", 10, "fid"))
    assert [Paper(PAPER).value(*place) for place in wanted] == [16.75, None, None]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({"name": "mix", "cutoff": 291}, 291),
        ({"name": "skipped"}, 0),
        ({"name": "ddim", "eta": 0.0}, 1000),
        ({"name": "ddim", "eta": 0.5}, math.nan),
        ({"name": "mix", "cutoff": None, "cutoff_sigma": 1.5}, math.nan),
        ({"name": "heun"}, math.nan),
        ({}, math.nan),
    ],
)
def test_cutoffs_of_records(sampler, expected):
    config = {"cell": {"config": {"sampler": sampler}}}
    assert cutoff(config) == pytest.approx(expected, nan_ok=True)


def test_many_cutoffs_are_explained_where_they_are_drawn(tmp_path):
    mixes = [record(f"Mix {c}", 10, 3.0, name="mix", cutoff=c) for c in range(0, 800, 100)]
    text = write_table(tmp_path, "A title", Table([*mixes, record("Heun", 10, 2.0)]), ["fid"], None)
    caption = text.split("](table.png)")[1]
    assert "FID against Mix's cutoff" in caption and "Lines across: samplers without" in caption
    assert "Shaded" not in caption and "network calls a sample" not in caption


def test_cutoff_figure(tmp_path):
    mixes = {c: {"name": "mix", "cutoff": c} for c in (291, 0, 1000)}
    records = [record(f"cutoff {c}", 25, 3 + c / 1000, **mix) for c, mix in mixes.items()]
    assert [cutoff(r) for r in Table(records).by_cutoff().records] == [0, 291, 1000]
    paper = Paper({"optimal_cutoffs": [100, 400], "source": "the paper", "dataset": "ImageNet"})
    text = write_cutoffs(tmp_path, "Cutoffs", Table(records), ["fid", "is"], paper)
    assert (tmp_path / "figure.md").read_text() == text
    assert text.index("| 0 | **3.00 ± 0.10** |") < text.index("| 291 |") < text.index("| 1000 |")
    assert "[100, 400]" in text and "another data set" in text
    assert "![FID, IS against Mix's cutoff](figure.png)" in text and "N = 100." in text
    assert imread(tmp_path / "figure.png").shape[1] > 400
    assert Table.load(tmp_path / "records.json").rows == ["cutoff 291", "cutoff 0", "cutoff 1000"]


def test_the_papers_own_model_has_its_numbers_beside_ours_with_the_difference(tmp_path):
    paper = Paper({**PAPER, "backbone": "digits"})
    text = write_table(tmp_path, "A table", TABLE, ["fid", "is"], paper)
    assert "| DDPM | **2.00 ± 0.10** | **3.00 ± 0.10** (16.75, -13.75) |" in text
    assert "| DDPM | **8.80 ± 0.20** | **8.70 ± 0.20** (69.44, -60.74) |" in text
    assert "another data set" not in text and "In parentheses: the paper's number" in text
    assert "(16.75, -13.75)" in (tmp_path / "table.tex").read_text()
    rows = csv_of(tmp_path / "table.csv")
    assert float(rows["DDPM", "25", "fid"]["difference"]) == pytest.approx(-13.75)
    assert rows["DDPM", "50", "fid"]["difference"] == ""
    assert "16.75," not in write_table(tmp_path, "A table", TABLE, ["fid", "is"], Paper(PAPER))
    assert {row["difference"] for row in csv_of(tmp_path / "table.csv").values()} == {""}


def test_the_papers_digits_are_those_that_it_prints(tmp_path):
    path = tmp_path / "paper.yaml"
    cells = "cells: [{steps: 25, fid: 12.10, is: 70}]"
    for backbone in ("digits", "adm_imagenet"):  # beside ours, and below
        path.write_text(
            f"title: T\nsource: S\ndataset: D\nbackbone: {backbone}\nrows: [{{name: DDPM, {cells}}}]\n"
        )
        text = write_table(tmp_path, "A table", TABLE, ["fid", "is"], Paper.load(path))
        assert ("(12.10, -9.10)" if backbone == "digits" else "| DDPM | 12.10 |") in text
        assert ("(70, -61.30)" if backbone == "digits" else "| DDPM | 70 |") in text
    assert "(12.10," not in (tmp_path / "table.tex").read_text()


def test_a_table_without_real_images_has_no_floor(tmp_path):
    table = Table([{**r, "floor": None} for r in RECORDS])
    write_table(tmp_path, "A table", table, ["fid"], Paper(PAPER))
    text = (tmp_path / "table.md").read_text() + (tmp_path / "table.tex").read_text()
    assert "*Real*" not in text and "\nReal" not in text


def test_pictures_are_labelled_rows(tmp_path):
    config = {**CONFIG, "sampler": {"name": "mix", "cutoff": 291}}
    images = np.zeros((4, 8, 8, 3), np.uint8)
    rows = [Pictures("Mix", s, images, list("0123"), config) for s in (5, 50)]
    text = render("pictures", tmp_path, "Samples", rows, [], None)
    assert (tmp_path / "figure.md").read_text() == text
    assert text.index("| 1 | Mix (cutoff 291) | 50 |") < text.index("| 2 | Mix")
    assert "The first 4 samples of the seed" in text
    assert (
        "Picture i of every row is sample i of seed 0, from the same x_T, label and noise" in text
    )
    height, width, _ = imread(tmp_path / "figure.png").shape
    assert width > height


@pytest.mark.parametrize(("side", "shown"), [(28, 28), (200, 128)])
def test_sheets_hold_the_pictures_of_every_sampler(tmp_path, side, shown):
    grey = np.random.default_rng(0).integers(0, 256, (3, side, side, 1), np.uint8)
    both = (("Mix", grey), ("DDIM", grey + np.uint8(1)))
    rows = [Pictures(row, s, x, list("abc"), CONFIG) for s in (5, 10) for row, x in both]
    write_sheets(tmp_path, rows)
    index = json.loads((tmp_path / "pictures.json").read_text())
    assert (index["width"], index["height"], index["titles"]) == (shown, shown, ["a", "b", "c"])
    assert list(index["sheets"]) == ["5", "10"] and index["sheets"]["5"]["rows"] == ["Mix", "DDIM"]
    sheet = np.asarray(Image.open(tmp_path / index["sheets"]["5"]["file"]))
    left, top = index["left"], index["top"]
    assert sheet.shape == (top + 2 * shown, left + 3 * shown, 3)
    names, heads = sheet[top:, :left], sheet[:top]
    assert (names[:shown] < 128).any() and (names[shown:] < 128).any() and (heads < 128).any()
    if side == shown:  # kept without loss
        last = sheet[top + shown :, left : left + shown, 0]
        assert np.array_equal(last, grey[0, ..., 0] + np.uint8(1))


@pytest.mark.parametrize("side", [8, 28])
def test_rendering_writes_words_on_sheets_that_have_none(tmp_path, side):
    pixels = np.random.default_rng(0).integers(0, 256, (2 * side, 3 * side, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pictures-5.webp", lossless=True)
    sheet = {"file": "pictures-5.webp", "rows": ["Mix", "<b>"]}
    index = {"count": 3, "width": side, "height": side, "titles": ["a", "b", "c"]}
    (tmp_path / "pictures.json").write_text(json.dumps({**index, "sheets": {"5": sheet}}))
    render("table", tmp_path, "A table", TABLE, ["fid"], None)
    first = (tmp_path / "pictures-5.webp").read_bytes()
    read = read_sheets(tmp_path)
    assert read["left"] > 0 < read["top"] and read["sheets"]["5"]["rows"] == ["Mix", "<b>"]
    labelled = np.asarray(Image.open(tmp_path / "pictures-5.webp"))
    assert np.array_equal(labelled[read["top"] :, read["left"] :], pixels)
    render("table", tmp_path, "A table", TABLE, ["fid"], None)
    assert (tmp_path / "pictures-5.webp").read_bytes() == first


def test_guidance_and_precision_are_told():
    assert "guidance" not in sampling_sentence(CONFIG)
    guided = {**CONFIG, "guidance": {"name": "classifier", "scale": 1.5, "sha256": "0"}}
    guided["model"] = {**CONFIG["model"], "precision": "fp16"}
    assert "precision fp16, classifier guidance with scale 1.5;" in sampling_sentence(guided)


def of_stable_diffusion(id: str, **more) -> Table:
    """A row of Table 3 as this repository names it, of a pipeline of that id."""
    model = {**CONFIG["model"], "name": "sd21", "id": id, "guidance_scale": 7.5}
    prompts = {"count": 30000, "sha256": "ab" * 32}
    config = {**CONFIG, "model": model, "prompts": prompts, "evaluations_per_call": 2, **more}
    cell = {"nfe": 25, "config": config}
    return Table([{**record("DDIM", s, f, 0.1), "cell": cell} for s, f in ((50, 17.0), (10, 25.0))])


def test_table3_has_the_papers_numbers_beside_only_for_the_papers_pipeline(tmp_path):
    paper = Paper.load(ROOT / "results/paper/table3.yaml")
    ours = of_stable_diffusion("stable-diffusion-2-1-base")
    text = render("table", tmp_path, "Table 3", ours, ["is", "fid"], "results/paper/table3.yaml")
    assert "(17.48, -0.48)" in text and "(25.64, -0.64)" in text and "(39.11, " in text
    assert "classifier-free guidance 7.5 (two network evaluations a call)" in text
    assert "30000 prompts (abababababab) a sample each" in text
    mine = of_stable_diffusion("my-pipeline", label="balanced")
    text = write_table(tmp_path, "Table 3", mine, ["is", "fid"], paper)
    assert "(17.48" not in text and "| SD_2.1 | 17.48 |" in text
    assert "another model than ours" in text and "30000 prompts (abababababab) in turn" in text
