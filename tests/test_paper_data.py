"""The paper's numbers as data against a second, independent transcription of its tables."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from report.paper import Paper
from sampling import SAMPLERS

FOLDER = Path(__file__).parents[1] / "results" / "paper"
DATA = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
TABLES = ["table1", "table2", "table3", "table4"]

# The rows as the paper prints them, the column heads above: step counts, then scores per count.
PRINTED = {
    "table1": """
        1000 500 100 50 25 | is fid
        DDPM ImageNet 91.69 9.41 91.01 9.63 88.51 10.02 83.42 11.42 69.44 16.75
        DDIM 82.34 10.88 80.25 11.21 78.32 12.04 77.91 12.10 73.64 14.26
        Skipped-Step 92.96 9.92 88.26 10.59 82.11 14.55 72.27 18.43 65.65 20.83
        Mix 92.72 9.29 92.59 9.61 91.88 10.35 85.46 11.78 77.02 14.15
    """,
    "table2": """
        1000 500 100 50 25 | fid precision recall
        DDPM LSUN 2.44 0.66 0.54 3.63 0.70 0.72 7.02 0.68 0.71 7.82 0.66 0.70 11.75 0.59 0.66
        DDIM 2.58 0.65 0.52 4.21 0.67 0.72 7.14 0.65 0.72 9.10 0.65 0.71 11.26 0.62 0.69
        Skipped-Step 2.42 0.68 0.57 3.69 0.68 0.69 6.55 0.65 0.67 8.93 0.59 0.63 12.83 0.52 0.61
        Mix 2.38 0.67 0.53 3.61 0.68 0.71 6.35 0.68 0.70 7.88 0.66 0.69 10.15 0.62 0.67
    """,
    "table3": """
        50 30 20 10 | is fid
        SD_2.1 39.11 17.48 38.15 19.23 37.31 20.23 30.58 25.64
        Mix 39.14 16.97 38.39 18.16 38.01 19.13 31.76 24.29
    """,
    "table4": """
        null | total quality semantic
        OpenSora_1.1 74.26% 77.30% 62.12%
        Mix 74.66% 77.51% 63.27%
    """,
}


def printed_cells(table: str) -> dict[str, list[dict[str, str]]]:
    """The cells of each row as printed, numbers as text."""
    head, *lines = PRINTED[table].strip().splitlines()
    steps, metrics = (part.split() for part in head.split("|"))
    rows = {}
    for line in lines:
        name, *rest = line.split()
        numbers = [word.removesuffix("%") for word in rest if word not in ("ImageNet", "LSUN")]
        groups = zip(*[iter(numbers)] * len(metrics), strict=True)
        rows[name] = [
            {"steps": s, **dict(zip(metrics, group, strict=True))}
            for s, group in zip(steps, groups, strict=True)
        ]
    return rows


def column(table: str, steps: int | None, metric: str) -> dict[str, float]:
    """One column of a table, by row."""
    rows = DATA[table]["rows"]
    return {r["name"]: c[metric] for r in rows for c in r["cells"] if c["steps"] == steps}


def steps_where(table: str, metric: str, best: str) -> list[int]:
    """The step counts at which the row of that name alone has the best score."""
    pick = {m["key"]: m["better"] for m in DATA[table]["metrics"]}[metric]
    choose = min if pick == "lower" else max
    counts = []
    for cell in DATA[table]["rows"][0]["cells"]:
        values = column(table, cell["steps"], metric)
        value = choose(values.values())
        if [name for name, v in values.items() if v == value] == [best]:
            counts.append(cell["steps"])
    return counts


def test_the_files():
    assert sorted(DATA) == ["figure4", *TABLES]


@pytest.mark.parametrize("name", ["figure4", *TABLES])
def test_every_file_says_what_it_is(name):
    data = DATA[name]
    keys = ["title", "source", "dataset", "model", "notes", "metrics"]
    assert list(data)[:6] == keys
    assert list(data)[-1] == "rows"
    kind, number = name[:-1].capitalize(), name[-1]
    assert data["title"].startswith(f"{kind} {number}: ")
    assert f"{kind} {number}" in data["source"]
    assert all(isinstance(note, str) and note.endswith(".") for note in data["notes"])
    stated = " ".join(data["notes"])
    assert all(f in stated for f in ("Not stated", "number of", " N", "spacing", "clipped"))
    assert [set(m) for m in data["metrics"]] == [{"key", "name", "better"}] * len(data["metrics"])
    for metric in data["metrics"]:
        assert metric["better"] == ("lower" if metric["key"] == "fid" else "higher")


@pytest.mark.parametrize("table", TABLES)
def test_every_number_as_printed(table):
    # BaseLoader keeps numbers as text: the printed digits count, trailing zeros included.
    text, printed = (FOLDER / f"{table}.yaml").read_text(), printed_cells(table)
    rows = yaml.load(text, Loader=yaml.BaseLoader)["rows"]
    assert {row["name"]: row["cells"] for row in rows} == printed
    assert len(rows) == len(printed)
    assert all(set(row) - {"ours"} == {"sampler", "name", "cells"} for row in rows)
    scores = next(iter(printed.values()))[0].keys() - {"steps"}
    assert {metric["key"] for metric in DATA[table]["metrics"]} == scores


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_fewer_steps_score_worse(table):
    # Two exchanged cells would show.
    signs = {"fid": 1, "is": -1}
    for row in DATA[table]["rows"]:
        for more, fewer in pairwise(row["cells"]):
            assert more["steps"] > fewer["steps"]
            for metric in signs.keys() & more.keys():
                assert signs[metric] * (fewer[metric] - more[metric]) > 0


@pytest.mark.parametrize("table", TABLES)
def test_samplers_are_ours_or_a_named_baseline(table):
    baselines = {"sd21_ddim", "opensora_ddpm"}
    assert {row["sampler"] for row in DATA[table]["rows"]} <= baselines | set(SAMPLERS)


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_the_report_finds_every_number(table):
    for name, cells in printed_cells(table).items():
        for cell in cells:
            steps = int(cell.pop("steps"))
            for metric, number in cell.items():
                assert Paper(DATA[table]).value(name, steps, metric) == float(number)


def test_figure4_is_what_the_text_states():
    figure = DATA["figure4"]
    assert figure["steps"] == [25, 50, 100]
    assert figure["optimal_cutoffs"] == [100, 400]
    assert figure["preferred_cutoffs"] == [{"steps": 25, "cutoff": 291}]
    assert figure["rows"] == []
    assert "not printed" in figure["notes"][0]


# --- what the notes say of the numbers -------------------------------------------------------


def test_table1_against_its_caption_and_text():
    higher = {
        steps
        for steps in (1000, 500, 100, 50, 25)
        if column("table1", steps, "is")["Skipped-Step"] > column("table1", steps, "is")["DDIM"]
    }
    assert higher == {1000, 500, 100}
    assert steps_where("table1", "is", "Skipped-Step") == [1000]
    assert steps_where("table1", "is", "Mix") == [500, 100, 50, 25]
    assert steps_where("table1", "fid", "DDPM") == [100, 50]
    assert steps_where("table1", "fid", "Mix") == [1000, 500, 25]


def test_table2_recall_jumps_from_1000_to_500_steps():
    before, after = column("table2", 1000, "recall"), column("table2", 500, "recall")
    assert (min(before.values()), max(before.values())) == (0.52, 0.57)
    assert (min(after.values()), max(after.values())) == (0.69, 0.72)
    assert min(after[name] - before[name] for name in before) == pytest.approx(0.12)


def test_table2_best():
    assert steps_where("table2", "fid", "Mix") == [1000, 500, 100, 25]
    assert steps_where("table2", "fid", "DDPM") == [50]
    for metric in ("precision", "recall"):
        assert all(len(steps_where("table2", metric, name)) < 5 for name in printed_cells("table2"))


def test_table4_totals_are_weighted_four_to_one():
    for row in DATA["table4"]["rows"]:
        (cell,) = row["cells"]
        assert round((4 * cell["quality"] + cell["semantic"]) / 5, 2) == cell["total"]


@pytest.mark.parametrize("table", TABLES)
def test_numbers_keep_the_digits_that_they_are_printed_with(table):
    paper = Paper.load(FOLDER / f"{table}.yaml")
    for row, cells in printed_cells(table).items():
        for cell in cells:
            steps = None if cell["steps"] == "null" else int(cell["steps"])
            for metric in cell.keys() - {"steps"}:
                assert paper.printed(row, steps, metric) == cell[metric]
                assert paper.value(row, steps, metric) == float(cell[metric])
    assert paper.printed("Mix", 10**6, "fid") is paper.value("Mix", 10**6, "fid") is None
