"""Names and prompts are data wherever they are written: no markup, no formula, no command."""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT
from test_report import RECORDS, record

from eval.sheets import Pictures, read_sheets, write_sheets
from eval.table import Table
from files.whole import CHECKSUM
from report.escape import in_csv, in_latex, in_markdown, in_script
from report.page import build_page
from report.pictures import write_pictures
from report.render import write_cutoffs, write_table
from report.words import sampling_sentence

NAMES = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<!--paper-->",
    "<!--data-->",
    "a | b",
    "a & b % \\input{/etc/passwd} $x$ #1 {_^~}",
    "=cmd|' /C calc'!A0",
    "@SUM(A1)",
    "+1",
    "a $5 bill and a $10 bill",
    "the text $E_0_1$",
    "\\$ and $",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines\u2028three",
    "half \ud800",
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_file_of_a_table(tmp_path, name):
    table = Table([record(name, 25, 3.0), record("DDIM", 25, 4.0), record(name, 50, 2.0)])
    text = write_table(tmp_path, f"Title {name}", table, ["fid", "is"], None)
    assert text == (tmp_path / "table.md").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}  # two columns of scores
    assert "<" not in "".join(lines)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and not any(row["sampler"].startswith(tuple("=+-@")) for row in rows)
    ours = (tmp_path / "table.tex").read_text().splitlines()[6].partition(" & $")[0]
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]", "", ours)
    assert not re.search(r"[\\&%$#_{}~^]", bare), ours
    assert (tmp_path / "table.png").stat().st_size > 1000
    assert Table.load(tmp_path / "records.json").rows[0] == name.replace("\ud800", "\ufffd")


def test_what_is_plain_stays_as_it_is():
    for name in ("DPM-Solver++(2M)", "Mix++ (0, 291)", "cutoff 291", "Skipped-Step", "Bär"):
        assert in_markdown(name) == in_latex(name) == in_csv(name) == name
    assert in_csv(-2.5) == -2.5 and in_csv(7) == 7


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_figures_of_prompts(tmp_path, name):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    config = copy.deepcopy(RECORDS[0]["cell"]["config"])
    config["model"]["name"] = name
    row = Pictures(name, 25, images, [name, "a dog"], config)
    write_pictures(tmp_path, f"Figure {name}", [row])
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "\x1b" not in sampling_sentence(config)


def test_figures_show_dollars_as_dollars(monkeypatch, tmp_path):
    """matplotlib would set what stands between two of them as a formula."""
    from matplotlib.text import Text

    seen = []
    real = Text._preprocess_math
    monkeypatch.setattr(
        Text, "_preprocess_math", lambda self, s: seen.append(real(self, s)) or seen[-1]
    )
    images, prompt = np.zeros((1, 8, 8, 3), np.uint8), "was $100, now $50"
    row = Pictures("$a$", 25, images, [prompt], RECORDS[0]["cell"]["config"])
    write_pictures(tmp_path, "a title of $ and $", [row])
    texts = "\n".join(text for text, is_math in seen if not is_math).replace("\n", " ")
    assert "a title of $ and $" in texts and prompt in texts and "$a$ 25 steps" in texts
    assert not any(is_math for _, is_math in seen)


def test_cutoffs_of_hostile_names(tmp_path):
    table = Table(
        [record(f"{i} {row}", 25, 3.0 + i, name="mix", cutoff=i) for i, row in enumerate(NAMES[:4])]
    )
    write_cutoffs(tmp_path, "$ and $ <b>", table, ["fid", "is"], None)
    assert (tmp_path / "figure.png").is_file()


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """Results with names of somebody else's, as a function of what is done to them."""

    def make(change=None, pictures=None):
        shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
        for name in ("figure4", "table1"):
            shutil.copytree(ROOT / "results/digits" / name, tmp_path / "results/digits" / name)
        for path in (tmp_path / "results").glob("digits/*/records.json"):
            records = json.loads(path.read_text())
            for entry in records if change else []:
                change(entry)
                entry.pop(CHECKSUM, None)  # those of `make table1` have one
            path.write_text(json.dumps(records))
        for path in (tmp_path / "results").glob("digits/*/pictures.json"):
            index = json.loads(path.read_text())
            if pictures:
                pictures(index)
            path.write_text(json.dumps(index))
        return tmp_path / "results"

    return make


def data_of(page):
    return json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)[1])


@pytest.mark.parametrize("name", [n for n in NAMES if n and "\ud800" not in n], ids=ascii)
def test_names_do_not_break_the_page(results, name):
    def change(entry):
        entry["row"] = name if entry["row"] == "Mix" else entry["row"]
        entry["cell"]["config"]["model"]["name"] = name

    plain = build_page(ROOT / "results")
    page = build_page(results(change))
    assert page.count("<script") == plain.count("<script") and page.count("<!--") == 0
    assert any(s["name"] == name for c in data_of(page)["curves"] for s in c["samplers"])


def test_scores_that_are_no_numbers(results):
    def change(entry):
        entry["scores"]["fid"]["value"] = float("nan")

    page = build_page(results(change))
    data = page[page.index('id="data"') :].partition("</script>")[0]
    assert not re.search(r"(?<![A-Za-z0-9+/])NaN(?![A-Za-z0-9+/])", data)  # pictures are base64
    assert in_script({"a": [float("inf"), (float("nan"), 1.5)]}) == '{"a":[null,[null,1.5]]}'


@pytest.mark.parametrize(
    "file", ["../../../../etc/passwd", "/etc/passwd", "/dev/zero", "records.json", "", None, 7]
)
def test_pictures_are_files_of_their_own_folder(results, file):
    def change(index):
        for sheet in index["sheets"].values():
            sheet["file"] = file

    with pytest.raises(
        ValueError,
        match=r"pictures\.json is damaged .*: remove pictures\.json and make the pictures anew",
    ):
        build_page(results(pictures=change))


@pytest.mark.parametrize(
    "entries",
    [
        {"count": 10**9},
        {"left": -1},
        {"top": 10**9},
        {"width": "1;background:url(x)"},
        {"sheets": [1]},
        {"titles": ["one"]},
    ],
    ids=str,
)
def test_an_index_of_pictures_that_makes_no_sense(results, entries):
    with pytest.raises(
        ValueError,
        match=r"pictures\.json is damaged .*: remove pictures\.json and make the pictures anew",
    ):
        build_page(results(pictures=lambda index: index.update(entries)))


def test_a_linked_sheet_is_not_read(results, tmp_path):
    folder = results()
    (path, *_) = sorted(folder.glob("digits/*/pictures-*.webp"))
    path.rename(tmp_path / "secret.webp")
    path.symlink_to(tmp_path / "secret.webp")
    with pytest.raises(
        ValueError,
        match=r"pictures\.json is damaged .*: remove pictures\.json and make the pictures anew",
    ):
        build_page(folder)


def test_what_write_sheets_writes_is_read(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    write_sheets(tmp_path, [Pictures("<b>", 5, images, ["<i>", "b", "c"], {})])
    assert read_sheets(tmp_path)["sheets"]["5"]["rows"] == ["<b>"]
