"""docs/your_model.md: every command of the page, as it stands, on tiny models saved to disk."""

from __future__ import annotations

import importlib
import re
import shlex
import sys

import numpy as np
import pytest
import tiny_pipelines as tiny
import tiny_texts
import torch
from conftest import ROOT, done
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

import reproduce
import sample
from models.adm.flags import read_flags
from models.adm.networks import UNet
from models.dit.backbone import PUBLISHED

PAGE = (ROOT / "docs/your_model.md").read_text()
COMMANDS = {"sample.py": sample, "reproduce.py": reproduce}


def blocks(language: str, section: str) -> str:
    """All blocks of a language in the page's section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, re.S))


def run(command, section: str) -> list[str]:
    """What the section's commands print, each run as a shell would hand it over."""
    outs = []
    for line in blocks("sh", section).splitlines():
        python, script, *words = shlex.split(line)
        assert python == "python"
        outs.append(done(command(COMMANDS[script], *words)))
    return outs


def real_images(folder, size: int):
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(256, size=(80, size, size, 3))):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:03d}.png")


def test_every_command_of_the_page_is_in_a_section_that_is_run():
    sections = (
        "A checkpoint of guided-diffusion, with its flags",
        "A function of yours",
        "A pixel pipeline of diffusers",
        "A text pipeline of diffusers",
        "DiT",
    )
    assert "".join(blocks("sh", s) for s in sections) == "".join(
        re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    )


def test_flags(command, tmp_path):
    section = "A checkpoint of guided-diffusion, with its flags"
    (flags,) = re.findall(r'model\.flags="(.*?)"', blocks("sh", section))
    torch.manual_seed(0)
    torch.save(UNet(**read_flags(flags).network).state_dict(), tmp_path / "mine.pt")
    (out,) = run(command, section)
    assert "16 samples, 25 network calls each: runs/mine/" in out


def test_function(command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    module = blocks("python", "A function of yours")
    path = tmp_path / re.match(r"# (\S+)\n", module)[1]
    path.parent.mkdir()
    path.write_text(module)
    importlib.invalidate_caches()
    torch.manual_seed(0)
    torch.save(importlib.import_module("my_package.my_module").Net(32).state_dict(), "net.pt")
    real_images(tmp_path / "real", 16)
    sampled, table = run(command, "A function of yours")
    assert "16 samples, 25 network calls each: runs/function/" in sampled
    assert all(f"| {row} |" in table for row in ("DDIM", "Skipped-Step", "Mix"))
    assert (tmp_path / "results/mine/table.md").is_file()


def test_pixel_pipeline(command, tmp_path):
    torch.manual_seed(0)
    DDPMPipeline(tiny.pixel_unet(), DDPMScheduler()).save_pretrained(tmp_path / "my-pixels")
    real_images(tmp_path / "real", 8)
    sampled, table = run(command, "A pixel pipeline of diffusers")
    assert "16 samples, 25 network calls each: runs/diffusers/" in sampled
    assert all(f"| {row} |" in table for row in ("DDIM", "Skipped-Step", "Mix"))


def test_text_pipeline(command, tmp_path):
    tiny_texts.sd3(tmp_path / "sd3").rename(tmp_path / "my-text")
    real_images(tmp_path / "real", 16)
    sampled, table = run(command, "A text pipeline of diffusers")
    assert "2 samples, 10 network calls each: runs/diffusers/" in sampled
    assert all(f"| {row} |" in table for row in ("DDIM", "Mix"))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers' own
def test_dit(command, tmp_path, monkeypatch):
    tiny.dit().save_pretrained(tmp_path / "my-dit")
    for name, value in {"num_layers": 1, "num_attention_heads": 1, "sample_size": 8}.items():
        monkeypatch.setitem(PUBLISHED["facebook/DiT-XL-2-256"], name, value)
    sampled, counted = run(command, "DiT")
    assert "4 samples, 25 network calls each (two evaluations a call): runs/dit/" in sampled
    assert "20 cells, 335,000,000 image calls" in counted
