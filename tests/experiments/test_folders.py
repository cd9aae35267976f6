"""Folders: files that are not ours stay, what vanishes is made again, and 0 means that it is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import alone, refused, shards
from test_generate import CountingNetwork, cell, interrupted, leftovers, make, same_files, samples

import sample
from experiments.folder import finish, is_complete, read_manifest
from experiments.workers import share, worker

WORDS = ["sampler=ddim", "steps=1", "num_samples=8", "out=out"]


def everything(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, links as what they point to."""
    paths = sorted(p for p in folder.rglob("*") if not p.is_dir())
    links = {str(p): os.readlink(p).encode() for p in paths if p.is_symlink()}
    return {str(p): p.read_bytes() for p in paths if p.is_file()} | links


# --- not ours -------------------------------------------------------------------------------------

FOREIGN = {
    "manifest.json": '{"name": "my web app"}',
    "samples.npz": "mine",
    "grid.png": "mine",
    "prompts.txt": "mine",
    "shards/shard-00000.npz": "mine",
    "shards/shard-00000.json": "{}",
    "png/000000.png": "mine",
    "videos/000000.mp4": "mine",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_and_stays(command, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(FOREIGN[name])
    before = everything(tmp_path)
    refused(command(sample, *WORDS), "choose another out=DIR, or move these files away")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("text", ["[1, 2]", "not json", "{}", '{"config": 1, "version": 2}'])
def test_a_manifest_of_another_program_is_refused_and_stays(command, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text(text)
    refused(command(sample, *WORDS), "holds manifest.json but no manifest of samples")
    assert (tmp_path / "out/manifest.json").read_text() == text


def test_a_broken_link_in_the_place_of_a_file_is_refused(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/samples.npz").symlink_to(tmp_path / "elsewhere.npz")
    refused(command(sample, *WORDS), "holds samples.npz")
    assert not (tmp_path / "elsewhere.npz").exists()


def test_a_folder_in_the_place_of_a_file_is_refused(command, tmp_path):
    (tmp_path / "out/manifest.json").mkdir(parents=True)
    refused(command(sample, *WORDS), "holds manifest.json but no manifest of samples")


def test_files_with_other_names_are_left_alone(tmp_path):
    c = cell(tmp_path)
    (c.folder / "shards").mkdir(parents=True)
    mine = [".part-1-of-my-book.txt", ".part-0123abcd-thesis.txt", ".lock-mydata", "notes.txt"]
    mine += ["shards/.part-0123abcd-data.npz", ".part-manifest.json", ".lock-0-of-1"]
    thesis = tmp_path / "thesis"
    thesis.write_text("a thesis")
    for name in mine[:-1]:
        (c.folder / name).write_text("mine")
    (c.folder / mine[-1]).symlink_to(thesis)
    (c.folder / ".part-0123abcd-grid.png").mkdir()
    ours = [".part-0123abcd-samples.npz", "shards/.part-0123abcd-shard-00001.npz"]
    for name in ours:
        (c.folder / name).write_bytes(b"half")
    make(c)
    assert [(c.folder / name).read_text() for name in mine] == ["mine"] * 6 + ["a thesis"]
    assert (c.folder / ".part-0123abcd-grid.png").is_dir()
    assert not any((c.folder / name).exists() for name in ours)


def test_png_files_show_the_samples_of_the_folder(command, tmp_path):
    from PIL import Image

    words = [*WORDS, "format=png", "seed=1"]
    assert command(sample, *words)[0] == 0
    png = tmp_path / "out/png"
    before = everything(png)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(png / "000003.png")
    (png / "000004.png").write_bytes(b"")
    (png / "000005.png").unlink()
    assert command(sample, *words)[0] == 0
    assert everything(png) == before
    for lost in ("manifest.json", "samples.npz"):  # of another seed, if nothing tells it
        (tmp_path / "out" / lost).unlink()
    shutil.rmtree(tmp_path / "out/shards")
    refused(command(sample, *words[:-1], "seed=2"), "holds grid.png, png but no manifest")
    assert everything(png) == before


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    from files.fetch import fetch

    thesis = tmp_path / "thesis"
    thesis.write_text("a thesis")
    (tmp_path / "x.pt.part.lock").symlink_to(thesis)
    with pytest.raises(ValueError, match="is a link, not a lock of ours: remove it"):
        fetch("http://127.0.0.1:9/x.pt", tmp_path / "x.pt")
    assert thesis.read_text() == "a thesis"


# --- what vanishes or is damaged while samples are made --------------------------------------------


def meanwhile(c, k: int, happen):
    """What happens once, after shard k was written."""
    done = []

    def watch(cells, shard):
        if shard == k and not done:
            done.append(shard)
            happen()

    return watch


HAPPENINGS = {
    "a shard vanishes": lambda c: c.shard(1).unlink(),
    "a shard is cut": lambda c: c.shard(0).write_bytes(c.shard(0).read_bytes()[:-100]),
    "a shard is emptied": lambda c: c.shard(2).write_bytes(b""),
    "the folder vanishes": lambda c: shutil.rmtree(c.folder),
    "the manifest vanishes": lambda c: c.manifest.unlink(),
    "the manifest is cut": lambda c: c.manifest.write_text(c.manifest.read_text()[:30]),
    "the shards vanish": lambda c: shutil.rmtree(c.folder / "shards"),
}


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_what_vanishes_meanwhile_is_made_again(tmp_path, happening):
    a, b = cell(tmp_path / "a"), cell(tmp_path / "b")
    make(a)
    assert make(b, watch=meanwhile(b, 2, lambda: HAPPENINGS[happening](b))) is True
    assert is_complete(b)
    assert same_files(a, b) and leftovers(b) == []


def test_a_link_that_points_elsewhere_meanwhile_ends_whole_or_refused(tmp_path):
    a, b = cell(tmp_path / "a"), cell(tmp_path / "link")
    make(a)
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("one")

    def swap(to: str):
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(to)

    assert make(b, watch=meanwhile(b, 1, lambda: swap("two"))) is True
    assert same_files(a, b)
    swap("one")
    foreign = cell(tmp_path / "other", seed=9)
    make(foreign)
    before = everything(tmp_path / "other")
    third = cell(tmp_path / "link", n=64)
    with pytest.raises(ValueError, match=r"another config \(seed is 9 there"):
        make(third, watch=meanwhile(third, 2, lambda: swap("other")), network=CountingNetwork())
    assert everything(tmp_path / "other") == before


def test_files_that_keep_vanishing_are_an_error(tmp_path):
    c = cell(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"files vanish .* run the same command to continue"
    ):
        make(c, watch=lambda cells, k: c.shard(k).unlink())


def test_of_several_processes_each_makes_its_own_share_and_whatever_is_damaged(tmp_path):
    a, b = cell(tmp_path / "a"), cell(tmp_path / "b")
    make(a)
    assert make(b, rank=1, world=2) is False
    spoil = meanwhile(b, 2, lambda: b.shard(1).write_bytes(b"x"))
    assert make(b, rank=0, world=2, watch=spoil) is True
    assert same_files(a, b)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5 is no process of WORLD_SIZE=2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is no process of WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 is no process of WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 is no process of WORLD_SIZE=0"),
        ({"RANK": "1"}, "RANK=1 is no process of WORLD_SIZE=1"),
        ({"RANK": "abc"}, "RANK must be an integer, got 'abc': `unset RANK`"),
        (
            {"RANK": "0", "WORLD_SIZE": ""},
            "WORLD_SIZE must be an integer, got '': `unset WORLD_SIZE`",
        ),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID is not: `unset SLURM_STEP_NUM_TASKS`"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "2"}, "SLURM_PROCID=2 is no process"),
    ],
)
def test_a_process_that_is_none_of_those_at_work_ends_in_one_line(
    command, monkeypatch, environment, said
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(command(sample, *WORDS), said)
    with pytest.raises(ValueError, match="unset"):
        worker()
    with pytest.raises(ValueError, match="unset"):
        share(0, 2)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (0.0, 1), (True, 2)])
def test_a_rank_beyond_the_last_is_refused_by_the_library_too(tmp_path, rank, world):
    with pytest.raises(ValueError, match="rank must be an integer"):
        make(cell(tmp_path), rank=rank, world=world)
    assert list(tmp_path.iterdir()) == []


# --- larger and smaller ----------------------------------------------------------------------------


def test_a_smaller_run_that_ends_later_takes_nothing_away(tmp_path):
    """A slow node asks for 20 of the samples, of which another makes 50 meanwhile."""
    small, large, right = cell(tmp_path, n=20), cell(tmp_path, n=50), cell(tmp_path / "b")
    make(right)
    assert make(small, watch=meanwhile(small, 0, lambda: make(large)))
    assert read_manifest(large.folder)["num_samples"] == 50
    assert is_complete(large) and same_files(large, right)


def test_a_smaller_run_that_joins_while_a_larger_ends_takes_nothing_away(tmp_path, monkeypatch):
    """The larger one ends at every point of the smaller one's last moments."""
    import experiments.folder as module

    right = cell(tmp_path / "right")
    make(right)
    for point in ("_check_largest", "_write_grid", "_write_manifest", "read_facts"):
        small = cell(tmp_path / point, n=20)
        large = cell(tmp_path / point, n=50)
        original, done = getattr(module, point), []

        def late(*args, original=original, done=done, large=large):
            if not done:
                done.append(1)
                if any(large.folder.glob("shards/*1.npz")):
                    make(large)
                else:
                    done.clear()
            return original(*args)

        monkeypatch.setattr(module, point, late)
        assert make(small)
        monkeypatch.undo()
        assert make(large, network=CountingNetwork(fail_at=1))  # nothing is left to sample
        assert same_files(large, right), point


def test_a_finished_folder_with_a_spoilt_manifest_is_not_made_smaller(tmp_path):
    large, small = cell(tmp_path, n=50), cell(tmp_path, n=20)
    make(large)
    before = shards(large.folder)
    large.manifest.write_text(large.manifest.read_text()[:200])
    assert make(small, network=CountingNetwork(fail_at=1))
    assert read_manifest(large.folder)["num_samples"] == 50
    assert shards(large.folder) == before


def test_growth_that_is_interrupted_keeps_what_is_there(tmp_path):
    make(cell(tmp_path, n=20))
    large = cell(tmp_path, n=64)
    interrupted(large)
    assert len(samples(large)[0]) == 20
    with pytest.raises(ValueError, match="another config"):
        make(cell(tmp_path, n=64, steps=11))


# --- a bit that flips in a finished folder ---------------------------------------------------------


def test_any_file_of_a_finished_folder_is_mended(tmp_path):
    """One altered byte in each of many places: the same command makes it as it was."""
    c, dice = cell(tmp_path), np.random.default_rng(0)
    make(c)
    before = everything(tmp_path)
    for name in ("samples.npz", "grid.png", "manifest.json"):
        path = c.folder / name
        whole = path.read_bytes()
        for place in dice.integers(len(whole), size=25):
            altered = bytes([whole[place] ^ 1 << int(dice.integers(8))])
            path.write_bytes(whole[:place] + altered + whole[place + 1 :])
            assert make(c, network=CountingNetwork(fail_at=1)) is True
            now = path.read_bytes()
            if now != whole and name == "samples.npz":  # a date in the zip file, say
                with np.load(path) as file:
                    assert np.array_equal(file["arr_0"], samples(c)[0])
            elif now != whole:
                assert json.loads(now) == json.loads(whole)
            path.write_bytes(whole)
    assert finish(c)
    assert everything(tmp_path) == before


def test_what_is_whole_is_not_written_again(tmp_path):
    """Also on a disk where nothing may be written."""
    alone(sample, *WORDS, cwd=tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    alone(sample, *WORDS, cwd=tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_another_job_that_begins_in_between_is_joined(tmp_path, monkeypatch):
    """It writes its manifest after this one has looked for it, and before this looks for the rest."""
    other, here = cell(tmp_path / "other"), cell(tmp_path / "run")
    interrupted(other)
    seen = []

    def begun_meanwhile(folder):
        seen.append(read_manifest(folder))
        if seen == [None]:
            here.folder.mkdir(parents=True)
            shutil.copy(other.manifest, here.manifest)
        return seen[-1]

    monkeypatch.setattr("experiments.folder.read_manifest", begun_meanwhile)
    make(here)
    assert seen[0] is None and is_complete(here)
