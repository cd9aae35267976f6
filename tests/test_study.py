"""The study: its text follows from the committed records, and says what they say."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import ROOT

from eval.metrics import Score
from eval.table import Cell, gain, load_cells
from report import study
from report.render import write_table
from report.study import SCHEDULE, Study, Theory, against, best, floor, rows_of, tied, value
from sampling.gaussian import gaussian_frechet

RESULTS = ROOT / "results"
TABLES = sorted(p.parent.name for p in RESULTS.glob("digits/study*/table.md"))
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


@pytest.fixture(scope="module")
def records() -> Study:
    return Study.load(RESULTS)


@pytest.fixture(scope="module")
def theory() -> Theory:
    return Theory.of_digits()


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in NUMBER.findall(text)]


def test_the_text_is_what_the_records_say(records, theory):
    written, made = (ROOT / "docs" / "study.md").read_text(), study.text(records, theory)
    assert NUMBER.sub("#", written) == NUMBER.sub("#", made)
    # Another machine's linear algebra may round a last digit the other way.
    np.testing.assert_allclose(numbers(written), numbers(made), atol=0.0101)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_their_records_say(tmp_path, name):
    """That of Heun too, whose calls are not the column's number of steps."""
    folder = RESULTS / "digits" / name
    cells = load_cells(folder / "records.json")
    config = yaml.safe_load((ROOT / f"configs/experiment/{name.split('-')[0]}.yaml").read_text())
    wanted = config["experiment"].get("steps", [100, 50, 25, 20, 15, 10, 8, 5])
    assert {c.steps for c in cells} == set(wanted)
    text = (folder / "table.md").read_text()
    metrics = re.findall(r"^## (.+) \(", text, re.M)
    keys = [k for title in metrics for k, v in study.METRIC_NAMES.items() if v == title]
    write_table(tmp_path, text.splitlines()[0].removeprefix("# "), cells, keys, None)
    assert (tmp_path / "table.md").read_text() == text


def test_it_shows_every_figure_that_it_names_and_draws_them(records, theory, tmp_path):
    named = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "docs" / "study.md").read_text())
    assert len(named) == 3
    assert all((ROOT / "docs" / name).is_file() for name in named)
    study.draw_quality(tmp_path / "quality.png", records)
    study.draw_why(tmp_path / "why.png", records, theory)
    study.draw_dial(tmp_path / "dial.png", records)
    assert {p.name for p in tmp_path.iterdir()} == {name.split("/")[-1] for name in named}


# --- what was promised --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 25])
def test_the_best_sampler_and_ddim_differ_by_more_than_their_intervals(records, steps):
    for cells in (records.even, records.log_snr):
        ours = value(cells, best(cells, rows_of(cells), steps), steps)
        ddim = value(cells, "DDIM", steps)
        assert ours.value + 1.96 * ours.se < ddim.value - 1.96 * ddim.se


@pytest.mark.parametrize(("name", "folder"), [("even", "tune"), ("log_snr", "tune_log_snr")])
@pytest.mark.parametrize("steps", [10, 25])
def test_tuned_windows_beat_the_papers_mix_on_seeds_that_chose_nothing(
    records, steps, name, folder
):
    cells, window = getattr(records, name), study.WINDOWS[name][steps]
    ours, mix = value(cells, window, steps), value(cells, "Mix", steps)
    assert ours.value + 1.96 * ours.se < mix.value - 1.96 * mix.se
    made = next(c for c in cells if c.row == window).record["cell"]["config"]["sampler"]
    said = (RESULTS / "digits" / folder / "tuning.md").read_text()
    said = said[said.index(f"## {steps} steps") :]
    bounds = " ".join(f"sampler.{key}={made[key]}" for key in ("lo", "hi") if key in made)
    assert f" {bounds}\n" in said
    seeds = {c.record["cell"]["config"]["seed"] for c in cells}
    tuned = (RESULTS / "digits" / folder / "records.json").read_text()
    assert seeds == {2}
    assert not re.search(r'"seed": 2\b', tuned) and re.search(r'"seed": 0\b', tuned)


def test_without_a_network_ddim_reaches_the_floor(records):
    for steps in (25, 50, 100):
        ddim = value(records.exact, "DDIM", steps)
        assert gain("fid", ddim, floor(records.exact, steps)).words == "not told apart from"


def test_the_closed_form_is_that_of_the_cells_plan(records, theory):
    cells = {(c.row, c.steps): c for c in records.pixels}
    grid = study.timesteps(SCHEDULE, 25)
    plan = study.mix(SCHEDULE, grid, cutoff=291)
    wanted = gaussian_frechet(plan, theory.eigenvalues, None, 0.0)
    assert theory.of_cell(cells["Mix", 25]) == pytest.approx(wanted, rel=1e-12)
    assert theory.of_cell(cells["UniPC", 25]) is None
    by = theory.by_cutoff(25, 0.01)
    assert by[0] == pytest.approx(theory.error(study.skipped(SCHEDULE, grid), 0.01), rel=1e-12)
    assert by[SCHEDULE.T] == pytest.approx(theory.error(study.ddim(SCHEDULE, grid), 0.01))
    assert len(by) == 26


# --- the words ----------------------------------------------------------------------------------


def cells_of(**fids: list[tuple[int, float, float]]) -> list[Cell]:
    """Cells of FIDs, as row=[(steps, value, standard error), ...]."""

    def record(found: Score) -> dict:
        return {"n": 100, "scores": {"fid": found._asdict()}, "floor": None}

    return [Cell(row, s, record(Score(v, e))) for row, all_ in fids.items() for s, v, e in all_]


def test_words_follow_the_intervals():
    cells = cells_of(a=[(5, 1.0, 0.1), (8, 9.0, 0.1), (10, 2.0, 1.0)],
                     b=[(5, 3.0, 0.1), (8, 3.0, 0.1), (10, 3.0, 1.0)])  # fmt: skip
    found = against(cells, "a", "b")
    assert found == {"better than": [5], "worse than": [8], "not told apart from": [10]}
    line = study.tally(cells, "a", "b")
    assert line == "- **a** against **b**: better at 5; worse at 8; not told apart at 10 steps."
    assert [tied(cells, "a", s, ["a", "b"]) for s in (5, 10)] == [["a"], ["a", "b"]]
    assert best(cells, ["a", "b"], 8) == "b"


def test_a_claim_that_other_records_do_not_bear_out_says_so(records, theory):
    assert study.claim(True, "So it is.") == "- So it is."
    assert study.claim(False, "So it is.") == "- (Not borne out by these records:) So it is."
    assert "Not borne out" not in (ROOT / "docs" / "study.md").read_text()
    # Were DDIM's scores Mix's and the other way round, Mix would not beat it.
    renamed = {"DDIM": "Mix", "Mix": "DDIM"}
    swapped = [replace(c, row=renamed.get(c.row, c.row)) for c in records.even]
    text = study.text(replace(records, even=swapped), theory)
    assert "(Not borne out by these records:) Mix beats DDIM" in text


def test_missing_records_name_the_remedy(tmp_path, records):
    with pytest.raises(FileNotFoundError, match=r"study/records.json is missing: make study"):
        Study.load(tmp_path)
    for name in TABLES:
        if name != "study_dial-exact":
            shutil.copytree(RESULTS / "digits" / name, tmp_path / "digits" / name)
    with pytest.raises(FileNotFoundError, match=r"study_dial-exact/records.json is missing"):
        Study.load(tmp_path)
    with pytest.raises(ValueError, match="lacks fid of DDIM at 7 steps: run make study"):
        value(records.even, "DDIM", 7)
