"""Sets of images on disk."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from files.images import load_samples, write_npz


@pytest.mark.parametrize(
    ("labelled", "digest"),
    [
        (True, "e04f7df6c0225758efc501b20493256bc1c0d7f4fea4574d331f7ba0ebeb894f"),
        (False, "e3e596b5bf1bc3616a31e08e652a6cf94a3f9d822746b24f044f79aac5b589e4"),
    ],
)
def test_a_stream_of_blocks_has_the_recorded_bytes(tmp_path, labelled, digest):
    """samples.npz is the same file for ever, by which scores are found again."""
    rng, blocks = np.random.default_rng(0), []
    for n in (7, 7, 3):
        images = rng.integers(256, size=(n, 5, 4, 3), dtype=np.uint8)
        blocks.append({"arr_0": images} | ({"arr_1": np.arange(n)} if labelled else {}))
    path = tmp_path / "samples.npz"
    write_npz(path, 17, blocks)
    samples = load_samples(path)
    assert isinstance(samples.images, np.memmap)  # 10 GB need no memory
    assert np.array_equal(samples.images, np.concatenate([b["arr_0"] for b in blocks]))
    labels = [*range(7), *range(7), *range(3)] if labelled else None
    assert (samples.labels.tolist() if labelled else samples.labels) == labels
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    with pytest.raises(ValueError, match="but 14 came"):
        write_npz(tmp_path / "short.npz", 17, blocks[:2])
