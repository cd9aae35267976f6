"""The page in the browser: its plans, noise and pixels are Python's, and it asks for nothing else."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, refused

from models import digits
from report.styles import MARKERS, SAMPLERS
from sampling import Plan, SampleNoise, iterate, mix, mixpp, sample_labels, timesteps
from sampling.borrowed import sampler_at
from sampling.plan import COLUMNS
from scripts import play

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' UniPC
LIMIT = 25e6  # bytes
IDS = range(16)
PYTHON = {"mix": mix, "mixpp": lambda *grid, cutoff: mixpp(*grid, lo=cutoff)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("play") / "play"
    try:
        play.build(out)
    except FileNotFoundError as error:
        pytest.skip(f"onnxruntime-web cannot be had here: {error}")
    return out


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(folder: Path):
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def tab(browser, address):
    """The page, loaded once for all tests; whatever it says or asks for elsewhere fails them."""
    complaints: list[str] = []
    tab = browser.new_context(accept_downloads=True).new_page()
    tab.set_default_timeout(120_000)
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda r: r.url.startswith((address, "blob:")) or complaints.append(r.url))
    tab.on("requestfailed", lambda request: complaints.append(request.url))
    tab.goto(f"{address}#steps=5&left=ddim&right=ddim")
    tab.wait_for_selector("body[data-done]")
    yield tab
    tab.context.close()
    assert complaints == []


def sampled(tab, **chosen: object) -> None:
    """Choose by the address, and wait for the end."""
    tab.evaluate("delete document.body.dataset.done")
    tab.evaluate("to => { location.hash = to; }", "&".join(f"{k}={v}" for k, v in chosen.items()))
    tab.wait_for_selector("body[data-done]")


def seen(tab, canvas: str) -> np.ndarray:
    """The digits that a canvas shows, uint8 [16, 28, 28]."""
    read = "c => [...c.getContext('2d').getImageData(0, 0, 112, 112).data].filter((v, i) => i % 4 === 0)"
    pixels = np.array(tab.eval_on_selector(f"#{canvas}", read), np.uint8)
    return pixels.reshape(4, 28, 4, 28).swapaxes(1, 2).reshape(16, 28, 28)


@functools.cache
def backbone():
    return digits.load()


def states(plan: Plan, seed: int) -> list:
    """What Python makes of a plan: x and x0 after every row, uint8 [16, 28, 28]."""
    denoiser = backbone().given(sample_labels(seed, IDS, 10))
    with torch.no_grad():
        made = list(iterate(denoiser, plan, SampleNoise(seed, IDS, (1, 28, 28))))
    return [
        [None if x is None else backbone().decode(x)[..., 0] for x in (s.x, s.x0)] for s in made
    ]


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert theirs.std() > 20  # not an empty picture


def plan_of(name: str, steps: int, cutoff: float | None = None) -> Plan:
    if name not in PYTHON:
        return sampler_at(name, backbone().schedule, steps, "even")
    grid = timesteps(1000, steps, "even")
    return PYTHON[name](backbone().schedule, grid, cutoff=cutoff)


# --- the folder ------------------------------------------------------------------------------------


def test_it_is_small_and_whole(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT
    index = json.loads((folder / "play.json").read_text())
    assert index["bytes"] < index["all_bytes"] < LIMIT
    names = set(re.findall(r'(?:src|href)="([^"#]+)"', (folder / "index.html").read_text()))
    assert {"play.js", "style.css", "LICENSES.txt"} <= {n for n in names if (folder / n).is_file()}
    for source in folder.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"|Worker\("([^"]+)"', source.read_text()):
            assert (folder / "".join(name)).is_file()
        assert not re.search(r"https?://", source.read_text())


def test_samplers_have_the_colours_of_the_figures(folder):
    for choice in json.loads((folder / "play.json").read_text())["samplers"].values():
        style = SAMPLERS[choice["title"]]
        look = choice["look"]
        assert (look["light"], look["dark"]) == (style.colour, style.dark)
        assert (tuple(look["dash"]), look["mark"]) == (style.dash, MARKERS[style.marker])


def test_the_weights_are_where_the_graph_looks_for_them(monkeypatch):
    graph, weights = (play.SOURCES / play.GRAPH).read_bytes(), play.DIGITS / play.WEIGHTS
    play.check_graph(graph, weights.read_bytes())
    moved = weights.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[1,', 1)
    with pytest.raises(ValueError, match=r"lie otherwise .*: make it anew with `python -m"):
        play.check_graph(graph, moved)


def test_the_graph_is_what_the_export_gives():
    pytest.importorskip("onnx", reason="pip install -e '.[play]'")
    pytest.importorskip("onnxscript", reason="pip install -e '.[play]'")
    lock = (ROOT / "requirements.lock").read_text()
    if any(f"\n{n}=={version(n).split('+')[0]} " not in lock for n in ("torch", "onnxscript")):
        pytest.skip("another torch or onnxscript than in requirements.lock writes other bytes")
    assert play.exported() == (play.SOURCES / play.GRAPH).read_bytes()


def test_other_files_are_left_alone(script, tmp_path):
    (tmp_path / "play.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("mine")
    refused(script(play.main, "--out", tmp_path), "choose another --out DIR")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_runtime_that_is_not_the_published_one_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    (tmp_path / "onnxruntime-web-1.30.0.tgz").write_text("something else")
    refused(script(play.main, "--out", tmp_path / "out"), "remove it and run this again")
    (tmp_path / "onnxruntime-web-1.30.0.tgz").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(script(play.main, "--out", tmp_path / "out"), "npm is not here: install Node.js, or")
    (tmp_path / "npm").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    refused(script(play.main, "--out", tmp_path / "out"), "npm cannot fetch onnxruntime-web: check")
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["npm"]


# --- what it computes ------------------------------------------------------------------------------


def test_mix_in_the_page_is_mix_in_python_at_every_node(tab, folder):
    splices = """async ([name, head, tail, cutoffs, called]) => {
        const { splice } = await import("./sampler.js");
        const read = async (path) => (await fetch(path)).json();
        const [above, below] = [await read(head), await read(tail)];
        return cutoffs.map((t) => JSON.stringify(splice(above, below, t, called.replace("CUTOFF", t))));
    }"""
    for name in PYTHON:
        choice = play.CHOICES[name]
        for steps in (5, 10, 25):
            cutoffs = [0, *timesteps(1000, steps, "even")[::-1].tolist(), 291, 1000]
            paths = [f"plans/{part}-{steps}.json" for part in (choice.head, choice.tail)]
            for t, text in zip(
                cutoffs,
                tab.evaluate(splices, [name, *paths, cutoffs, choice.plan]),
                strict=True,
            ):
                theirs, ours = Plan.from_json(text), plan_of(name, steps, t)
                assert (theirs.name, theirs.start) == (ours.name, ours.start)
                for column in COLUMNS:
                    a, b = getattr(theirs, column), getattr(ours, column)
                    np.testing.assert_array_equal(a, b)


def test_its_noise_and_labels_are_pythons(tab):
    drawn = """async ([seed, ids, size]) => {
        const { SampleNoise, sampleLabel } = await import("./noise.js");
        const noise = new SampleNoise(seed, ids, size);
        const all = [noise.start(), noise.at(999, 0), noise.at(291, 2), noise.at(0.5, 1)];
        return [all.map((z) => [...z]), ids.map((i) => sampleLabel(seed, i, 10))];
    }"""
    ids = [*range(50), 100_000]
    for seed in (0, 2**53 - 1):
        theirs, labels = tab.evaluate(drawn, [str(seed), ids, 784])
        noise = SampleNoise(seed, ids, (784,))
        ours = [noise.start(), noise.at(999), noise.at(291, visit=2), noise.at(0.5, visit=1)]
        a, b = np.array(theirs, np.float32), torch.stack(ours).flatten(1).numpy()
        assert (a != b).mean() < 1e-5  # of the tail, where logarithms differ in the last bit
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-7)
        assert labels == sample_labels(seed, ids, 10).tolist()


def test_every_row_is_pythons_to_one_grey_level(tab):
    """At the paper's cutoff, and at both ends of the memory: x and x0 after every row."""
    sampled(tab, steps=10, left="mix", left_cutoff=291, right="dpmpp", seed=7)
    plans = {"left": plan_of("mix", 10, 291), "right": plan_of("dpmpp", 10)}
    for side, plan in plans.items():
        for k, (x, x0) in enumerate(states(plan, 7), 1):
            tab.locator("#row").fill(str(k))
            same(x, seen(tab, f"{side}-x"))
            same(x0, seen(tab, f"{side}-x0"))
    said = tab.inner_text("#status")
    assert "16 digits on each side" in said and "10 and 10 network calls, 1 of them shared" in said


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        (("ddim",), ("skipped",), 1),
        (("mix", 600), ("ddpm",), 1),
        (("mix", 250), ("skipped",), 5),
        (("mixpp", 500), ("unipc",), 1),
    ],
    ids=str,
)
def test_samples_are_pythons_to_one_grey_level(tab, left, right, shared):
    cutoffs = {f"{s}_cutoff": c[1] for s, c in (("left", left), ("right", right)) if c[1:]}
    sampled(tab, steps=5, left=left[0], right=right[0], seed=3, **cutoffs)
    for side, (name, *cutoff) in (("left", left), ("right", right)):
        same(states(plan_of(name, 5, *cutoff), 3)[-1][0], seen(tab, f"{side}-x"))
    assert f"{shared} of them shared" in tab.inner_text("#status")


def test_a_plan_of_ones_own_is_run_and_any_plan_is_saved(tab, tmp_path):
    """Restart goes up and down again, with rows that do not call the network."""
    restarts = [[2, 2, 0.3, 2.0]]
    plan = sampler_at("restart", backbone().schedule, 8, "even", restarts=restarts)
    assert any(row.visit for row in plan.rows()) and not plan.calls.all()
    (tmp_path / "plan.json").write_text(plan.to_json())
    sampled(tab, steps=5, left="ddim", right="ddim", seed=3)
    tab.evaluate("delete document.body.dataset.done")
    tab.select_option("#left-sampler", "yours")
    tab.set_input_files("#left-file", tmp_path / "plan.json")
    tab.wait_for_selector("body[data-done]")
    same(states(plan, 3)[-1][0], seen(tab, "left-x"))
    with tab.expect_download() as download:
        tab.click("#pair > :first-child a.save")
    download.value.save_as(tmp_path / "saved.json")
    saved = Plan.from_json((tmp_path / "saved.json").read_text())
    assert saved.to_json() == plan.to_json()
    whole = json.loads(plan.to_json())
    row = whole["rows"][0]
    wrong = [None, {"format": "another"}, {**whole, "rows": "many"}, {**whole, "rows": [None]}]
    wrong += [{**whole, "name": None}, {**whole, "start": "1"}]
    wrong += [{**whole, "rows": [{**row, **bad}]} for bad in ({"x0": [0, 1]}, {"eps": ["1"]})]
    for i, content in enumerate(wrong):
        (tmp_path / f"none{i}.json").write_text(json.dumps(content))
        tab.set_input_files("#left-file", tmp_path / f"none{i}.json")
        tab.get_by_text(f"none{i}.json is no plan that can run here").wait_for()
        assert re.search(
            r"\((its format is another|its rows are not whole)\)", tab.inner_text("#error")
        )


# --- how it is used --------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """What this process's children have computed up to now, and theirs."""
    children: dict[int, list[tuple[int, int]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            entry = int(path.parent.name), int(fields[11]) + int(fields[12])
            children.setdefault(int(fields[1]), []).append(entry)
    total, parents = 0, [os.getpid()]
    while parents:
        for child, ticks in children.get(parents.pop(), []):
            total += ticks
            parents.append(child)
    return total / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_sixteen_digits_at_ten_steps_take_less_than_three_seconds(tab):
    """Two samplers, 32 digits; time of the processor, which other programs leave as it is."""
    sampled(tab, steps=10, left="mix", right="ddim", seed=0)
    before = cpu_seconds()
    sampled(tab, steps=10, left="mix", right="ddim", seed=1)
    assert 0.1 < cpu_seconds() - before < 3


def test_by_keyboard_and_by_name(tab):
    sampled(tab, steps=5, left="mix", left_cutoff=250, right="ddim", seed=3)
    cutoff = tab.get_by_role("slider", name="Cutoff")
    assert cutoff.get_attribute("aria-valuetext") == "t ≥ 250: noise in 4 of 5 rows"
    tab.evaluate("delete document.body.dataset.done")
    cutoff.press("ArrowRight")
    tab.wait_for_selector("body[data-done]")
    assert cutoff.get_attribute("aria-valuetext") == "t ≥ 500: noise in 3 of 5 rows"
    assert "left_cutoff=500" in tab.evaluate("location.hash")
    row = tab.get_by_role("slider", name="Row of the tables")
    row.press("Home")
    assert row.get_attribute("aria-valuetext") == "the first noise"
    row.press("ArrowRight")
    assert tab.locator("tr[aria-current=step]").count() == 2
    for name, role in (("Steps", "combobox"), ("Digits", "combobox"), ("Seed", "spinbutton")):
        assert tab.get_by_role(role, name=name).is_enabled()
    for name in ("Left sampler", "Right sampler"):
        assert tab.get_by_role("combobox", name=name).is_enabled()
    assert "Digits" in tab.locator("#left-x").get_attribute("aria-label")


def test_a_wrong_seed_is_told_in_words(tab):
    sampled(tab, steps=5, left="ddim", right="ddim", seed=0)
    for seed in ("-1", "1e3", "1.0", str(2**53)):
        tab.fill("#seed", seed)
        tab.dispatch_event("#seed", "change")
        tab.wait_for_selector("#error:visible")
        assert "whole number, 0 to 9007199254740991" in tab.inner_text("#error")
    sampled(tab, steps=5, left="ddim", right="ddim", seed=2**53 - 1)
    assert tab.locator("#error").is_hidden()
    assert tab.input_value("#seed") == str(2**53 - 1)


def test_a_network_that_does_not_come_is_told_and_asked_for_again(browser, address):
    tab = browser.new_page()
    tab.route("**/*.wasm", lambda route: route.abort())
    tab.goto(f"{address}#steps=5&left=ddim&right=ddim")
    tab.wait_for_selector("#error:visible", timeout=60_000)
    assert "The network cannot run" in tab.inner_text("#error")
    tab.unroute("**/*.wasm")
    tab.click("#sample")
    tab.wait_for_selector("body[data-done]", timeout=120_000)
    assert tab.locator("#error").is_hidden()
    tab.context.close()


OWN_COLOUR = "at => getComputedStyle(document.querySelector(at)).getPropertyValue('--own')"


SIDE_BY_SIDE = """() => {
  const [left, right] = ["left", "right"].map(side => document.getElementById(`${side}-x`).getBoundingClientRect())
  return left.y === right.y && left.width > 100 && left.right < right.x
}"""


def test_on_a_phone_in_the_dark(browser, address):
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    tab = browser.new_context(color_scheme="dark", **options).new_page()
    tab.route("**/*.wasm", lambda route: route.abort())  # the noise needs no network
    tab.goto(f"{address}#left=mix&right=unipc")
    tab.wait_for_selector("#pair > :last-child table")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.wait_for_function(SIDE_BY_SIDE)  # while tables arrive, the page moves
    colours = [tab.evaluate(OWN_COLOUR, side) for side in ("#left", "#pair > :last-child")]
    assert colours == [SAMPLERS["Mix"].dark, SAMPLERS["UniPC"].dark]
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background))) < 50
    tab.context.close()


def test_a_plan_that_does_not_come_is_told_and_asked_for_again(browser, address):
    tab = browser.new_page()
    for files in ("**/plans/*", "**/*.wasm"):
        tab.route(files, lambda route: route.abort())
    tab.goto(address)
    tab.wait_for_selector("#error:visible")
    tab.unroute("**/plans/*")
    tab.click("#sample")
    tab.wait_for_selector("#pair table")
    tab.context.close()


def test_sources_that_are_not_built_say_so(browser):
    tab = browser.new_page()
    with served(play.SOURCES) as address:
        tab.goto(address)
        tab.wait_for_selector("#error:visible")
        assert "is not built (play.json: the server says 404)" in tab.inner_text("#error")
    tab.context.close()


def test_opened_as_a_file_it_says_what_it_needs(browser, folder):
    tab = browser.new_page()
    tab.goto((folder / "index.html").as_uri())
    assert "python -m http.server" in tab.inner_text("#status")
    tab.context.close()
