"""One self-contained web page of everything under results/: what it says, tables, curves, pictures.

Built from stored records, contact sheets and figures alone; `python -m scripts.report` writes it.
Style, script, data and pictures are inside the page, which asks the network for nothing; it links
to the files from which it is made.
"""

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from eval.records import load_records
from eval.sheets import INDEX
from eval.table import Table
from files.places import ROOT
from files.whole import remove_partial, write_text
from report import page_tables, study_closed
from report.charts import Found, charts, damaged, link, links, plain
from report.conclusion import conclude
from report.escape import in_script

ASSETS = Path(__file__).parent / "assets"
PAPER_TABLES = ("table1", "table2", "table3", "table4")
ABLATION = "figure4"
DIAL = "study_dial-"
# What is drawn against network calls, in this order; then whatever else is a table.
CURVES = ("study", "study_log_snr", "study_exact", "table1", "table1_full", "table2", "table3")
WITHOUT = (study_closed.FOLDER, "pairs")  # listed in full, but neither drawn nor concluded from
LIMIT = 10_000_000  # bytes
LARGE = 1_500_000  # bytes of a figure that the page links to and does not hold
TITLE = "<title>Skipped-Step and Mix: results</title>"  # as it stands in page.html

Part = TypeVar("Part")


def build_page(results: Path, page: Path | None = None) -> str:
    """The page as HTML, to be written into the folder `page` (`results` if None), for its links.

    Raises FileNotFoundError if there are no records at all, ValueError for a damaged file or a page
    of more than 10 MB.
    """
    page = page or results
    folders = sorted(p.parent for p in results.glob("*/*/records.json"))
    if not folders:
        raise FileNotFoundError(f"no records under {results}: run make table1 MODEL=digits first")
    tuned = [p for p in folders if _has_phases(p)]
    found = {p: Table.load(p / "records.json") for p in folders if p not in tuned}
    kinds = _kinds(found)
    parts = {
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": (ASSETS / "page.js").read_text(encoding="utf-8"),
        "data": in_script(charts(found, page, kinds)),
        "conclusion": _conclusion(results, found, kinds["curves"]),
        "figures": "\n".join(_figure(p, page) for p in sorted(results.glob("*/figure*"))),
        "tuning": "\n".join(_tuning(p, page) for p in tuned),
        "paper": _paper(results, found),
        "ours": "\n".join(_full(p, found[p]) for p in [*kinds["curves"], *kinds["others"]]),
        "files": _files(results, page),
    }
    text = (ASSETS / "page.html").read_text(encoding="utf-8")
    text = _without_empty(text, [name for name, part in parts.items() if not part])
    # In one pass: what is put in may have such a mark in it.
    text = re.sub(f"<!--({'|'.join(parts)})-->", lambda match: parts[match[1]], text)
    if len(text.encode()) > LIMIT:
        raise ValueError(
            f"the page would have {len(text.encode()) / 1e6:.1f} MB, more than {LIMIT / 1e6:g}: remove "
            f"pictures-*.webp and {INDEX} from some folders of {results}"
        )
    return text


def write_page(results: Path, out: Path) -> int:
    """Write the page of a folder of results; returns its bytes.

    Raises as `build_page`, and ValueError if `out` is a file that is no such page.
    """
    page = build_page(results, out.parent)
    if out.exists() and (out.is_dir() or TITLE not in out.read_text("utf-8", errors="replace")):
        raise ValueError(f"{out} is no page of ours: choose another --out FILE, or move it away")
    write_text(out, page)
    remove_partial(out.parent, re.escape(out.name))
    return len(page.encode())


def _has_phases(folder: Path) -> bool:
    """Whether records are those of a search, each of which says what it was for."""
    records: Any = load_records(folder / "records.json")
    return isinstance(records, list) and any("phase" in r for r in records if isinstance(r, dict))


def _kinds(found: Found) -> dict[str, list[Path]]:
    """Folders by how they are shown: as a figure 4, a dial, curves, or in full alone."""
    ablations = [p for p in found if p.name == ABLATION]
    dials = [p for p in found if p.name.startswith(DIAL)]
    fullest = sorted(found, key=lambda p: -len(found[p].records))
    known = [p for name in CURVES for p in fullest if p.name == name]
    rest = [p for p in found if p not in {*ablations, *dials, *known}]
    others = [p for p in rest if p.name in WITHOUT]
    return {
        "ablations": ablations,
        "dials": dials,
        "curves": [*known, *(p for p in rest if p not in others)],
        "closed": [p for p in others if p.name == study_closed.FOLDER],
        "others": [*ablations, *dials, *others],
    }


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _without_empty(text: str, empty: Iterable[str]) -> str:
    """The template without the sections, and the links to them, that have nothing in them."""
    for name in empty:
        text = re.sub(rf'<section id="{name}".*?</section>\n*', "", text, flags=re.DOTALL)
        text = re.sub(rf'<a href="#{name}">.*?</a>\s*', "", text)
    return text


def _read(folder: Path, part: Callable[[], Part]) -> Part:
    """A part of the page; ValueError for records that were changed by other hands."""
    try:
        return part()
    except (TypeError, AttributeError, LookupError) as error:
        raise damaged(folder, error) from None


def _conclusion(results: Path, found: Found, curves: Sequence[Path]) -> str:
    tables = {_name(p): found[p] for p in curves}
    return _read(results, lambda: page_tables.conclusions(conclude(tables)))


def _full(folder: Path, table: Table) -> str:
    return _read(folder, lambda: page_tables.full_table(_name(folder), table))


def _tuning(folder: Path, page: Path) -> str:
    records = load_records(folder / "records.json")
    written = _read(folder, lambda: page_tables.tuning(_name(folder), records))
    return f"{written}<p>{_anchors(links(folder, page))}</p>"


def _paper(results: Path, found: Found) -> str:
    tables = {name: [t for p, t in found.items() if p.name == name] for name in PAPER_TABLES}
    return "\n".join(
        page_tables.paper_table(results / "paper" / f"{name}.yaml", of_name)
        for name, of_name in tables.items()
    )


# --- figures and files ----------------------------------------------------------------------------


def _figure(folder: Path, page: Path) -> str:
    """A figure of pictures alone, with its text; empty for one that is made of scores."""
    path, words = folder / "figure.png", folder / "figure.md"
    if not path.is_file() or (folder / "records.json").exists():
        return ""
    text = words.read_text("utf-8", errors="replace") if words.is_file() else ""
    title, about, *rows = [plain(part) for part in text.split("\n\n")] + ["", ""]
    title = title.removeprefix("# ") or folder.name
    lines = [line.strip("| ").split(" | ") for line in rows[0].splitlines()[2:]]
    alt = "; ".join(f"{line[-2]}, {line[-1]} calls" for line in lines if len(line) > 1)
    head = html.escape(f"{_name(folder)}: {title}.")
    caption = f"<b>{head}</b> {html.escape(about)} Rows: {html.escape(alt)}."
    return (
        f"<figure>{_image(path, f'{title}. Rows: {alt}')}<figcaption>{caption}</figcaption></figure>"
        f"<p>{_anchors(links(folder, page))}</p>"
    )


def _image(path: Path, alt: str) -> str:
    content = path.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is no picture: remove it and make the figure again")
    if len(content) > LARGE:
        return ""
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _anchors(targets: Iterable[dict[str, str]]) -> str:
    return " ".join(
        f'<a href="{html.escape(target["href"])}">{html.escape(target["text"])}</a>'
        for target in targets
    )


def _files(results: Path, page: Path) -> str:
    """Links to what is written of every experiment, and to the documents that say what it means."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = [link(p.relative_to(ROOT).as_posix(), p, page) for p in documents if p.is_file()]
    folders = sorted({p.parent for p in results.glob("*/*/*") if p.is_file()})
    items = "".join(f"<li>{_anchors(links(p, page))}</li>" for p in folders)
    return f"<p>{_anchors(named)}</p><ul>{items}</ul>"
