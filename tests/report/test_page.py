"""The report: built from the committed records, and used in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import ROOT

from eval.records import score
from eval.table import Table, cutoff
from eval.words import format_score
from report import page
from report.page import build_page

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """What `make report` writes from what is committed."""
    start = time.monotonic()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(build_page(RESULTS))
    assert time.monotonic() - start < 60
    return path


# --- what is in it ------------------------------------------------------------------------------


def test_it_is_one_small_file_that_names_no_other(report):
    text = report.read_text()
    assert len(text.encode()) < 10_000_000
    assert not re.search(r"""(src|href|action)=["'](?!#|data:)""", text)
    assert not re.search(r"@import|url\(\s*[\"']?(?!\$\{)(?!data:)", text)
    assert "fetch(" not in text and "XMLHttpRequest" not in text
    # The only other addresses are names, as that of SVG is.
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_papers_numbers_stand_beside_ours_and_nothing_stands_in(report):
    text = report.read_text()
    paper = text[text.index('id="paper"') : text.index('id="ours"')]
    for number in ("91.69", "14.15", "39.11", "16.97", "74.66"):  # of tables 1, 3 and 4
        assert f">{number}</td>" in paper
    # No weights of the paper's models were at hand: ours are absent, digits are not among them.
    assert "not run" in paper and "digits" not in paper.replace("(digits)", "")


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
    row = text[text.index('<th scope="row">Mix</th>') :]
    row = next(r for r in row.split("</tr>") if ">25<" in r)
    assert ">77.02</td>" in row  # the paper's IS
    assert f">{format_score('is', table.value('Mix', 25, 'is'))}</td>" in row
    assert ">14.15</td>" in row and "not run" not in row


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


def test_text_cannot_break_out(tmp_path, stored):
    stored.write_text(stored.read_text().replace('"Mix"', '"</script><b>Mix"'))
    text = build_page(tmp_path)
    assert "</script><b>" not in text and text.count("</script>") == 2


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, report):
    """A function that opens the report; whatever it says or asks for fails the test."""
    complaints: list[str] = []

    def asked(request):
        if not request.url.startswith("data:") and request.url != report.as_uri():
            complaints.append(request.url)

    def opened(**options):
        tab = browser.new_context(offline=True, **options).new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", asked)
        tab.goto(report.as_uri())
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
    tab.select_option("#cutoff-data", "digits, even spacing (figure4)")
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
    table = tab.locator("#paper table").first
    head = table.locator("th", has_text="FID, paper")

    def column() -> list[float]:
        return [float(t) for t in table.locator("tbody tr td:nth-child(5)").all_inner_texts()]

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


def test_it_fits_a_phone_and_a_dark_room(opened):
    tab = opened(viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for summary in tab.locator("details > summary").all():
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
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
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"cutoff-slider", "quality-metric", "side-left", "side-right"} <= reached
