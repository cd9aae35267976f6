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


def covered(x: Tensor, y: Tensor, k: int, groups: int) -> tuple[Tensor, Tensor]:
    """Which points lie in a ball around a point of the other set: bool [N] and bool [1 + G, M].

    x [N, F], y [M, F] in float32 or float64, on one device.  A ball reaches to the k-th nearest
    other point of its set, which belongs to it.  First result: the points of x in a ball of y.
    Second: those of y in a ball of x, in row 0; in row g > 0 as if x lacked its points g - 1,
    g - 1 + G, ... (no such rows if G = 1).
    """
    with torch.autocast(x.device.type, enabled=False), float32_products():
        return _in_balls(x, y, _radii(x, k, groups), _radii(y, k, 1))


def _in_balls(x: Tensor, y: Tensor, x_radii: Tensor, y_radii: Tensor) -> tuple[Tensor, Tensor]:
    """As `covered`, given the squared radii [1 + G, N] and [1, M]; all distances are met once."""
    a, b = _rounded([x, y])
    of_x = torch.zeros(1, len(x), dtype=torch.bool, device=x.device)
    of_y = torch.zeros(len(x_radii), len(y), dtype=torch.bool, device=x.device)
    for rows in _tiles(len(x), len(y)):
        part, radii = a.rows(rows), x_radii[:, rows]
        low = _lower_bounds(part, b)
        high = torch.add(low, part.slack[:, None]).add_(b.slack)
        of_x[:, rows], near = _settled(low, high, y_radii * a.scale, of_x[:, rows])
        _recheck(of_x[:, rows], x[rows], y, near, y_radii)
        radii, first = x_radii[:, rows], rows.start
        of_y, near = _settled(low.T, high.T, radii * a.scale, of_y, first)
        _recheck(of_y, y, x[rows], near, radii)
    return of_x[0], of_y


def _settled(
    low: Tensor, high: Tensor, radii: Tensor, inside: Tensor, first: int = 0
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Points that are inside for certain, and the pairs (point, centre) that may yet put one there.

    low, high [P, C] bound distances, radii [1 + G, C] are the centres', of which the first belongs
    to group `first` mod G; inside [1 + G, P] is what was known before.
    """
    # Without a part of the points no ball is smaller, so that row 0 speaks for all rows but those
    # that lack the centre itself.
    reached = high <= (radii[0] * (1 - 1e-6)).float()
    count = max(1, len(radii) - 1)
    by = torch.stack([reached[:, (g - first) % count :: count].any(dim=1) for g in range(count)])
    certain = by.any(dim=0, keepdim=True)
    if count > 1:
        certain = torch.cat([certain, by.sum(dim=0) - by.int() > 0])
    inside = inside | certain
    near = low <= (radii.amax(dim=0) * (1 + 1e-6)).float()
    points, centres = (near & ~inside.all(dim=0)[:, None]).nonzero(as_tuple=True)
    return inside, (points, centres)


def _recheck(
    inside: Tensor, points: Tensor, centres: Tensor, near: tuple[Tensor, Tensor], radii: Tensor
) -> None:
    """Enter into `inside` the points of the pairs that float64 finds inside."""
    i, j = near
    row, pair = (_distances(points, centres, i, j) <= radii[:, j]).nonzero(as_tuple=True)
    inside[row, i[pair]] = True


# --- Radii ----------------------------------------------------------------------------


def _radii(x: Tensor, k: int, groups: int) -> Tensor:
    """Squared distances to the k-th nearest other point, float64 [1 + G, N] (no more if G = 1).

    Row 0 considers all points; row g > 0 all but those of group g - 1, whose own balls it lacks:
    -inf.  Point i is in group i mod G.  inf where there are fewer than k other points.
    """
    n, device = len(x), x.device
    (a,) = _rounded([x])
    low, index = _nearest(a, min(2 * k + 2, n))
    limit = _limit(low + a.slack[:, None] + a.slack[index], index % groups, k, groups)
    near = low <= limit[:, None]
    distances = torch.full(low.shape, torch.inf, dtype=torch.float64, device=device)
    distances[near] = _distances(x, x, near.nonzero()[:, 0], index[near])
    radii = _kth(distances, index % groups, k, groups)
    # Points with so many at about the same distance that one left out might be among the nearest.
    crowded = (low[:, -1] <= limit).nonzero()[:, 0]
    group = torch.arange(n, device=device)[None] % groups
    for some in _tiles(len(crowded), n):
        rows = crowded[some]
        low = _lower_bounds(a.rows(rows), a)
        low[torch.arange(len(rows), device=device), rows] = torch.inf
        i, j = (low <= limit[rows, None]).nonzero(as_tuple=True)
        distances = torch.full(low.shape, torch.inf, dtype=torch.float64, device=device)
        distances[i, j] = _distances(x[rows], x, i, j)
        radii[:, rows] = _kth(distances, group.expand(len(rows), n), k, groups)
    for g in range(len(radii) - 1):
        radii[1 + g, g::groups] = -torch.inf
    return radii


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


def _limit(high: Tensor, group: Tensor, k: int, groups: int) -> Tensor:
    """[N]: no k-th nearest distance, whichever group is left out, is larger; at most LARGEST."""
    return _kth(high, group, k, groups).amax(dim=0).clamp(max=LARGEST)


def _kth(distances: Tensor, group: Tensor, k: int, groups: int) -> Tensor:
    """[1 + G, R]: the k-th least of distances [R, W], over all and without each group of them."""
    left_out = range(groups if groups > 1 else 0)
    sets = [distances, *(distances.masked_fill(group == g, torch.inf) for g in left_out)]
    return torch.stack([one.kthvalue(k, dim=1).values for one in sets])


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
