"""Files are UTF-8 whatever the locale says, and what is printed never ends a command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

import sample
from files.prompts import read_prompts

SCRIPT = """
import sys
from pathlib import Path

from eval.protocols import reference_with
from experiments.config import composed, prompts_of
from experiments.endings import reported
from files.prompts import write_prompts
from models.adm.cards import card_names
from report.page import build_page
from report.paper import Paper
from scripts.prepare_coco import read_list

folder, root = Path(sys.argv[1]), Path(sys.argv[2])
prompts = prompts_of(str(folder / "mine.txt"))
write_prompts(folder / "prompts.txt", prompts)
write_prompts(folder / "prompts.txt", prompts)
assert read_list(folder / "list.csv")[0][0]["caption"] == prompts[0]
assert card_names() and reference_with("admnet_imagenet256") == "adm_imagenet256"
page = build_page(root / "results")
(folder / "page.html").write_text(page, encoding="utf-8")
for path in sorted((root / "results/paper").glob("table*.yaml")):
    assert Paper.load(path)["rows"]
reported(lambda: print(prompts[0], "\\u00b1"))
"""


@pytest.mark.parametrize("names", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}])
def test_an_ascii_locale(tmp_path, names):
    (tmp_path / "mine.txt").write_text("ein B\u00e4r \u6570\na dog\n", encoding="utf-8")
    (tmp_path / "list.csv").write_text("caption\nein B\u00e4r \u6570\n", encoding="utf-8")
    env = {**os.environ, **names, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, ROOT], cwd=ROOT, env=env, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()
    latin = "PYTHONIOENCODING" in names
    said = b"ein B\xe4r \\u6570 \xb1" if latin else "ein B\u00e4r \u6570 \u00b1".encode()
    assert run.stdout.strip() == said
    assert read_prompts(tmp_path / "prompts.txt") == ["ein B\u00e4r \u6570", "a dog"]
    assert "\u00b1" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_hostile_name_in_an_error_is_printed_plainly(command):
    status, _, err = command(sample, "model=digits", "sampler=ddim", "steps=2", "out='a\x1b[31m'")
    assert "\x1b" not in err or status == 0
    status, _, err = command(sample, "model=digits", "model.checkpoint='x\x1b]0;y\x07'")
    assert status == 2 and "\x1b" not in err and "\x07" not in err
