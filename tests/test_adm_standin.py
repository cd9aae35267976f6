"""The whole way of an ADM checkpoint, on a stand-in: the formats and the code are the real ones.

A tiny network in the original's .pt format with a card, a tiny reference batch in ADM's format
and a random file of the real Inception, all from a local server: downloaded, sampled, interrupted,
resumed, scored by metrics=adm, and rendered as Tables 1 and 2.  The numbers mean nothing.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import ROOT, done, golden_json, interrupt, refused, standin_inception, write_standin
from PIL import Image

import evaluate
import reproduce
import sample
from eval import networks
from eval.extractors import InceptionExtractor
from eval.frechet import statistics
from eval.protocols import reference_with
from experiments.config import composed
from experiments.folder import read_manifest
from files.whole import file_sha256
from scripts import download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def of_full_rank(cov):
    """As that of the 50,000 images of a published reference is."""
    return cov + 1e-9 * cov.trace() * np.eye(len(cov))


@pytest.fixture(scope="module")
def site(tmp_path_factory, unet_forward):
    """What stands for openaipublic and GitHub: (folder, URL)."""
    folder = tmp_path_factory.mktemp("site")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    write_standin(folder, "clf", unet_forward, url)
    for name in ("t64", "t256u"):
        write_standin(folder, name, unet_forward, url, classifier=str(folder / "clf.yaml"))
    weights = standin_inception(folder / "inception.pth")
    images = np.random.default_rng(0).integers(256, size=(6, 16, 16, 3), dtype=np.uint8)
    seen = InceptionExtractor(weights)(images)
    weights.rename(folder / networks.INCEPTION.place.name)
    pool, spatial = statistics(seen.features), statistics(seen.spatial)
    statistics_of_all = {"mu": pool.mean, "sigma": of_full_rank(pool.cov)}
    statistics_of_all |= {"mu_s": spatial.mean, "sigma_s": of_full_rank(spatial.cov)}
    np.savez(folder / "VIRTUAL_standin.npz", arr_0=images, **statistics_of_all)
    yield folder, url
    server.shutdown()


@pytest.fixture
def settings(site, monkeypatch, tmp_path):
    """The words that describe the stand-in, as for any checkpoint of one's own."""
    folder, url = site
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path / "downloads"))

    def of(name):
        model = {"name": "standin", "card": folder / f"{name}.yaml"}
        model |= {"checkpoint": f"${{downloads}}/{name}.pt"}
        reference = {"name": "standin", "url": f"{url}/VIRTUAL_standin.npz", "statistics_n": 6}
        return [
            *["model=adm", *(f"model.{key}={value}" for key, value in model.items())],
            *["reference=adm", *(f"reference.{key}={value}" for key, value in reference.items())],
        ]

    return of


@pytest.fixture(autouse=True)
def published(site, monkeypatch):
    """The stand-in of Inception's weights passes for the published file."""
    name = networks.INCEPTION.place.name
    facts = {"url": f"{site[1]}/{name}", "sha256": file_sha256(site[0] / name)}
    monkeypatch.setattr(networks, "INCEPTION", replace(networks.INCEPTION, **facts))


@pytest.fixture
def get(script):
    return functools.partial(script, download.main)


SCORED = ["metrics.options.allow_few=true", "metrics.options.bootstrap=5"]
# FID takes long at 2048 features, however few the samples: it is asked for where it counts.
NO_FID = ["metrics.scores=[is,precision,recall]", *SCORED]
ONE_ROW = ["~experiment.rows.DDIM", "~experiment.rows.Skipped-Step", "~experiment.rows.Mix"]


def test_from_download_to_scores(command, get, site, settings, tmp_path, capsys):
    # Nothing is there yet, and every command says how to get it.
    outcome = command(sample, *settings("t64")[:4], "num_samples=2", "out=here")
    refused(outcome, "t64.pt is missing: fetch it with")
    out = done(command(reproduce, *settings("t64"), "dry=true", "num_samples=50000"))
    assert "not yet: " in out and "(random weights, batch" in out
    assert "20 cells, 335,000,000 image calls, 275,650,000 as trees" in out

    done(get(*settings("t64")))
    names = {path.name for path in (tmp_path / "downloads").iterdir()}
    assert {"t64.pt", "t64.pt.sha256", "VIRTUAL_standin.npz"} <= names
    assert not [name for name in names if "part" in name]

    # Sampled in two shards, interrupted between them, resumed, and as if undisturbed.
    words = [*settings("t64")[:4], "steps=80", "num_samples=6", "shard_size=3", "batch_size=3"]
    args = [sys.executable, str(ROOT / "sample.py"), *words, "out=cut"]
    interrupt(args, tmp_path, "cut/shards/shard-*.npz")
    assert len(list(tmp_path.glob("cut/shards/shard-*.npz"))) == 1
    done(command(sample, *words, "out=cut"))
    done(command(sample, *words, "out=whole"))
    with np.load("cut/samples.npz") as cut, np.load("whole/samples.npz") as whole:
        assert np.array_equal(cut["arr_0"], whole["arr_0"])
        assert cut["arr_0"].shape == (6, 16, 16, 3)
        assert cut["arr_1"].shape == (6,)
    assert read_manifest(tmp_path / "cut")["config"]["model"]["checkpoint"] == "t64.pt"

    # Scored by ADM's protocol; labels are not compared with Inception's classes.
    score = ["metrics=adm", *settings("t64")[4:]]
    out = done(command(evaluate, "samples=cut", *score, *SCORED))
    record = json.loads((tmp_path / "cut/evaluation-adm.json").read_text())
    assert set(record["scores"]) == {"fid", "sfid", "is", "precision", "recall"}
    assert (record["protocol"], record["extractor"], record["n"]) == ("adm", "inception", 6)
    assert record["options"]["is_chunk_size"] == 5000
    outcome = command(evaluate, "samples=cut", "num_samples=5", *score)
    refused(outcome, "FID with 2048 features needs more than 2048 samples, got 5")
    built = list((tmp_path / "downloads/references").glob("standin-inception-*.npz"))
    assert len(built) == 1  # computed once

    # The reference's own images have, by construction, its very statistics.
    real = [f"samples={site[0]}/VIRTUAL_standin.npz", "out=real.json", *SCORED]
    done(command(evaluate, *real, *score, "metrics.scores=[fid,precision,recall]"))
    scores = json.loads((tmp_path / "real.json").read_text())["scores"]
    assert scores["fid"]["value"] == pytest.approx(0, abs=1e-3 * record["scores"]["fid"]["value"])
    assert scores["precision"]["value"] == scores["recall"]["value"] == 1

    # Another file under the reference's name is another reference.
    batch = tmp_path / "downloads/VIRTUAL_standin.npz"
    with np.load(batch) as file:
        arrays = dict(file)
    np.savez(batch, **arrays | {"arr_0": 255 - arrays["arr_0"]})
    done(command(evaluate, "samples=cut", *score, *NO_FID))
    assert len(list((tmp_path / "downloads/references").glob("standin-inception-*.npz"))) == 2


TABLE1 = ["experiment=table1", *SCORED]
TABLE2 = ["experiment=table2", "experiment.metrics=[precision,recall]", *NO_FID]


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("t64", TABLE1, "DDPM/sFID (inception)/Model `standin`/precision fp32/91.69"),
        ("t256u", TABLE2, "Precision (inception)/| DDPM | 0.66 |"),  # of an unconditional model
    ],
)
def test_tables_1_and_2(command, get, settings, tmp_path, name, table, said):
    done(get(*settings(name)))
    words = [*settings(name), *table, *ONE_ROW, "experiment.steps=[3]", "num_samples=4"]
    out = done(command(reproduce, *words, "shard_size=2", "out=table"))
    for word in (*said.split("/"), "another data set"):
        assert word in out, word
    assert (tmp_path / "table/table.tex").stat().st_size > 0
    assert not list((ROOT / "results").glob("standin*"))


def test_a_figure_of_samples(command, get, settings, tmp_path):
    done(get(*settings("t64")))
    words = [*settings("t64"), "experiment=figure2", "experiment.steps=[2,3]", "num_samples=5"]
    done(command(reproduce, *words, "shard_size=4", "out=figure2"))
    assert Image.open(tmp_path / "figure2/figure.png").width > 500
    assert "| 2 | DDIM (eta 0) | 3 |" in (tmp_path / "figure2/figure.md").read_text()


def test_the_protocol_gate(command, get, settings, tmp_path):
    """A published batch of our own making: ours as published passes, another score fails."""
    done(get(*settings("t64")))
    images = np.random.default_rng(3).integers(256, size=(5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "admnet_standin.npz", arr_0=images)
    words = ["samples=admnet_standin.npz", "metrics=adm", *NO_FID, *settings("t64")[4:]]
    assert command(evaluate, *words)[0] == 0  # nothing is published: no verdict
    record = json.loads((tmp_path / "admnet_standin.evaluation-adm.json").read_text())
    recall = record["scores"]["recall"]["value"]
    for shift, status, verdict in ((0.008, 0, "PASS"), (0.012, 1, "FAIL")):
        published = (
            f"{{admnet_standin: {{url: here, scores: {{adm: {{recall: {recall + shift}}}}}}}}}"
        )
        published = f"+reference.published={published}"
        exit_status, out, err = command(evaluate, *words, published)
        assert (exit_status, f"protocol gate: {verdict}" in out) == (status, True), err
    # Part of a batch, or other settings, is no test of this one, and the command says so.
    for word, reason in (
        ("num_samples=4", "the whole batch"),
        ("metrics.options.is_chunk_size=3", "metrics.options.is_chunk_size=5000"),
        ("metrics.options.ties=out", "metrics.options.ties=in"),
        ("metrics.name=torch_fidelity", "metrics=adm"),
    ):
        status, out, _ = command(evaluate, *words, published, word, "out=part.json")
        assert (status, f"no verdict: it needs {reason}" in out) == (0, True)
    (tmp_path / "admnet_standin.npz").rename(tmp_path / "admnet_imagenet256.npz")
    _, out, _ = command(evaluate, "samples=admnet_imagenet256.npz", *words[1:])
    assert "no verdict: this batch is judged with reference=adm_imagenet256" in out


def test_every_published_batch_is_known_to_the_gate():
    published = golden_json("evaluator_published")
    batches = {url.rsplit("/", 1)[-1].removesuffix(".npz"): url for url in published}
    assert len(batches) == 27
    assert download.published_batches() == batches
    references = {batch: reference_with(batch) for batch in batches}
    for name in set(references.values()):
        scores = composed("evaluate", f"reference={name}").reference.published
        assert set(scores) == {batch for batch in batches if references[batch] == name}
    assert reference_with("mine") is None


def test_a_dry_run_on_a_cpu_finds_cells_in_half_precision(command, get, settings):
    done(get(*settings("t64")))
    words = [*settings("t64"), "model.precision=fp16", "experiment=figure2", "num_samples=4"]
    words += ["experiment.steps=[2]"]
    done(command(reproduce, *words, "out=f"))
    out = done(command(reproduce, *words, "out=f", "dry=true", "device=cpu"))
    assert "calibrating with model.precision=fp32" in out
    assert "Mix 1/1, DDIM 1/1" in out and "0 still to do" in out


def test_classifier_guidance_from_the_command_line(command, get, site, settings, tmp_path):
    done(get(*settings("t64")))
    words = [
        *settings("t64")[:4],
        "sampler=ddpm",
        "steps=5",
        "num_samples=6",
        "guidance=classifier",
    ]
    refused(command(sample, *words, "out=g"), "clf.pt is missing")
    word = f"guidance.checkpoint={site[0]}/clf.pt"
    done(command(sample, *words, word, "guidance.scale=40.0", "out=g"))
    facts = read_manifest(tmp_path / "g")["config"]["guidance"]
    assert (facts["name"], facts["scale"]) == ("classifier", 40.0)
    other = command(sample, *words, word, "guidance.scale=4.0", "out=g")
    refused(other, "guidance.scale is 40.0 there, 4.0 here")
    done(command(sample, *settings("t64")[:4], *words[-4:-1], "out=p"))
    with np.load("g/samples.npz") as guided, np.load("p/samples.npz") as plain:
        assert np.array_equal(guided["arr_1"], plain["arr_1"])
        assert not np.array_equal(guided["arr_0"], plain["arr_0"])
    outcome = command(sample, "model=digits", "guidance=classifier", "out=d")
    refused(outcome, "model digits has no classifier: use guidance=none")


def test_a_card_of_ones_own_and_a_classifier_can_be_asked_for(get, site, settings, tmp_path):
    done(get(str(site[0] / "clf.yaml")))
    assert (tmp_path / "downloads/clf.pt").is_file()
    (tmp_path / "downloads/clf.pt").unlink()
    done(get(*settings("t64"), "guidance=classifier"))
    assert (tmp_path / "downloads/clf.pt").is_file()


def test_download_mistakes(site, get, settings, tmp_path):
    unknown = "nothing to download is called 'adm_imgnet': choose among adm_imagenet"
    refused(get("adm_imgnet"), unknown)
    refused(get("model=nets"), "no model 'nets'")
    for word in ("digits", "model=digits"):
        refused(get(word), "model digits needs no download")
    # A server that sends another checkpoint, or a page: nothing is kept.
    card = tmp_path / "wrong.yaml"
    wrong = [*settings("t64"), f"model.card={card}"]
    for file, said in (
        ("t256u.pt", "does not fit the network: at label_emb.weight"),
        ("t64.yaml", "is damaged or no checkpoint"),
    ):
        card.write_text((site[0] / "t64.yaml").read_text().replace("/t64.pt", f"/{file}"))
        refused(get(*wrong), said)
    assert not (tmp_path / "downloads/t64.pt").exists()
    missing = [*settings("t64"), f"reference.url={site[1]}/no.npz"]
    refused(get(*missing), "the server says 404")


def test_every_published_file_has_a_name(settings, monkeypatch):
    """All that the cards and references mention can be asked for."""
    monkeypatch.undo()
    for name in [*download.models(), *download.published_batches(), *download.NETWORKS]:
        for asset in download.named_assets(name):
            if isinstance(asset, download.HubPipeline | download.HubFiles):
                assert asset.id.count("/") == 1
                continue
            assert asset.url.startswith("https://")
            assert asset.path.parent.name == "downloads"
    names = [asset.path.name for asset in download.named_assets("adm_lsun_bedroom")]
    assert names[:2] == ["lsun_bedroom.pt", "VIRTUAL_lsun_bedroom256.npz"]
    assert names[2:] == ["weights-inception-2015-12-05-6726825d.pth"]
    (classifier,) = download.named_assets("adm_imagenet_classifier")
    assert classifier.url.endswith("/256x256_classifier.pt")
