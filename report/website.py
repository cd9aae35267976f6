"""A hook of mkdocs, for `make site`: the repository's pages as a site that holds all it links.

Pages link by paths in the repository, as Git hosts show them.  In the site README.md is the first
page; what pages link outside of docs/ (pictures, cards, tests) comes along as a copy, so that no
link leaves the site; and the page that plays in the browser is part of it where it was built.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PLAY = ROOT / "build" / "play"  # whose sources are in docs/play
SHOWN = (".md", ".png", ".webp", ".svg", ".html", ".ipynb")  # other files are shown as plain text
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")
# What a browser would fetch from elsewhere while it shows a page.
ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>|(?:@import |url\()["']?(?:https?:)?//[^)]*"""
)


def place(path: str) -> str:
    """Where a file of the repository lies in the site, as mkdocs names sources."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(SHOWN) else f"repository/{path}.txt"


def origin(uri: str) -> str:
    """The file of the repository that lies at this place: `place` the other way round."""
    if uri == "index.md":
        return "README.md"
    if uri.startswith("repository/"):
        return uri.removeprefix("repository/").removesuffix(".txt")
    return f"docs/{uri}"


def linked(text: str, path: str, root: Path = ROOT) -> Iterator[str]:
    """The files of the repository that a page of it links."""
    for target in LINK.findall(text):
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if (root / there).is_file():
            yield there


def in_the_site(text: str, path: str, root: Path = ROOT) -> str:
    """A page's text with the links to files of the repository as links within the site.

    A link to a folder, which a site cannot show, is its words alone; a dead one stays for mkdocs to refuse.
    """
    here, there = posixpath.dirname(path), posixpath.dirname(place(path))

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        found = (root / target).is_file()
        return posixpath.relpath(place(target), there or ".") if found else match[1]

    def folder(match: re.Match[str]) -> str:
        return match[1] if (root / here / match[2]).is_dir() else match[0]

    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)\)", folder, text)
    return LINK.sub(moved, text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    if (PLAY / "index.html").is_file() and config.nav:
        config.nav.insert(1, {"In your browser": "play/index.html"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page that plays, the first page, and what it and the others link, and what these do."""
    for part in (part for part in PLAY.rglob("*") if part.is_file()):
        uri, shown = f"play/{part.relative_to(PLAY).as_posix()}", InclusionLevel.INCLUDED
        files.append(File.generated(config, uri, abs_src_path=str(part), inclusion=shown))
    pages = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while pages:
        page = pages.pop()
        for path in ("README.md", *linked((ROOT / page).read_text("utf-8"), page)):
            if files.get_file_from_path(place(path)) is None:
                files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
                pages += [path] * path.endswith(".md")
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    return in_the_site(markdown, origin(page.file.src_uri))


def requests_elsewhere(folder: Path) -> list[str]:
    """What pages and styles in a folder would fetch from other servers."""
    texts = (path for path in folder.rglob("*") if path.suffix in (".html", ".css"))
    return [
        f"{path.relative_to(folder)}: {match[:120]}"
        for path in sorted(texts)
        for match in ELSEWHERE.findall(path.read_text("utf-8"))
    ]


def on_post_build(config: MkDocsConfig) -> None:
    if found := requests_elsewhere(Path(config.site_dir)):
        raise PluginError("pages fetch from elsewhere: keep a copy in docs/: " + "; ".join(found))
