"""Which points lie in whose balls: every decision is that of float64, whatever filters before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval import manifold, neighbours
from eval.neighbours import float32_products, memberships, parts_covering


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances in float64, the plain way: equal pairs have equal ones."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.stack([((row - b) ** 2).sum(1) for row in a])


def balls(points: np.ndarray, centres: np.ndarray, k: int, ties: str = "in") -> np.ndarray:
    """[P, C]: which points lie in a centre's ball, which reaches to its k-th nearest other one."""
    among = distances(centres, centres)
    np.fill_diagonal(among, np.inf)
    radii = np.inf if len(among) <= k else np.sort(among)[:, k - 1]
    among = distances(points, centres)
    return among <= radii if ties == "in" else among < radii


def inside(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Which points lie in any ball."""
    return balls(points, centres, k).any(1)


def assert_same(x: np.ndarray, y: np.ndarray, k: int) -> None:
    for ties in ("in", "out"):
        got = memberships(torch.from_numpy(x), torch.from_numpy(y), k, ties)
        of_y = balls(x, y, k, ties)
        plain = of_y.sum(1), of_y.any(0), balls(y, x, k, ties).any(1)
        for ours, theirs in zip(got[:3], plain, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)


def case(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Sets of all kinds: sizes, types, clusters, large means, duplicates, lattices full of ties."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(12, 500, size=2)
    size, k = int(rng.integers(1, 130)), int(rng.choice([1, 3, 5]))
    x, y = rng.normal(size=(n, size)) * rng.uniform(0.4, 1.2), rng.normal(size=(m, size))
    if seed % 2:
        centres = 3 * rng.normal(size=(7, size))
        x, y = x + centres[rng.integers(7, size=n)], y + centres[rng.integers(7, size=m)]
    if seed % 3 == 0:  # ties, which float64 computes exactly
        x, y = np.round(2 * x), np.round(2 * y)
    elif seed % 5 == 0:
        x, y = x + 1000, y + 1000
    if seed % 4 == 0:
        x[: n // 3] = x[0]
        y[-5:] = x[0]
    return *(z.astype([np.float32, np.float64][seed // 2 % 2]) for z in (x, y)), k


@pytest.mark.parametrize("seed", range(20))
def test_decisions_are_those_of_plain_float64(seed, monkeypatch):
    x, y, k = case(seed)
    assert_same(x, y, k)
    monkeypatch.setattr(neighbours, "TILE", 2000)  # many tiles, of a few rows each
    monkeypatch.setattr(neighbours, "BLOCK", 512)
    assert_same(x, y, k)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_near_ties_that_float32_cannot_tell(dtype, offset):
    """Pairs far from each other, and a point of the other set at a radius of one, or just off it."""
    rng = np.random.default_rng(1)
    count, size = 60, 16
    far = rng.integers(-200, 200, size=(count, size)) + offset
    step = np.zeros((count, size))
    step[np.arange(count), rng.integers(size, size=count)] = 4.0
    off = np.tile([0.0, 2.0**-13, -(2.0**-13)], count // 3)[:, None]
    off = off if dtype == np.float32 else off * 2.0**-12
    centres = np.concatenate([far, far + step]).astype(dtype)  # each the other's nearest, at 4
    points = (far - step * (1 + off)).astype(dtype)
    gaps = np.abs(np.diag(distances(points, far)) - 16)
    assert gaps.max() < 2.0**-24 * distances(far, far).mean()  # what one float32 addition may add
    for ties, wanted in (("in", off[:, 0] <= 0), ("out", off[:, 0] < 0)):
        found = memberships(torch.from_numpy(points), torch.from_numpy(centres), 1, ties)
        np.testing.assert_array_equal(found.balls.numpy() > 0, wanted)
    assert_same(points, centres, 1)
    assert_same(centres, points, 1)


def test_sets_so_crowded_that_all_is_computed_again(monkeypatch):
    """Half of the points nearly alike: float32 cannot rank their neighbours."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 20))
    x[:150] = x[0] + 1e-6 * rng.normal(size=(150, 20))
    y = x[rng.permutation(300)][:200] + 3e-7 * rng.normal(size=(200, 20))
    assert_same(x, y, 3)
    monkeypatch.setattr(neighbours, "DENSE", 0)  # pair by pair
    assert_same(x, y, 3)
    assert_same(np.zeros((40, 5)), np.zeros((30, 5)), 3)
    among, noise = neighbours._products(torch.from_numpy(x), torch.from_numpy(x))
    assert (np.abs(among.numpy() - distances(x, x)) <= noise.numpy()).all()
    assert noise[0, 0] == 0 and noise.max() < 1e-11


@pytest.mark.parametrize("n", [2, 4, 5, 11, 25])
def test_tiny_sets(n):
    rng = np.random.default_rng(n)
    for k in (1, 3):
        if k < n:
            x, y = rng.normal(size=(n, 6)), rng.normal(size=(30, 6))
            assert_same(x, y, k)


@pytest.mark.parametrize("n", [203, 64])  # three are over, or none
def test_parts_cover_what_they_do_alone(n, monkeypatch):
    """Every half and quarter of every partition: recall computed from these samples alone."""
    monkeypatch.setattr(neighbours, "TILE", 2000)
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 5)), rng.normal(size=(80, 5)) + 0.5
    quarter_of = manifold._quarters(n)[:7]
    assert [np.bincount(q)[:4].tolist() for q in quarter_of] == [[n // 4] * 4] * 7
    assert len({tuple(q) for q in quarter_of}) == 7
    radii = memberships(*map(torch.from_numpy, (x, y)), 3).radii
    got = parts_covering(*map(torch.from_numpy, (x, y)), 3, torch.from_numpy(quarter_of), radii)
    for r, quarter in enumerate(quarter_of):
        for part in range(4):
            assert got.quarters[r, part] == pytest.approx(inside(y, x[quarter == part], 3).mean())
        for half in range(2):
            assert got.halves[r, half] == pytest.approx(
                inside(y, x[quarter // 2 == half], 3).mean()
            )
            held = balls(x[quarter // 2 == half], y, 3).any(0).mean()
            assert got.reached[r, half] == pytest.approx(held)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("size", [1, 64, 3000])
def test_bounds_hold(size, scale):
    """They hold the exact distances, and are not much wider than float32 rounds."""
    rng = np.random.default_rng(size)
    x = rng.normal(size=(50, size)) + 10
    x[10:20] = x[0] * (1 + 1e-6 * rng.normal(size=(10, size)))
    y = np.concatenate([x[:15], 100 * rng.normal(size=(20, size))])
    x, y = (torch.from_numpy(scale * z) for z in (x, y))
    a, b = neighbours._rounded([x, y])
    low = neighbours._lower_bounds(a, b).double()
    slack = a.slack[:, None].double() + b.slack
    exact = (x[:, None] - y).square().sum(2) * a.scale
    assert (low <= exact).all() and (exact <= low + slack).all()
    norms = a.points.double().square().sum(1)[:, None] + b.points.double().square().sum(1)
    assert (slack <= 5 * (size + 16) * 2.0**-24 * norms + 1e-20).all()


def test_memory_is_bounded_and_pairs_are_met_once(monkeypatch):
    n, m, sizes = 183, 61, []
    original = neighbours._lower_bounds

    def watched(a, b):
        sizes.append(len(a.points) * len(b.points))
        return original(a, b)

    monkeypatch.setattr(neighbours, "_lower_bounds", watched)
    monkeypatch.setattr(neighbours, "TILE", 999)
    x, y = (np.random.default_rng(size).normal(size=(size, 30)) for size in (n, m))
    assert_same(x, y, 3)
    assert max(sizes) <= 999
    assert sum(sizes) < 2 * (0.6 * (n * n + m * m) + n * m)  # of both kinds of ties


def test_reduced_precision_of_the_process_stays_outside():
    """A user's TF32, bfloat16 or autocast changes no decision, and is there again afterwards."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(400, 64)).astype(np.float32) for _ in range(2))
    wide = torch.randn(300, 512, generator=torch.Generator().manual_seed(0))
    exact = wide.double() @ wide.double().T
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with float32_products():
            assert ((wide @ wide.T).double() - exact).abs().max() < 1e-3
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "medium"
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(x, y, 3)
    finally:
        torch.set_float32_matmul_precision(before)
