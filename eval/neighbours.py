"""Nearest neighbours of many points and the balls that reach to them, exactly and in little memory.

The distances of N x M points cost 2 N M F operations, which float32 does at twice the speed of
float64 or more.  It is only a filter here: every pair whose float32 bounds leave open on which
side of a radius it lies is computed again in float64, as the sum of squared differences, whose
relative error is below F 2^-52, and each decision that depends on it is made there.  (Only where
so many pairs are left open that a tile costs less as a whole, products in float64 decide.)

Bounds.  Let a, b be float64 points, u = 2^-24, and p = |a|^2, q = |b|^2.  A sum of F + 1 float32
terms, in any order and with or without fused operations, errs by at most (F + 1) u / (1 - (F + 1) u)
of the sum of their magnitudes (Higham 2002, section 4.2), which is q + 2 |a||b| <= p + 2 q here.
Rounding the points and adding p and the margins below are a dozen more relative errors of u.
Hence with g = (F + 16) u / (1 - (F + 16) u) the error of p + q - 2 a.b is below 2 g (p + q); what
underflows adds less than TINY.  Subtracting a common centre and scaling by a power of two keep
distances and keep these bounds small where features have a large mean.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

TILE = 2**23  # distances held at a time: 32 MiB in float32
BLOCK = 2**17  # numbers in a block of float64 rows: they stay in a processor's cache
DENSE = 32  # computing single pairs costs up to so many times their share of a whole tile
TINY = 2.0**-80  # beside squared norms that are scaled to at most 1
LARGEST = torch.finfo(torch.float32).max


class Rounded(NamedTuple):
    """Centred and scaled points in float32, with what bounds their distances.

    points [N, F]; `low` [N] is the squared norm less its margin, `slack` [N] twice the margin.
    Distances are `scale` times the squared ones of the points that these were made from.
    """

    points: Tensor
    low: Tensor
    slack: Tensor
    scale: float

    def rows(self, rows: slice | Tensor) -> "Rounded":
        return Rounded(self.points[rows], self.low[rows], self.slack[rows], self.scale)


@contextmanager
def float32_products() -> Iterator[None]:
    """No TF32 or bfloat16 inside of float32 products, whatever this process has set."""
    products: list[Any] = [torch.backends.cuda.matmul]
    products.append(torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # made at run time
    before = [backend.fp32_precision for backend in products]
    try:
        for backend in products:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(products, before, strict=True):
            backend.fp32_precision = precision


def covered(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which points lie in a ball around a point of the other set: bool [N] and bool [M].

    x [N, F], y [M, F] in float32 or float64, on one device.  A ball reaches to the k-th nearest
    other point of its set, which belongs to it.  First result: the points of x in a ball of y;
    second: those of y in a ball of x.
    """
    with torch.autocast(x.device.type, enabled=False), float32_products():
        return _in_balls(x, y, _radii(x, k), _radii(y, k))


def _in_balls(x: Tensor, y: Tensor, x_radii: Tensor, y_radii: Tensor) -> tuple[Tensor, Tensor]:
    """As `covered`, given the squared radii [N] and [M]; all distances are met once."""
    a, b = _rounded([x, y])
    of_x = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    of_y = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    for rows in _tiles(len(x), len(y)):
        part = a.rows(rows)
        low = _lower_bounds(part, b)
        high = torch.add(low, part.slack[:, None]).add_(b.slack)
        of_x[rows], near = _settled(low, high, y_radii * a.scale, of_x[rows])
        _recheck(of_x[rows], x[rows], y, near, y_radii)
        of_y, near = _settled(low.T, high.T, x_radii[rows] * a.scale, of_y)
        _recheck(of_y, y, x[rows], near, x_radii[rows])
    return of_x, of_y


def _settled(
    low: Tensor, high: Tensor, radii: Tensor, inside: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Points that are inside for certain, and the pairs (point, centre) that may yet put one there.

    low, high [P, C] bound distances, radii [C] are the centres'; inside [P] is what was known
    before.
    """
    inside = inside | (high <= (radii * (1 - 1e-6)).float()).any(dim=1)
    near = low <= (radii * (1 + 1e-6)).float()
    points, centres = (near & ~inside[:, None]).nonzero(as_tuple=True)
    return inside, (points, centres)


def _recheck(
    inside: Tensor, points: Tensor, centres: Tensor, near: tuple[Tensor, Tensor], radii: Tensor
) -> None:
    """Enter into `inside` the points of the pairs that float64 finds inside."""
    i, j = near
    inside[i[_distances(points, centres, i, j) <= radii[j]]] = True


# --- Radii ----------------------------------------------------------------------------


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distances to the k-th nearest other point, float64 [N]."""
    n, device = len(x), x.device
    (a,) = _rounded([x])
    low, index = _nearest(a, min(2 * k + 2, n))
    # No k-th nearest distance is larger than the k-th least upper bound.
    limit = _kth(low + a.slack[:, None] + a.slack[index], k).clamp(max=LARGEST)
    near = low <= limit[:, None]
    distances = torch.full(low.shape, torch.inf, dtype=torch.float64, device=device)
    distances[near] = _distances(x, x, near.nonzero()[:, 0], index[near])
    radii = _kth(distances, k)
    # Points with so many at about the same distance that one left out might be among the nearest.
    crowded = (low[:, -1] <= limit).nonzero()[:, 0]
    for some in _tiles(len(crowded), n):
        rows = crowded[some]
        low = _lower_bounds(a.rows(rows), a)
        low[torch.arange(len(rows), device=device), rows] = torch.inf
        i, j = (low <= limit[rows, None]).nonzero(as_tuple=True)
        distances = torch.full(low.shape, torch.inf, dtype=torch.float64, device=device)
        distances[i, j] = _distances(x[rows], x, i, j)
        radii[rows] = _kth(distances, k)
    return radii


def _kth(distances: Tensor, k: int) -> Tensor:
    """[R]: the k-th least of distances [R, W]."""
    return distances.kthvalue(k, dim=1).values


def _nearest(a: Rounded, m: int) -> tuple[Tensor, Tensor]:
    """[N, m]: the m least lower bounds of distances to other points, ascending, and whose they are.

    Each pair is computed once: a tile of rows and the points from there on serves both.
    """
    n, device = len(a.points), a.points.device
    least = torch.full((n, m), torch.inf, device=device)
    index = torch.zeros((n, m), dtype=torch.int64, device=device)

    def enter(rows: slice, low: Tensor, first: int) -> None:
        found = low.topk(min(m, low.shape[1]), largest=False)
        values = torch.cat([least[rows], found.values], dim=1)
        places = torch.cat([index[rows], found.indices + first], dim=1)
        best = values.topk(m, largest=False)
        least[rows], index[rows] = best.values, places.gather(1, best.indices)

    for rows in _tiles(n, n):
        size = rows.stop - rows.start
        low = _lower_bounds(a.rows(rows), a.rows(slice(rows.start, n)))
        low[:, :size].fill_diagonal_(torch.inf)
        enter(rows, low, rows.start)
        if rows.stop < n:
            enter(slice(rows.stop, n), low[:, size:].T.contiguous(), rows.start)
    return least, index


# --- Parts of a set -------------------------------------------------------------------


class Parts(NamedTuple):
    """Shares of y that parts of x cover: of the two halves [R, 2] and the four quarters [R, 4] that
    each of R partitions makes of it."""

    halves: Tensor
    quarters: Tensor


def parts_covering(x: Tensor, y: Tensor, k: int, quarter_of: Tensor) -> Parts:
    """As the second result of `covered`, for parts of x alone; it serves standard errors only.

    `quarter_of` int64 [R, N] says of every partition to which quarter, 0 to 3, a point belongs (4:
    to none); quarters 0 and 1 are a half, 2 and 3 the other.  Distances are those of float32.
    A part's radii are found among the 32 k nearest points of x.
    """
    with torch.autocast(x.device.type, enabled=False), float32_products():
        a, b = _rounded([x, y])
        low, index = _nearest(a, min(32 * k, len(x) - 1))
        halves, quarters = (
            torch.stack([_radii_within(low, index, part, k) for part in parts])
            for parts in (quarter_of // 2, quarter_of)
        )
        furthest = quarters.masked_fill(quarter_of == 4, -torch.inf).amax(dim=0)
        return _covering(a, b, halves, quarters, quarter_of, furthest)


def _radii_within(low: Tensor, index: Tensor, part: Tensor, k: int) -> Tensor:
    """[N]: distances to the k-th nearest point of the same part; at most the furthest in `low`."""
    same = (part[index] == part[:, None]).cumsum(dim=1) >= k
    first = torch.where(same.any(dim=1), same.int().argmax(dim=1), low.shape[1] - 1)
    return low.gather(1, first[:, None])[:, 0]


def _covering(
    a: Rounded, b: Rounded, halves: Tensor, quarters: Tensor, quarter_of: Tensor, furthest: Tensor
) -> Parts:
    """The shares, given the radii [R, N] in both kinds of parts and the largest of each point."""
    count, m = len(quarter_of), len(b.points)
    hits = [torch.zeros(count, p, m, dtype=torch.bool, device=b.low.device) for p in (3, 5)]
    for rows in _tiles(m, len(a.points)):
        low = _lower_bounds(b.rows(rows), a)
        j, i = (low <= furthest).nonzero(as_tuple=True)
        distance = low[j, i]
        for r, quarter in enumerate(quarter_of):
            for kind, radii, part in ((0, halves, quarter // 2), (1, quarters, quarter)):
                inside = distance <= radii[r, i]
                hits[kind][r, part[i[inside]], j[inside] + rows.start] = True
    shares = [hit[:, :-1].double().mean(dim=2) for hit in hits]
    return Parts(*shares)


# --- Distances ------------------------------------------------------------------------


def _rounded(sets: Sequence[Tensor]) -> list[Rounded]:
    """Sets of points in float32 around a centre that they share, the largest norm about 1."""
    centre = torch.stack([x.mean(dim=0, dtype=torch.float64) for x in sets]).mean(dim=0)
    norms = [
        torch.cat([(x[rows].double() - centre).square().sum(1) for rows in _blocks(x)])
        for x in sets
    ]
    largest = float(torch.stack([norm.max() for norm in norms]).max().sqrt())
    factor = 2.0 ** -math.frexp(largest)[1]  # a power of two, so that scaling rounds nothing
    terms = (len(centre) + 16) * 2.0**-24
    relative = 2 * terms / (1 - terms)
    result = []
    for x, norm in zip(sets, norms, strict=True):
        points = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for rows in _blocks(x):
            points[rows] = (x[rows].double() - centre) * factor
        squares = norm * factor**2
        margin = relative * squares + TINY
        result.append(Rounded(points, (squares - margin).float(), 2 * margin.float(), factor**2))
    return result


def _lower_bounds(a: Rounded, b: Rounded) -> Tensor:
    """float32 [len(a), len(b)] at or below the squared distances; + slack of both: at or above."""
    tile = torch.addmm(b.low[None], a.points, b.points.T, alpha=-2)
    return tile.add_(a.low[:, None])


def _distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """float64 [P]: squared distances of the points a[i] and b[j]."""
    if DENSE * len(i) > len(a) * len(b):
        return _all_distances(a, b)[i, j]
    size = max(1, BLOCK // a.shape[1])
    pairs = zip(i.split(size), j.split(size), strict=True)
    return torch.cat([(a[s].double() - b[t].double()).square().sum(1) for s, t in pairs])


def _all_distances(a: Tensor, b: Tensor) -> Tensor:
    """float64 [len(a), len(b)] from products; what is not above its own rounding is 0.

    Points that are alike so keep their distance of 0, as by differences.  The centre is one of the
    points, so that those of a lattice stay on one, where products round nothing and ties are ties.
    """
    centre = a[0].double()
    left = a.double() - centre
    p = left.square().sum(1)[:, None]
    columns = []
    for rows in _blocks(b):
        right = b[rows].double() - centre
        q = right.square().sum(1)
        tile = torch.addmm(q[None], left, right.T, alpha=-2).add_(p)
        noise = (a.shape[1] + 16) * 2.0**-52
        columns.append(tile.masked_fill_(tile <= noise * (p + q), 0.0))
    return torch.cat(columns, dim=1)


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of x that have about 8 BLOCK numbers each."""
    step = max(1, 8 * BLOCK // x.shape[1])
    return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))


def _tiles(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows such that a tile of all columns has at most TILE entries, or one row."""
    step = max(1, TILE // columns)
    slices = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    yield from tqdm(slices, desc="distances", leave=False, delay=2)
