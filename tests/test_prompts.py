"""Prompts as files and lists have them: what is sampled is what is scored."""

from __future__ import annotations

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.config import prompts_of
from files.prompts import read_prompts, write_prompts


@pytest.mark.parametrize(
    "content",
    [
        b"a cat\na dog\n",
        b"a cat\na dog",
        b"\xef\xbb\xbfa cat\r\na dog\r\n",  # as Windows' editor saves it
        b"  a cat \r a dog\t\r",
        "\u2003a cat\na dog\u00a0\n".encode(),
    ],
)
def test_files_of_any_system(tmp_path, content):
    (tmp_path / "p.txt").write_bytes(content)
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n", "line 1 is blank"),
        (b"\xef\xbb\xbf", "it is empty"),
        (b"a cat\n \t\na dog\n", "line 2 is blank"),
        (b"a cat\n\n\n", "line 2 is blank"),
        (b"a cat\na\x0bdog\n", "line 2 has a line break"),
        ("a cat\u2028a dog\n".encode(), "line 1 has a line break"),
        ("a cat\n".encode("utf-16"), "is not UTF-8 text"),
        (b"a \xe9t\xe9\n", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_prompts(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "p.txt")


LISTS = [
    ["a cat\nsits", "a dog"],
    ["a cat\r\nsits"],
    ["a cat\rsits", "a dog"],
    ["a cat\u2028sits"],
    ["a cat\x0csits", "a\x85b"],
    ["", "a dog"],
    ["a dog", "  "],
    [None, "a dog"],
    [True],
    [["a cat"], "a dog"],
    [],
]


@pytest.mark.parametrize("entries", LISTS, ids=repr)
def test_a_list_is_refused_where_a_file_of_it_would_be(entries):
    with pytest.raises(ValueError, match="prompts=") as caught:
        prompts_of(OmegaConf.create(entries))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", [7, 2.5, True])
def test_a_setting_that_is_no_prompts(setting):
    with pytest.raises(ValueError, match="must be a file or a list"):
        prompts_of(setting)


def test_what_is_sampled_is_what_is_scored(tmp_path):
    """Whatever list is taken comes back from the file that lies beside the samples."""
    rng = np.random.default_rng(0)
    letters = list("ab \t\n\r\x0b\x1c\x85\u2028\ufeff\u00e9\u200b\0;,'$\\<")
    taken = 0
    for _ in range(500):
        entries = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(2)]
        try:
            sampled = prompts_of(OmegaConf.create(entries))
        except ValueError:
            continue
        write_prompts(tmp_path / "prompts.txt", sampled)
        assert read_prompts(tmp_path / "prompts.txt") == sampled
        taken += 1
    assert taken > 50
