"""The report: built from the committed records, and used in a real browser."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

from eval.records import score
from eval.table import Table, cutoff, gain
from eval.words import format_score
from report import page
from report.conclusion import conclude
from report.page import build_page
from report.study_theory import ERRORS, Theory
from report.styles import style_of

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """What `make report` writes from what is committed."""
    start = time.process_time()
    path = tmp_path_factory.mktemp("report") / "report.html"
    page.write_page(RESULTS, path)
    assert time.process_time() - start < 60
    return path


def hrefs(text: str) -> list[str]:
    """Where the links of the page's HTML go that leave it."""
    return re.findall(r'<a href="(?!#)([^"]*)"', text)


# --- what is in it ------------------------------------------------------------------------------


def test_it_is_one_small_file_that_names_no_other(report):
    text = report.read_text()
    assert len(text.encode()) < 10_000_000
    assert not re.search(r"""(src|action)=["'](?!data:)""", text)
    assert set(re.findall(r"""<(\w+)[^<>]* href=["'](?!#|data:)""", text)) == {"a"}
    assert not re.search(r"@import|url\(\s*[\"']?(?!\$\{)(?!data:)", text)
    assert "fetch(" not in text and "XMLHttpRequest" not in text
    # The only other addresses are names, as that of SVG is.
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_papers_numbers_stand_beside_ours_and_nothing_stands_in(report):
    text = report.read_text()
    paper = text[text.index('id="paper"') : text.index('id="ours"')]
    for number in ("91.69", "14.15", "39.11", "16.97", "74.66"):  # of tables 1, 3 and 4
        assert f">{number}</td>" in paper
    # No weights of the paper's models were at hand: ours are absent, digits are not among them, and
    # no line tells so.
    assert ", ours<" not in paper and "not run" not in text
    assert "digits" not in paper.replace("(digits)", "")
    for number in ("12.10", "9.10", "0.70", "77.30"):
        assert f">{number}</td>" in paper


def test_every_link_goes_to_a_file_that_is_there(report):
    text = report.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    inside = [
        a["href"]
        for key in ("curves", "ablations", "closed")
        for x in data[key]
        for a in x["links"]
    ]
    every = {*hrefs(text), *inside}
    assert len(inside) > 20 and len(every) > 80
    for href in every:
        assert not re.match(r"[a-z]+:|/", href)
        assert (report.parent / unquote(href)).exists(), href
    for name in ("docs/study.md", "results/digits/study/", "figure2/figure.png", "README.md"):
        assert any(name.rstrip("/") in href for href in every), name
    beside = hrefs(build_page(RESULTS))
    assert "../docs/study.md" in beside and "digits/study/table.md" in beside


def test_everything_under_results_is_in_it(report):
    text = report.read_text()
    for folder in {path.parent for path in RESULTS.glob("*/*/*.*")}:
        assert f">{folder.parent.name}/{folder.name}/</a>" in text
    whole = text[text.index('id="ours"') :]
    for path in RESULTS.glob("*/*/records.json"):
        name = f"{path.parent.parent.name}/{path.parent.name}"
        tuned = path.parent.name.startswith(("tune", "advice"))
        assert (f"<h3>{name}</h3>" in text) if tuned else (f"<summary>{name}</summary>" in whole)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    (closed,) = data["closed"]
    theory, pixels = Theory.of_digits(), Table.load(RESULTS / "digits/study_pixels/records.json")
    for sampler in closed["samplers"]:
        assert [d for _, d in sampler["closed"]] == theory.of_row(pixels, sampler["name"])
    assert len(closed["cutoffs"]) == len(ERRORS)
    assert text.count('src="data:image/png;base64,') == 2  # figures 2 and 3


def test_tuning_is_what_its_records_say(report, tmp_path):
    text = report.read_text()
    shown = html.unescape(text[text.index('id="tuning"') : text.index('id="paper"')])
    for name in ("tune", "tune_log_snr"):
        written = (RESULTS / "digits" / name / "tuning.md").read_text()
        verdicts = re.findall(r"^- (Tuned is .*\.)$", written, re.M)
        assert len(verdicts) >= 6
        for verdict in verdicts:
            assert f"<li>{verdict}</li>" in shown
        for steps in (10, 25):
            assert f"<h4>{steps} steps</h4>" in shown
    records = json.loads((RESULTS / "digits" / "tune" / "records.json").read_text())
    for r in records:
        assert f">{r['row']}</th>" in shown
        assert f">{format_score('fid', score(r, 'fid'))}</td>" in shown
    # A search in rounds scores candidates at several N; another folder's name says nothing.
    for r in records[:9]:
        r["n"] = 7
    path = tmp_path / "digits" / "advise" / "records.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{**r, "steps": r["cell"]["config"]["steps"]} for r in records]))
    shutil.copytree(RESULTS / "paper", tmp_path / "paper")
    alone = build_page(tmp_path)
    assert "<h3>digits/advise</h3>" in alone and ">7</td>" in alone
    assert 'id="conclusion"' not in alone and 'href="#conclusion"' not in alone


# --- what it concludes ----------------------------------------------------------------------------


def test_the_conclusion_is_what_the_records_say(report):
    text = report.read_text()
    shown = html.unescape(text[text.index('id="conclusion"') : text.index('id="cutoff"')])
    even = Table.load(RESULTS / "digits" / "study" / "records.json")
    log_snr = Table.load(RESULTS / "digits" / "study_log_snr" / "records.json")
    for steps in even.columns:
        best = even.best(steps, "fid")
        value = even.score(best, steps, "fid")
        if steps in log_snr.columns:
            other = log_snr.best(steps, "fid")
            if log_snr.score(other, steps, "fid").value < value.value:
                best, value = f"{other} (log_snr)", log_snr.score(other, steps, "fid")
        assert f"{best} {format_score('fid', value)}</td>" in shown
    for rival in ("DDIM", "Skipped-Step"):
        for verdict, steps in even.against("Mix", rival, "fid").items():
            for s in steps:
                one = gain("fid", *(even.score(row, s, "fid") for row in ("Mix", rival)))
                assert one.words == verdict and f", {one.text(2)}</td>" in shown
    assert "exact denoiser" in shown and "unet-6500, " not in shown


def test_conclusions_do_not_mix_what_does_not_compare():
    load = {
        n: Table.load(RESULTS / "digits" / n / "records.json") for n in ("study", "study_exact")
    }
    small = Table.load(RESULTS / "digits" / "table1" / "records.json")  # bf16
    found = conclude({**load, "small": small})
    assert [c.sources for c in found] == [("study",), ("study_exact",), ("small",)]
    assert [c.table.n(25) for c in found] == [2000, 2000, 500]
    # What is there twice counts once; another number of samples never stands in a column.
    table = load["study"]
    fewer = Table([{**r, "n": 7, "steps": s} for r in table.column(25) for s in (25, 26)])
    (both,) = conclude({"study": table, "again": table, "fewer": fewer})
    assert len(both.table.records) == len(table.records) + len(fewer.column(26))
    assert both.table.n(25) == 2000 and both.table.n(26) == 7


def without(records: list[dict], rows: set[str]) -> Table:
    return Table([r for r in records if r["row"] not in rows])


def test_a_conclusion_needs_neither_mix_nor_fid():
    records = Table.load(RESULTS / "digits" / "table1" / "records.json").records
    (one,) = conclude({"a": without(records, {"Mix", "DDIM"})})
    assert one.heads[-1] == "Not told from it" and len(one.sentences()) == 1
    (one,) = conclude({"a": without(records, {"DDIM"})})
    assert one.heads[-1] == "Mix against Skipped-Step"
    only_is = [{**r, "scores": {"is": r["scores"]["is"]}} for r in records]
    (one,) = conclude({"a": Table(only_is)})
    assert one.metric == "is" and one.sentences()[0].startswith("Highest IS: ")
    assert conclude({"a": Table([{**r, "scores": {}} for r in records])}) == []


@pytest.fixture
def stored(tmp_path) -> Path:
    """The records of table 1 by the paper's model, as if it had been run: the digits' by name."""
    records = json.loads((RESULTS / "digits" / "table1_full" / "records.json").read_text())
    for record in records:
        record["cell"]["config"]["model"]["name"] = "adm_imagenet"
    shutil.copytree(RESULTS / "paper", tmp_path / "paper")
    path = tmp_path / "adm_imagenet" / "table1" / "records.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(records))
    return path


def test_ours_are_filled_in_where_they_are_of_the_papers_model(tmp_path, stored):
    text, table = build_page(tmp_path), Table.load(stored)
    row = next(
        r for r in text[text.index('id="paper"') :].split("</tr>") if ">Mix<" in r and ">25<" in r
    )
    assert ">77.02</td>" in row  # the paper's IS
    assert f">{format_score('is', table.value('Mix', 25, 'is'))}</td>" in row
    assert ">14.15</td>" in row and "not run" not in text
    # At the steps of the paper of which ours have none its numbers stand apart, without ours.
    records = [r for r in json.loads(stored.read_text()) if r["steps"] < 500]
    stored.write_text(json.dumps(records))
    text = build_page(tmp_path)
    paper = text[text.index('id="paper"') : text.index('id="ours"')]
    rest = paper[paper.index("8 lines of the paper that ours lack") :]
    assert ">91.69</td>" in rest[: rest.index("</table>")] and "not run" not in text


def test_errors(tmp_path, stored, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no records under"):
        build_page(tmp_path / "paper")
    with monkeypatch.context() as patch:
        patch.setattr(page, "LIMIT", 1000)
        with pytest.raises(ValueError, match=r"more than 0\.001: remove pictures"):
            build_page(tmp_path)
    sheets = {"25": {"file": "gone.webp", "rows": []}}
    (stored.parent / "pictures.json").write_text(json.dumps({"sheets": sheets}))
    with pytest.raises(
        ValueError, match=r"is damaged .*: remove pictures\.json and make the pictures"
    ):
        build_page(tmp_path)


def test_another_page_is_not_overwritten(tmp_path, stored):
    out = tmp_path / "report.html"
    for left in (".part-0123abcd-report.html", ".part-0123abcd-mine.html"):
        (tmp_path / left).write_text("half")
    assert page.write_page(tmp_path, out) == page.write_page(tmp_path, out) == out.stat().st_size
    assert sorted(p.name for p in tmp_path.glob(".part*")) == [".part-0123abcd-mine.html"]
    out.write_text("<!doctype html><title>mine</title>")
    with pytest.raises(ValueError, match="is no page of ours: choose another --out FILE"):
        page.write_page(tmp_path, out)
    assert "mine" in out.read_text()


def hostile(records: list[dict]) -> list[dict]:
    """The records with names that are no names, and scores that are no numbers."""
    names = dict(zip(dict.fromkeys(r["row"] for r in records), HOSTILE, strict=False))
    changed = [{**r, "row": names[r["row"]]} for r in records]
    for record in changed:
        record["cell"]["config"]["model"]["name"] = HOSTILE[0]
    scores = [r["scores"] for r in changed]
    scores[0]["fid"]["value"] = scores[1]["is"]["se"] = math.nan
    scores[2]["fid"]["value"], scores[3]["fid"]["se"] = math.inf, math.inf
    scores[4]["is"]["value"], scores[5]["fid"]["value"] = -math.inf, 0.0
    changed[6]["floor"]["fid"]["value"] = math.nan
    for record in changed:  # a whole column without a score
        if record["steps"] == 500:
            record["scores"]["fid"]["value"] = math.nan
    return changed


HOSTILE = (
    "</script><script>document.title = 1</script><!--data-->",
    """"' onload=alert(1) <img src=x onerror=alert(1)> & {{}} ${1}""",
    "\u202eRTL \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \U0001f600",
    "__proto__" + "long" * 60,
)


@pytest.fixture
def spoilt(tmp_path, stored) -> Path:
    """A page of records that came from nobody's friend, in a folder of such a name."""
    records = hostile(json.loads(stored.read_text()))
    for folder in ("javascript:alert(1)", "a\"b'c <i>#?%41 \U0001f600"):
        path = tmp_path / folder / "table1" / "records.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(records))
        shutil.copy(RESULTS / "digits" / "figure2" / "figure.png", path.parent)
    path.with_name("figure.md").write_text(f"# {HOSTILE[1]}\n\n{HOSTILE[0]}\n")
    shutil.rmtree(stored.parents[1])
    page.write_page(tmp_path, tmp_path / "report.html")
    return tmp_path / "report.html"


def test_text_cannot_break_out(spoilt):
    text = spoilt.read_text()
    assert "<script>document" not in text and text.count("</script>") == 2
    assert "<img src=x" not in text and not re.search(r'href="(?!#|data:,")[^"]*:', text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [s["name"] for s in data["curves"][0]["samplers"]] == list(HOSTILE)
    for href in hrefs(text):
        assert (spoilt.parent / unquote(html.unescape(href))).exists(), href


def test_scores_that_are_no_numbers_are_neither_shown_nor_best(spoilt):
    text = spoilt.read_text()
    data = re.search(r'id="data">(.*?)</script>', text)[1]
    assert not re.search(r"NaN|Infinity|\bnan\b|\binf\b", data)
    assert not re.search(
        r"\b(nan|inf)\b", re.sub(r"<s(cript|tyle).*?</s(cript|tyle)>", "", text, flags=re.S)
    )
    table = Table.load(next(spoilt.parent.glob("java*/table1/records.json")))
    assert table.tied(500, "fid") == set()
    for steps in sorted(set(table.columns) - {500}):
        best = table.best(steps, "fid")
        assert math.isfinite(table.score(best, steps, "fid").value)


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, report):
    """A function that opens a page, the report; whatever it says or asks for fails the test."""
    complaints: list[str] = []

    def opened(path=report, **options):
        def asked(request):
            if not request.url.startswith("data:") and request.url != path.as_uri():
                complaints.append(request.url)

        tab = browser.new_context(offline=True, **options).new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.on("request", asked)
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in browser.contexts:
        context.close()
    assert complaints == []


def pictures(tab, box: str) -> list[str]:
    """Which part of which sheet each picture shows."""
    return tab.eval_on_selector_all(
        f"#{box} [role=img]",
        "all => all.map(p => p.style.backgroundPosition + p.style.backgroundImage.slice(0, 99))",
    )


def test_the_slider_changes_images_and_numbers_at_every_step_count(opened):
    tab, table = opened(), Table.load(RESULTS / "digits" / "figure4" / "records.json")
    assert table.columns == [100, 50, 25]
    tab.select_option("#cutoff-data", "digits, even spacing (digits/figure4)")
    for count in table.columns:
        tab.check(f"#cutoff-steps input[value='{count}']")
        tab.focus("#cutoff-slider")
        tab.keyboard.press("Home")
        seen, mine = [], sorted(table.column(count), key=cutoff)
        for i, cell in enumerate(mine):
            if i:
                tab.keyboard.press("ArrowRight")
            assert tab.inner_text("#cutoff-value").split(" ")[0] == f"{cutoff(cell):g}"
            shown = tab.inner_text("#cutoff-scores")
            for metric in ("fid", "is"):
                assert format_score(metric, score(cell, metric)) in shown
            spoken = tab.get_attribute("#cutoff-slider", "aria-valuetext")
            assert f"cutoff {cutoff(cell):g}" in spoken
            image = tab.locator("#cutoff-pictures").screenshot()
            seen.append((tuple(pictures(tab, "cutoff-pictures")), image))
        positions, images = zip(*seen, strict=True)
        assert len(set(positions)) == len(mine)
        # What is seen changes, too: Skipped-Step's pictures are not DDIM's.
        assert len(set(images)) > len(mine) // 2 and images[0] != images[-1]


def test_quality_curves_follow_the_choices(opened):
    tab = opened()
    chart, lines = tab.locator("#quality-chart svg"), tab.locator("#quality-chart polyline")
    before, label = lines.count(), chart.get_attribute("aria-label")
    assert before > 3 and label.startswith("FID")
    tab.locator("#quality-legend input:checked").first.uncheck()
    assert lines.count() == before - 1
    tab.select_option("#quality-metric", "IS")
    assert chart.get_attribute("aria-label").startswith("IS")
    note = tab.locator("#quality-note").text_content()
    assert "Best, or not told from it: 5 steps: " in note and "Differences " in note
    for name in tab.locator("#quality-data option").all_inner_texts():
        tab.select_option("#quality-data", name)
        assert lines.count() > 1
    while (checked := tab.locator("#quality-legend input:checked")).count():
        checked.first.uncheck()
    assert "nothing is chosen" in chart.text_content()


def test_mix_and_ddim_stand_side_by_side(opened):
    tab = opened()
    assert tab.input_value("#side-left") == "Mix" and tab.input_value("#side-right") == "DDIM"
    left, right = (pictures(tab, f"side-{side}-pictures") for side in ("left", "right"))
    assert len(left) == len(right) == 20 and left != right
    tab.select_option("#side-right", "Mix")
    assert pictures(tab, "side-right-pictures") == left
    assert tab.inner_text("#side-right-scores") == tab.inner_text("#side-left-scores")
    for steps in tab.locator("#side-steps option").all_inner_texts():
        tab.select_option("#side-steps", steps)
        assert len(pictures(tab, "side-left-pictures")) == 20


def test_tables_sort_by_click_and_by_key(opened):
    tab = opened()
    unfold(tab)
    table = tab.locator("#paper table").first
    head = table.locator("th", has_text="FID, paper")

    def column() -> list[float]:
        return [float(t) for t in table.locator("tbody tr td:nth-child(4)").all_inner_texts()]

    before = column()
    head.locator("button").click()
    assert column() == sorted(before) != before
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert column() == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    table.locator("th button").first.press("Space")  # by sampler: texts
    names = table.locator("tbody th").all_inner_texts()
    assert names == sorted(names, key=str.casefold)
    assert head.get_attribute("aria-sort") is None


# Elements that stick out of the window, but for what scrolls in a box of its own; labels that lie on
# each other on an axis.
STICKING = """width => [...document.querySelectorAll("body *")].filter(e =>
    e.getClientRects().length && e.getBoundingClientRect().right > width + 1
    && !e.closest(".scroll")).map(e => e.outerHTML.slice(0, 200))"""
COLLIDING = """() => [...document.querySelectorAll("svg")].flatMap(svg => ["x", "y"].flatMap(axis => {
    const all = [...svg.querySelectorAll(`text.${axis}`)].map(t => [t, t.getBoundingClientRect()]);
    return all.filter(([t, a], i) => all.slice(i + 1).some(([, b]) => a.left < b.right && b.left < a.right
        && a.top < b.bottom && b.top < a.bottom)).map(([t]) => t.textContent);
}))"""


def unfold(tab) -> None:
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_sticks_out_and_no_ticks_collide(opened, width):
    tab = opened(viewport={"width": width, "height": 844})
    for _folded in (True, False):
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(STICKING, width) == []
        unfold(tab)
    for name in tab.locator("#quality-data option").all_inner_texts():
        tab.select_option("#quality-data", name)
        for metric in tab.locator("#quality-metric option").all_inner_texts():
            tab.select_option("#quality-metric", metric)
            assert tab.evaluate(COLLIDING) == [], (name, metric)
            for axis in ("x", "y"):
                least = 1 if axis == "x" and "scale" in name else 2  # a table of one step count
                assert tab.locator(f"#quality-chart text.{axis}").count() >= least, name


def test_hostile_names_and_numbers_do_no_harm(opened, spoilt):
    tab = opened(spoilt, viewport={"width": 390, "height": 844})
    unfold(tab)
    assert tab.title() == "Skipped-Step and Mix: results"
    assert tab.evaluate(STICKING, 390) == []
    assert tab.locator("#quality-legend bdi").all_inner_texts()[:4] == list(HOSTILE)
    chart = tab.locator("#quality-chart")
    for name in tab.locator("#quality-data option").all_inner_texts():
        tab.select_option("#quality-data", label=name)
        for metric in tab.locator("#quality-metric option").all_inner_texts():
            tab.select_option("#quality-metric", metric)
            assert "NaN" not in chart.inner_html() and "Infinity" not in chart.inner_html()
            assert chart.locator("polyline").count() >= 3
    for head in tab.locator("#ours th button").all()[:9]:
        head.click()


def test_a_sampler_has_one_colour_everywhere_and_real_is_in_the_legend(opened):
    tab = opened()
    colours: dict[str, set[str]] = {}
    for name in tab.locator("#quality-data option").all_inner_texts():
        tab.select_option("#quality-data", name)
        pairs = tab.eval_on_selector_all(
            "#quality-legend label",
            "all => all.map(l => [l.querySelector('bdi').textContent, getComputedStyle(l.querySelector('svg')).color])",
        )
        for sampler, colour in pairs:
            colours.setdefault(sampler, set()).add(colour)
        assert pairs[-1][0] == "real"
        assert sum(c.is_checked() for c in tab.locator("#quality-legend input").all()) <= 7
    assert all(len(seen) == 1 for seen in colours.values())
    for sampler in ("Mix", "DDIM", "Skipped-Step", "UniPC"):
        r, g, b = (int(style_of(sampler).colour[i : i + 2], 16) for i in (1, 3, 5))
        assert colours[sampler] == {f"rgb({r}, {g}, {b})"}
    drawn = tab.locator("#quality-chart polyline").count()
    tab.locator("#quality-legend label", has_text="real").locator("input").click()
    assert abs(tab.locator("#quality-chart polyline").count() - drawn) == 1
    assert "exact denoiser" in tab.inner_text("#dial-chart")
    assert "exact denoiser" in tab.inner_text("#quality-data")


@pytest.mark.parametrize("width", [390, 1100])
def test_the_slider_stands_where_its_cutoff_is_on_the_axis(opened, width):
    tab = opened(viewport={"width": width, "height": 844})

    def places() -> tuple[float, float]:
        return tab.evaluate("""() => {
            const slider = document.getElementById("cutoff-slider"), box = slider.getBoundingClientRect();
            const line = document.querySelector("#cutoff-chart .here").getBoundingClientRect();
            return [box.left + 10 + (box.width - 20) * slider.value / 1000, (line.left + line.right) / 2];
        }""")

    tab.focus("#cutoff-slider")
    for key in ("Home", "ArrowRight", "ArrowRight", "PageUp", "End", "ArrowLeft"):
        tab.keyboard.press(key)
        thumb, line = places()
        assert thumb == pytest.approx(line, abs=1)
    box = tab.locator("#cutoff-slider").bounding_box()
    at = tab.eval_on_selector_all(
        "#cutoff-chart .dot",
        "all => all.map(d => d.getBoundingClientRect()).map(r => (r.left + r.right) / 2)",
    )
    for x in (at[3], at[7]):  # a click on the slider above a point takes its cutoff
        tab.mouse.click(x, box["y"] + box["height"] / 2)
        thumb, line = places()
        assert thumb == pytest.approx(line, abs=1) and line == pytest.approx(x, abs=1)


def test_it_fits_a_phone_and_a_dark_room(opened):
    tab = opened(viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    light = opened()
    assert light.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_every_control_has_a_name_and_is_reached_by_tab(opened):
    tab = opened()
    count = tab.evaluate("""() => {
        const controls = [...document.querySelectorAll("select, input, button")];
        const nameless = controls.filter(c => !(c.labels?.length || c.textContent.trim()));
        if (nameless.length) throw new Error(nameless[0].outerHTML);
        return controls.filter(c => c.tabIndex < 0).length;
    }""")
    assert count == 0
    wanted = {"cutoff-slider", "quality-metric", "side-left", "side-right"}
    for _ in range(120):
        tab.keyboard.press("Tab")
        wanted -= {tab.evaluate("document.activeElement.id")}
        if not wanted:
            return
    raise AssertionError(f"not reached: {wanted}")
