"""The site of README and docs: it is built strictly, holds all it links, and asks nothing of other servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from mkdocs.config import load_config
from mkdocs.structure.files import Files

from report import website
from report.website import in_the_site, linked, origin, place, requests_elsewhere


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """As `make site` builds it, with its line of the Makefile."""
    folder = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(r"^site:.*\n\t.*\n\t.*\$\(PY\) (.*) \$\(ARGS\)$", MAKEFILE, re.M)
    made = [sys.executable, *recipe.split(), "--site-dir", folder]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    out = subprocess.run(made, cwd=ROOT, text=True, capture_output=True, env=env)
    assert out.returncode == 0, out.stderr
    return folder


MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_it_has_every_page_and_what_they_show(site):
    pages = {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.name for page in site.iterdir()}
    first = (site / "index.html").read_text("utf-8")
    assert 'src="front.png"' in first and (site / "front.png").is_file()
    assert 'href="repository/models/digits/CARD.html"' in first
    assert (site / "repository/results/digits/study/quality.png").is_file()
    for page in site.rglob("*.html"):  # what mkdocs does not check: the copies of our own files
        for path in re.findall(r'(?:src|href)="([\w./-]+)"', page.read_text("utf-8")):
            assert page.name == "404.html" or (page.parent / path).exists(), (page, path)


def test_it_has_every_public_function_and_scheduler(site):
    import sampling

    said = (site / "reference.html").read_text("utf-8")
    kinds = ("Denoised", "Denoiser", "Gradient", "Noise", "State", "SAMPLERS", "SPACINGS")
    functions = [f"sampling.{name}" for name in sampling.__all__ if name not in kinds]
    schedulers = [
        f"sampling.schedulers.{n}Scheduler" for n in ("SkippedStep", "Mix", "MixPlusPlus")
    ]
    for name in (*functions, *schedulers, "eval.library.evaluate"):
        assert f'id="{name}"' in said, name


@pytest.mark.parametrize("fails", [False, True], ids=["npm", "no npm"])
def test_make_site_first_builds_the_page_that_plays_where_it_can(tmp_path, fails):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$2"\n[ "$2" != scripts.play ] || exit {2 * fails}\n')
    python.chmod(0o755)
    words = ["make", "-o", ".venv/installed", "site", f"PY={python}"]
    out = subprocess.run(words, cwd=ROOT, text=True, encoding="utf-8", capture_output=True)
    said = [line for line in out.stdout.splitlines() if "python" not in line]
    told = ["the site has the page in the browser only if build/play was built before"]
    assert (out.returncode, said) == (0, ["scripts.play", *told * fails, "mkdocs"])


def test_it_is_strict():
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert re.search(r"^strict: true$", config, re.M) and "font: false" in config
    (checks,) = re.findall(r"^validation:\n((?:  .*\n)+)", config, re.M)
    assert re.findall(r"  (\w+): warn", checks) == [
        *("omitted_files", "absolute_links", "unrecognized_links", "anchors")
    ]
    assert re.search(r"^make .*\bsite$", (ROOT / ".ci/run").read_text("utf-8"), re.M)


@pytest.mark.parametrize(
    ("text", "fetches"),
    [
        ('<script src="https://unpkg.com/a.js"></script>', True),
        ("<img alt='' src=//a.org/b.png>", True),
        ('<link rel="stylesheet" href="https://fonts.googleapis.com/css">', True),
        ("@import 'http://a.org/b.css';", True),
        ("a { background: url(https://a.org/b.png) }", True),
        ("a { background: url('data:image/svg+xml;https://a') }", False),
        ('<a href="https://arxiv.org/abs/2508.15233">', False),
        ('<script src="assets/a.js"></script><link href="b.css">', False),
    ],
)
def test_what_a_page_would_fetch_is_noticed(tmp_path, text, fetches):
    (tmp_path / "a.html").write_text(text, "utf-8")
    assert bool(requests_elsewhere(tmp_path)) is fetches


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("README.md", "index.md"),
        ("docs/plans.md", "plans.md"),
        ("docs/play/index.html", "play/index.html"),
        ("models/digits/CARD.md", "repository/models/digits/CARD.md"),
        ("tests/conftest.py", "repository/tests/conftest.py.txt"),
    ],
)
def test_every_file_has_its_place(path, there):
    assert place(path) == there and origin(there) == path


def test_links_are_moved_with_their_files(tmp_path):
    for name in ("README.md", "docs/a.md", "docs/b.png", "m/c.md", "m/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def moved(text: str, page: str) -> str:
        return in_the_site(text, page, tmp_path)

    assert moved("[a](docs/a.md#x) ![b](docs/b.png)", "README.md") == "[a](a.md#x) ![b](b.png)"
    text = "[c](../m/c.md) [r](../README.md) [d](../m/d.py#L1) [x](#y) [e](https://e.org/m/c.md)"
    wanted = "[c](repository/m/c.md) [r](index.md) [d](repository/m/d.py.txt#L1) [x](#y) "
    assert moved(text, "docs/a.md") == wanted + "[e](https://e.org/m/c.md)"
    assert moved("[a](../docs/a.md) [d](d.py)", "m/c.md") == "[a](../../a.md) [d](d.py.txt)"
    # A folder cannot be shown; a dead link is left, for mkdocs to refuse.
    assert moved("[m](../m) [gone](../m/gone.md)", "docs/a.md") == "m [gone](../m/gone.md)"
    assert list(linked(text, "docs/a.md", tmp_path)) == ["m/c.md", "README.md", "m/d.py"]


@pytest.mark.parametrize("built", [True, False])
def test_the_page_that_plays_is_in_it_where_it_was_built(monkeypatch, tmp_path, built):
    if built:
        (tmp_path / "plans").mkdir()
        for name in ("index.html", "plans/mix-10.json"):
            (tmp_path / name).touch()
    monkeypatch.setattr(website, "PLAY", tmp_path)
    config = website.on_config(load_config(str(ROOT / "mkdocs.yml")))
    config.plugins._current_plugin = "website"  # as while mkdocs calls a hook
    uris = {file.src_uri for file in website.on_files(Files([]), config)}
    assert ({"In your browser": "play/index.html"} in config.nav) is built
    assert ({"play/index.html", "play/plans/mix-10.json"} <= uris) is built
    assert "index.md" in uris
