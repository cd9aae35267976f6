"""The study: its text follows from the committed records, and says what they say."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import ROOT

from eval.scoring import METRICS
from eval.table import Table
from report import study
from report.render import write_table
from report.study import Study
from report.study_figures import draw
from report.study_theory import SCHEDULE, Theory
from sampling import ddim, mix, skipped, timesteps
from sampling.borrowed import sampler_named
from sampling.gaussian import gaussian_frechet

# diffusers hands torch's tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

RESULTS = ROOT / "results"
TABLES = sorted(p.parent.name for p in RESULTS.glob("digits/study*/table.md"))
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


@pytest.fixture(scope="module")
def records() -> Study:
    return Study.load(RESULTS)


@pytest.fixture(scope="module")
def theory() -> Theory:
    return Theory.of_digits()


def test_the_text_is_what_the_records_say(records, theory):
    written, ours = (ROOT / "docs" / "study.md").read_text(), study.text(records, theory)
    assert NUMBER.sub("#", written) == NUMBER.sub("#", ours)
    # Another machine's linear algebra may round a last digit the other way.
    a, b = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (written, ours))
    np.testing.assert_allclose(a, b, atol=0.0101)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_their_records_say(tmp_path, name):
    """That of Heun too, whose calls are not the column's number of steps."""
    folder = RESULTS / "digits" / name
    table = Table.load(folder / "records.json")
    config = yaml.safe_load((ROOT / f"configs/experiment/{name.split('-')[0]}.yaml").read_text())
    wanted = config["experiment"].get("steps", [100, 50, 25, 20, 15, 10, 8, 5])
    assert set(table.columns) == set(wanted)
    text = (folder / "table.md").read_text()
    titles = re.findall(r"^## (.+) \(", text, re.M)
    metrics = [name for title in titles for name, m in METRICS.items() if m.title == title]
    title = text.splitlines()[0].removeprefix("# ")
    assert write_table(tmp_path, title, table, metrics, None) == text
    assert Table.load(tmp_path / "records.json").records == table.records


def test_it_shows_every_figure_that_it_names_and_draws_them(records, theory, tmp_path):
    named = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "docs" / "study.md").read_text())
    assert len(named) == len(set(named)) == 5
    assert all((ROOT / "docs" / name).is_file() for name in named)
    draw(tmp_path, records, theory)
    assert {p.name for p in tmp_path.iterdir()} == {name.split("/")[-1] for name in named}


# --- what was promised --------------------------------------------------------------------------


def apart(better, worse) -> bool:
    """Whether the intervals of two FIDs do not even touch."""
    return better.value + better.half < worse.value - worse.half


@pytest.mark.parametrize("steps", [10, 25])
def test_the_best_sampler_and_ddim_differ_by_more_than_their_intervals(records, steps):
    for table in (records.even, records.log_snr):
        best = table.best(steps, "fid")
        assert apart(table.score(best, steps, "fid"), table.score("DDIM", steps, "fid"))


@pytest.mark.parametrize(("name", "folder"), [("even", "tune"), ("log_snr", "tune_log_snr")])
@pytest.mark.parametrize("steps", [10, 25])
def test_tuned_windows_beat_mix_on_seeds_that_chose_nothing(records, steps, name, folder):
    table, window = getattr(records, name), study.WINDOWS[name][steps]
    assert apart(table.score(window, steps, "fid"), table.score("Mix", steps, "fid"))
    sampler = table.record(window, steps)["cell"]["config"]["sampler"]
    said = (RESULTS / "digits" / folder / "tuning.md").read_text()
    said = said[said.index(f"## {steps} steps") :]
    bounds = " ".join(f"sampler.{key}={sampler[key]}" for key in ("lo", "hi") if key in sampler)
    assert f" {bounds}\n" in said
    tuned = (RESULTS / "digits" / folder / "records.json").read_text()
    assert {r["cell"]["config"]["seed"] for r in table.records} == {2}
    assert not re.search(r'"seed": 2\b', tuned) and re.search(r'"seed": 0\b', tuned)


def test_without_a_network_ddim_reaches_the_floor(records):
    assert {25, 50, 100} <= set(study.at_floor(records.exact, "DDIM"))


def test_the_closed_form_is_that_of_the_records_plan(records, theory):
    grid = timesteps(SCHEDULE, 25)
    wanted = gaussian_frechet(mix(SCHEDULE, grid, cutoff=291), theory.eigenvalues, None, 0.0)
    assert theory.of_record(records.pixels.record("Mix", 25)) == pytest.approx(wanted, rel=1e-12)
    for row, name, nodes in (("UniPC", "unipc", 25), ("Heun", "heun", 13)):
        options = records.pixels.record(row, 25)["cell"]["config"]["sampler"]
        options = {key: value for key, value in options.items() if key != "name"}
        plan = sampler_named(name, SCHEDULE, timesteps(SCHEDULE, nodes), **options)
        wanted = gaussian_frechet(plan, theory.eigenvalues)
        assert theory.of_record(records.pixels.record(row, 25)) == pytest.approx(wanted, rel=1e-9)
    # How much noise a learned variance adds the network says.
    assert theory.of_record(records.pixels.record("DDPM", 25)) is None
    by = theory.by_cutoff(25, 0.01)
    assert by[0] == pytest.approx(theory.error(skipped(SCHEDULE, grid), 0.01), rel=1e-12)
    assert by[SCHEDULE.T] == pytest.approx(theory.error(ddim(SCHEDULE, grid), 0.01))
    assert len(by) == 26


# --- the words ----------------------------------------------------------------------------------


def test_words_follow_the_intervals():
    def record(row, steps, value, se):
        scores = {"fid": {"value": value, "se": se}}
        return {"row": row, "steps": steps, "n": 100, "scores": scores, "floor": None}

    ours = [record("a", 5, 1.0, 0.1), record("a", 8, 9.0, 0.1), record("a", 10, 2.0, 1.0)]
    theirs = [record("b", 5, 3.0, 0.1), record("b", 8, 3.0, 0.1), record("b", 10, 3.0, 1.0)]
    table = Table([*ours, *theirs])
    words = study.differences(table, "a", "b")
    assert words == study.differences(table, lambda steps: "a", "b")
    assert words["all"] == "better at 5; worse at 8; not told apart at 10"
    assert (words["better"], words["worse"], words["tied"]) == ("5", "8", "10")
    assert words["if_both"] == ""
    assert words["if_better"] == words["unless_better"] == "(Not borne out by these records:) "


def test_a_claim_that_other_records_do_not_bear_out_says_so(records, theory):
    assert "Not borne out" not in (ROOT / "docs" / "study.md").read_text()
    # Were DDIM's scores Skipped-Step's and the other way round, noise would not pay.
    renamed = {"DDIM": "Skipped-Step", "Skipped-Step": "DDIM"}
    dial = {
        name: Table([{**r, "row": renamed.get(r["row"], r["row"])} for r in table.records])
        for name, table in records.dial.items()
    }
    text = study.text(replace(records, dial=dial), theory)
    assert "(Not borne out by these records:) Stochastic steps pay" in text
    assert "(Not borne out by these records:) For each of the three networks" in text


def test_missing_records_name_the_remedy(tmp_path, records):
    with pytest.raises(FileNotFoundError, match=r"study/records.json is missing: make study"):
        Study.load(tmp_path)
    for name in (*TABLES, "pairs"):
        if name != "study_dial-exact":
            shutil.copytree(RESULTS / "digits" / name, tmp_path / "digits" / name)
    with pytest.raises(FileNotFoundError, match=r"study_dial-exact/records.json is missing"):
        Study.load(tmp_path)
    with pytest.raises(ValueError, match="lack fid of DDIM at 7 steps"):
        study.fid(records.even, "DDIM", 7)


def test_an_optimum_in_the_middle_is_one_that_beats_both_ends(records, theory):
    """Scores made up for the cutoffs of CIFAR-10: a clear valley, and a slope."""

    def natural(fid_of) -> str:
        rows = [
            {**r, "scores": {**r["scores"], "fid": {"value": fid_of(float(r["row"])), "se": 0.1}}}
            for r in records.natural.records
        ]
        text = study.text(replace(records, natural=Table(rows)), theory)
        return text.partition("Is there an optimum in the middle?")[2]

    steps = ", ".join(map(str, sorted(records.natural.columns)))
    valley, slope = natural(lambda c: 5 + abs(c - 375) / 100), natural(lambda c: 5 + c / 100)
    assert f"beyond the intervals, at: {steps} steps (" in valley
    assert (
        "lowest FID at cutoff 375 (5.00 ± 0.20), better than Skipped-Step; better than DDIM"
        in valley
    )
    assert "at: none of these steps (" in slope
    assert "lowest FID at cutoff 0 (5.00 ± 0.20), not told apart from Skipped-Step" in slope


def test_the_docs_have_the_widths_that_are_measured(records):
    page = (ROOT / "docs/evaluation.md").read_text("utf-8").replace("\n", " ")
    assert records.pairs.paired_columns("fid") == [10, 25, 50] and records.pairs.n(25) == 1000
    shares = dict(re.findall(r"\| (Mix and [\w-]+) \| (\S+) \|", study._widths(records.pairs)))
    assert f"{shares['Mix and Skipped-Step']} times as wide for Mix and Skipped-Step" in page
    assert f"{shares['Mix and DDIM']} times for Mix and DDIM" in page
