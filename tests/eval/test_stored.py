"""Stored records: made again when they are damaged or stale, and never in the place of another file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FEW, ROOT, done, refused
from PIL import Image

import evaluate
import reproduce
import sample
from eval.records import check_results, load_records, save_records
from eval.reference import Reference
from files.whole import Damaged, read_json, write_json

RUN = ["sampler=ddim", "steps=1", "num_samples=70", "out=run"]
SCORE = [*FEW, "samples=run"]
RECORD = Path("run/evaluation-digits.json")
TABLE = [*FEW, "experiment=table1_small", "num_samples=70", "experiment.steps=[2]", "out=out"]


@pytest.fixture
def scored(command, tmp_path):
    """A run with its record, in the working folder; the record."""
    done(command(sample, *RUN))
    done(command(evaluate, *SCORE))
    return load_records(RECORD)


@pytest.mark.parametrize("damage", ["empty", "cut", "a flipped digit", "no scores", "text"])
def test_a_damaged_record_is_made_again(scored, command, damage):
    whole = RECORD.read_text()
    value = str(scored["scores"]["fid"]["value"])
    changed = value[:-1] + str((int(value[-1]) + 1) % 10)
    texts = {"empty": "", "cut": whole[: len(whole) // 2], "text": '"scores"'}
    texts |= {"a flipped digit": whole.replace(value, changed)}
    texts |= {"no scores": json.dumps({"protocol": "digits", "n": 70})}
    assert texts[damage] != whole
    RECORD.write_text(texts[damage])
    out = done(command(evaluate, *SCORE))
    assert "evaluation-digits.json is damaged" in out and "evaluating again" in out
    assert load_records(RECORD) == scored


def test_a_record_of_before_without_checksum_is_found(scored, command):
    RECORD.write_text(json.dumps(scored, indent=1))
    before = RECORD.stat().st_mtime_ns
    done(command(evaluate, *SCORE))
    assert RECORD.stat().st_mtime_ns == before


def test_a_floor_that_comes_later_or_changes_is_no_stale_record(command, tmp_path):
    images = np.load(ROOT / "models/digits/mnist10k.npz")["images"][..., None]
    for name, first in (("real", 0), ("floor", 1), ("other", 2)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images[first::100])
    done(command(sample, *RUN))
    words = [*SCORE, "reference=custom", "reference.images.path=real.npz"]
    done(command(evaluate, *words))
    first = load_records(RECORD)
    assert first["floor"] is None
    floors = []
    for name in ("floor", "other", "floor"):
        done(command(evaluate, *words, f"reference.floor.path={name}.npz"))
        record = load_records(RECORD)
        assert record["scores"] == first["scores"]
        floors.append(record["floor"])
    assert floors[0] and floors[0] == floors[2] != floors[1]
    written = RECORD.stat().st_mtime_ns
    done(command(evaluate, *words, "reference.floor.path=floor.npz"))
    assert RECORD.stat().st_mtime_ns == written
    np.savez(tmp_path / "floor.npz", arr_0=images[3::100])  # other images of the same name
    done(command(evaluate, *words, "reference.floor.path=floor.npz"))
    assert load_records(RECORD)["floor"] not in floors


@pytest.mark.parametrize("text", ["my notes", '{"name": "mine"}', "[1, 2]", "{"])
def test_what_is_no_record_is_not_overwritten(command, tmp_path, text):
    done(command(sample, *RUN))
    (tmp_path / "mine.json").write_text(text)
    refused(
        command(evaluate, *SCORE, "out=mine.json"), "is no record of scores: choose another out="
    )
    assert (tmp_path / "mine.json").read_text() == text
    refused(command(evaluate, *SCORE, "out=run"), "is a folder: choose out=FILE")


RESULTS = ["records.json", "table.md", "table.csv", "table.tex", "table.png"]


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_not_ours_are_refused_before_the_work(command, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    refused(command(reproduce, *TABLE), "choose another out=")
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert not list(tmp_path.glob("runs/digits/*/shards/*.npz"))


def test_a_damaged_table_is_made_again(command, tmp_path):
    done(command(reproduce, *TABLE))
    path = tmp_path / "out/records.json"
    whole = path.read_text()
    for text in (whole.replace('"Mix"', '"Max"'), ""):
        path.write_text(text)
        with pytest.raises(Damaged, match="remove it and run again"):
            load_records(path)
        done(command(reproduce, *TABLE))
        assert path.read_text() == whole
    for name in RESULTS[2:] + RESULTS[:1]:  # killed when the first of them was written
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out/table.md").write_text("# Any title\n\nModel `digits`, ...")
    done(command(reproduce, *TABLE))
    assert path.read_text() == whole


def test_every_committed_result_is_ours_and_stays_as_it_is(tmp_path):
    paths = list(ROOT.glob("results/*/*/records.json"))
    assert len(paths) > 10
    for path in paths:
        before = path.read_bytes()
        assert check_results(path.parent)
        save_records(path, load_records(path))
        assert path.read_bytes() == before


def test_damaged_features_of_a_floor_or_reference_are_made_again(tmp_path, monkeypatch, capsys):
    from experiments.config import composed, evaluator_of

    monkeypatch.chdir(tmp_path)
    stored = ROOT / "models/digits"
    (path,) = stored.glob("digits-digits-*.npz")
    words = ["samples=x", "reference=digits", f"reference.folder={tmp_path}/copies"]
    copy = tmp_path / "copies" / path.name
    copy.parent.mkdir()
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    copy.write_bytes(content)
    evaluator = evaluator_of(composed("evaluate", *words))
    if (
        evaluator.extractor(evaluator.source.images().images).features.tobytes()
        != Reference.load(path).features.tobytes()
    ):  # on a machine whose last bits are others it would be another reference
        with pytest.raises(Damaged, match="delete it and build the reference again"):
            _ = evaluator.reference
    else:
        assert evaluator.reference.digest[:12] in path.name
        assert copy.read_bytes() == path.read_bytes()
    assert "is damaged" in capsys.readouterr().out


def test_any_flipped_bit_of_a_json_file_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a.json"
    content = {"a": 1, "b": [0.5, "text"], "c": {"d": None}, "e": float("inf")}
    for stored in (content, [{"f": True}, {}]):
        write_json(path, stored)
        whole = path.read_bytes()
        assert read_json(path, "go") == stored
        for place in range(len(whole)):
            for bit in range(8):
                altered = bytes([whole[place] ^ 1 << bit])
                path.write_bytes(whole[:place] + altered + whole[place + 1 :])
                try:
                    assert read_json(path, "go") == stored
                except Damaged:
                    continue
        path.write_bytes(whole)
        written = path.stat().st_mtime_ns
        write_json(path, stored)
        assert path.stat().st_mtime_ns == written


def test_pictures_in_results_are_checked(tmp_path):
    from eval.sheets import Pictures, read_sheets, write_sheets

    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    write_sheets(tmp_path, [Pictures("Mix", 5, images, None, {})])
    (sheet,) = read_sheets(tmp_path)["sheets"].values()
    assert sheet["content"] == (tmp_path / "pictures-5.webp").read_bytes()
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "pictures-5.webp")
    with pytest.raises(Damaged, match=r"pictures-5\.webp is not as it was written\): remove"):
        read_sheets(tmp_path)
    index = {"count": 3, "width": 8, "height": 8, "titles": None}
    index["sheets"] = {"5": {"file": "../../etc/passwd", "rows": []}}
    (tmp_path / "pictures.json").write_text(json.dumps(index))
    with pytest.raises(Damaged, match="which is no sheet"):
        read_sheets(tmp_path)


def test_halves_of_characters_are_damage(tmp_path):
    """They can be read from JSON, and written nowhere: not to a page, a table or a terminal."""
    path = tmp_path / "a.json"
    for text in (r'{"row": "a\ud800b"}', r'[{"cell": {"model": "\uDFFF"}}]'):
        path.write_text(text)
        with pytest.raises(Damaged, match=r"surrogates not allowed\): go"):
            read_json(path, "go")
    path.write_text(r'{"row": "\ud83d\ude42 \\ud800"}')  # a whole one, and a backslash
    assert read_json(path, "go") == {"row": "\U0001f642 \\ud800"}
