"""Memory that runs out: in whatever words, wherever it strikes, and once for all columns."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_generate import CountingNetwork, backbone, cell, difference, make, same_files

from eval.extractors import Extractor
from experiments.dry_run import calibrate
from experiments.generate import generate
from models.memory import Room, TooLittleMemory, ran_out

# As they were said, by which class, and where.
WORDS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has..."),
    "CUDA, another way": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be..."),
    "CUDA's driver": RuntimeError("CUDA driver error: out of memory"),
    "HIP": RuntimeError("HIP out of memory. Tried to allocate 1024.00 MiB"),
    "XPU": RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
    "SYCL": RuntimeError(
        "level_zero backend failed with error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
    ),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, other: 1.2 MB)"),
    "Metal": RuntimeError("Invalid buffer size: failed to allocate private MTLBuffer for size 4"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuDNN's choice": RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    "cuDNN's engine": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuBLAS": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    "a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 400 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "a CPU, Windows": RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 4"
    ),
    "more than a machine has": RuntimeError(
        "Storage size calculation overflowed with sizes=[1, 4, 1000000000, 1000000000]"
    ),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "NumPy": np._core._exceptions._ArrayMemoryError((4, 4), np.dtype(float)),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}
OTHERS = [
    RuntimeError("expected scalar type Half but found Float"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory is what a user wrote here"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("words", WORDS)
def test_what_says_that_memory_ran_out(words):
    assert ran_out(WORDS[words])
    hidden = RuntimeError("a compiler failed")
    hidden.__cause__ = WORDS[words]
    assert ran_out(hidden)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_what_does_not(error):
    assert not ran_out(error)


class Small:
    """Fails with an error when it is asked for more than `room` at once; remembers what it did."""

    def __init__(self, room: int, error: BaseException):
        self.room, self.error, self.sizes, self.tries = room, error, [], 0

    def __call__(self, count: int) -> None:
        self.tries += 1
        if count > self.room:
            raise self.error
        self.sizes.append(count)


@pytest.mark.parametrize("words", ["CUDA", "cuDNN", "a CPU"])
@pytest.mark.parametrize("where", ["sampling", "decoding", "noise", "condition"])
def test_a_batch_is_halved_wherever_memory_runs_out(tmp_path, monkeypatch, where, words):
    a, b = cell(tmp_path / "a"), cell(tmp_path / "b", batch_size=16)
    make(a)
    small = Small(3, WORDS[words])
    model = backbone()
    network, decode = model.network, model.decode
    if where == "sampling":
        model = backbone(lambda x, t, y: (small(len(x)), network(x, t, y))[1])
    elif where == "decoding":
        model = backbone(decode=lambda x: (small(len(x)), decode(x))[1])
    elif where == "condition":
        model = backbone(embed=lambda labels: (small(len(labels)), labels)[1])
    else:
        from experiments import generate as module

        noise = module.noise_of
        monkeypatch.setattr(
            module, "noise_of", lambda c, m, ids: (small(len(ids)), noise(c, m, ids))[1]
        )
    assert generate([b], model)
    assert max(small.sizes) <= 3 and small.tries - len(small.sizes) <= 3
    assert difference(a, b).max() <= 1


def test_decoding_that_needs_more_memory_samples_nothing_twice(tmp_path):
    small, network = Small(3, WORDS["cuDNN"]), CountingNetwork()
    model = backbone(network)
    model = dataclasses.replace(model, decode=lambda x: (small(len(x)), backbone().decode(x))[1])
    c, undisturbed = cell(tmp_path, batch_size=16), CountingNetwork()
    assert generate([c], model)
    assert make(cell(tmp_path / "b", batch_size=16), network=undisturbed)
    assert network.calls == undisturbed.calls
    assert same_files(c, cell(tmp_path / "b"))


def test_a_batch_that_fits_is_kept_for_the_next_column(tmp_path):
    small = Small(3, WORDS["CUDA"])
    network = CountingNetwork()
    model = backbone(lambda x, t, y: (small(len(x)), network(x, t, y))[1])
    for name in ("mix", "skipped", "ddim"):
        assert generate([cell(tmp_path, name, batch_size=16)], model)
    assert small.tries - len(small.sizes) == 3  # 16, 8, 4: once


def test_too_little_for_one_is_an_error_with_the_remedy(tmp_path):
    small = Small(0, WORDS["cuBLAS"])
    model = backbone(decode=lambda x: small(len(x)))
    with pytest.raises(TooLittleMemory, match=r"too little memory for a batch of one: use a lower"):
        generate([cell(tmp_path)], model)


def test_other_errors_are_not_taken_for_it(tmp_path):
    small = Small(0, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        generate([cell(tmp_path)], backbone(lambda x, t, y: small(len(x))))


class Means(Extractor):
    """The mean of every image, on a device with little memory."""

    name, num_features = "means", 1

    def __init__(self, small: Small):
        super().__init__("0" * 64, "cpu")
        self.small = small

    def forward(self, x):
        self.small(len(x))
        return {"features": x.float().mean(dim=(1, 2, 3))[:, None]}


def test_evaluation_halves_its_batch_and_keeps_it():
    words = "cuBLAS"
    images = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 1), dtype=np.uint8)
    right = Means(Small(999, WORDS[words]))(images).features
    extractor = Means(Small(7, WORDS[words]))
    for _ in range(2):
        assert np.array_equal(extractor(images).features, right)
    assert extractor.small.tries - len(extractor.small.sizes) == 3  # 50, 25, 12: once
    assert extractor.batch_size == 50  # by which processes share the images
    with pytest.raises(ValueError, match="too little memory for a batch of one: use device=cpu"):
        Means(Small(0, WORDS[words]))(images)


def test_a_dry_run_measures_what_fits():
    small, network = Small(3, WORDS["MPS"]), CountingNetwork()
    model = backbone(lambda x, t, y: (small(len(x)), network(x, t, y))[1])
    assert calibrate(model, 16)[1] == 2


def test_parts_follow_each_other_and_cover_everything():
    done = []
    small = Small(4, WORDS["Python"])

    def work(part):
        small(part.stop - part.start)
        done.append((part.start, part.stop))
        return part.start

    results = list(Room("go").batches(11, 10, work, "cpu"))
    assert done == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    assert results == [0, 2, 4, 6, 8, 10]
    assert list(Room("go").batches(0, 10, work, "cpu")) == []


LIMITED = """
import resource, sys, torch
from pathlib import Path
from test_generate import SCHEDULE, cell
from experiments.dry_run import calibrate
from experiments.generate import generate
from files.media import Images
from models.backbone import Backbone, to_uint8
torch.set_num_threads(1)
def network(x, t, y):
    torch.empty(len(x), 2**24)  # 64 MiB a sample
    return x, None
model = Backbone(network, SCHEDULE, (1, 6, 5), 10, True, "0" * 64, to_uint8, Images((6, 5, 1)))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
generate([cell(Path(sys.argv[1]), n=8, batch_size=8, shard_size=8)], model)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
def test_memory_that_really_runs_out_on_a_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/experiments", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory with batch_size=8: going on with 4" in done.stdout
