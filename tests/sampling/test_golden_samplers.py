"""Every state and every network call of 145 recorded runs of the samplers' own public codes.

diff-sampler, ER-SDE-Solver, Restart, k-diffusion and diffusers, in float64, on a mixture of three
Gaussians whose exact denoiser is known.  The file holds one array a field, the runs one after another;
`python tests/golden_samplers.py FOLDER` compares all runs of a folder.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import GOLDEN, golden_json
from golden_samplers import TOLERANCE, Run, built, difference, main, why_no_builder

RECORDED = golden_json("samplers_plans")
MIXTURE = {name: np.array(values) for name, values in RECORDED["denoiser"].items()}


def runs() -> dict[str, Run]:
    with np.load(GOLDEN / "samplers_plans.npz") as file:
        arrays = {name: file[name] for name in file.files}
    found, at = {}, dict.fromkeys(arrays, 0)
    for case in RECORDED["cases"]:
        fields = {}
        for name, length in case["lengths"].items():
            fields[name] = arrays[name][at[name] : at[name] + length]
            at[name] += length
        found[case["id"]] = Run(case, fields, MIXTURE)
    return found


RUNS = runs()


@pytest.mark.parametrize("id", RUNS)
def test_every_state_and_every_call(id):
    run = RUNS[id]
    assert not why_no_builder(run)
    assert difference(run, built(run)) <= TOLERANCE


@pytest.fixture
def folder(tmp_path):
    """Some of these runs as a folder of the long command's; diffusers of any version will do."""
    few = [run for run in RUNS.values() if run.case["source"] != "diffusers"][::6]
    (tmp_path / "denoiser.json").write_text(json.dumps({"mix": RECORDED["denoiser"]}))
    cases = [{**run.case, "dist": "mix"} for run in few]
    (tmp_path / "some.json").write_text(json.dumps({"cases": cases}))
    arrays = {f"{r.case['id']}/{name}": a for r in few for name, a in r.fields.items()}
    np.savez(tmp_path / "some.npz", **arrays)
    return tmp_path


def test_the_command_counts_what_is_equal_and_notices_what_is_not(folder, monkeypatch, capsys):
    def counted():
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["golden_samplers.py", str(folder)])
    status, out = counted()
    assert status == 0 and "13 runs, 13 of samplers that we have; 0 comparisons differ" in out
    with np.load(folder / "some.npz") as file:
        arrays = dict(file)
    name = next(name for name in arrays if name.endswith("/xs"))
    arrays[name] = arrays[name].copy()
    arrays[name][2] += 1e-8
    np.savez(folder / "some.npz", **arrays)
    status, out = counted()
    assert status == 1 and "DIFFERS builder" in out and "0 comparisons differ" not in out
