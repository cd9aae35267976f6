"""Nearest neighbours of many points and the balls that reach to them, exactly and in little memory.

The distances of N x M points cost 2 N M F operations, which float32 does at twice the speed of
float64 or more.  It is only a filter here: every pair whose float32 bounds leave open on which
side of a radius it lies is computed again in float64, as the sum of squared differences, whose
relative error is below F 2^-52, and each decision that depends on it is made there.  (Where so many pairs
are left open that a tile costs less as a whole, products in float64 decide before, as far as their
own bounds allow.)

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


class Memberships(NamedTuple):
    """Which points of x [N, F] and of y [M, F] lie in whose balls."""

    balls: Tensor  # int64 [N]: in how many balls of y a point of x lies
    reached: Tensor  # bool [M]: whether the ball of a point of y holds a point of x
    covered: Tensor  # bool [M]: whether a point of y lies in a ball of x
    radii: Tensor  # float64 [M]: of y's balls, squared


def memberships(x: Tensor, y: Tensor, k: int, ties: str = "in") -> Memberships:
    """Who lies in whose balls, x and y in float32 or float64 and on one device.

    A ball reaches to the k-th nearest other point of its set; points at that very distance are in it
    or out of it, as `ties` says.
    """
    with torch.autocast(x.device.type, enabled=False), float32_products():
        return _in_balls(x, y, _radii(x, k), _radii(y, k), ties)


def _in_balls(x: Tensor, y: Tensor, x_radii: Tensor, y_radii: Tensor, ties: str) -> Memberships:
    """As `memberships`, given the squared radii [N] and [M]; all distances are met once."""
    a, b = _rounded([x, y])
    balls = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    reached, covered = torch.zeros(2, len(y), dtype=torch.bool, device=x.device)
    for rows in _tiles(len(x), len(y)):
        part = a.rows(rows)
        low = _lower_bounds(part, b)
        high = torch.add(low, part.slack[:, None]).add_(b.slack)
        inside = _decided(low, high, y_radii * a.scale)
        _recheck(inside, x[rows], y, y_radii, ties)
        balls[rows] = inside.known.sum(dim=1)
        reached |= inside.known.any(dim=0)
        inside = _decided(low.T, high.T, x_radii[rows] * a.scale)
        inside.near.logical_and_(~covered[:, None])  # once is enough
        _recheck(inside, y, x[rows], x_radii[rows], ties)
        covered |= inside.known.any(dim=1)
    return Memberships(balls, reached, covered, y_radii)


class _Inside(NamedTuple):
    """bool [P, C]: which points are in which balls for certain, and which may yet be."""

    known: Tensor
    near: Tensor


def _decided(low: Tensor, high: Tensor, radii: Tensor) -> _Inside:
    """What low, high [P, C], which bound distances, say of balls of radii [C]."""
    known = high <= (radii * (1 - 1e-6)).float()
    near = low <= (radii * (1 + 1e-6)).float()
    return _Inside(known, near.logical_and_(~known))


def _recheck(inside: _Inside, points: Tensor, centres: Tensor, radii: Tensor, ties: str) -> None:
    """Enter into `inside.known` the pairs of `inside.near` that float64 finds inside."""
    i, j = inside.near.nonzero(as_tuple=True)
    radii = radii[j]
    if _dense(len(i), points, centres):
        distances, noise = (tile[i, j] for tile in _products(points, centres))
        tie = ((distances - radii).abs() <= 2 * noise) & (noise > 0)
        distances[tie] = _distances(points, centres, i[tie], j[tie])
    else:
        distances = _distances(points, centres, i, j)
    inside.known[i, j] = distances <= radii if ties == "in" else distances < radii


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
        radii[rows] = _crowded_radii(a, x, rows, limit[rows], k)
    return radii


def _crowded_radii(a: Rounded, x: Tensor, rows: Tensor, limit: Tensor, k: int) -> Tensor:
    """Those of some rows, out of all points whose lower bounds are within `limit`."""
    itself = torch.arange(len(rows), device=x.device), rows
    near = _lower_bounds(a.rows(rows), a) <= limit[:, None]
    near[itself] = False
    distances = torch.full(near.shape, torch.inf, dtype=torch.float64, device=x.device)
    if _dense(int(near.sum()), x[rows], x):
        products, noise = _products(x[rows], x)
        products[itself] = torch.inf
        near = products - noise <= _kth(products + noise, k)[:, None]
        distances[near] = 0.0  # as is any pair without noise
        near &= noise > 0
    i, j = near.nonzero(as_tuple=True)
    distances[i, j] = _distances(x[rows], x, i, j)
    return _kth(distances, k)


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
    """Shares of y that have to do with parts of x: the two halves [R, 2] and the four quarters [R, 4]
    that each of R partitions makes of it.

    `halves` and `quarters` are of points of y in a ball of the part, `reached` of points whose own
    ball holds a point of the half.
    """

    halves: Tensor
    quarters: Tensor
    reached: Tensor


def parts_covering(x: Tensor, y: Tensor, k: int, quarter_of: Tensor, radii: Tensor) -> Parts:
    """As `covered` and `reached` of `memberships`, for parts of x alone; for standard errors only.

    `quarter_of` int64 [R, N] says of every partition to which quarter, 0 to 3, a point belongs (4:
    to none); quarters 0 and 1 are a half, 2 and 3 the other.  radii [M] are y's, squared.  Distances
    are those of float32.  A part's radii are found among the 32 k nearest points of x.
    """
    with torch.autocast(x.device.type, enabled=False), float32_products():
        a, b = _rounded([x, y])
        low, index = _nearest(a, min(32 * k, len(x) - 1))
        halves, quarters = (
            torch.stack([_radii_within(low, index, part, k) for part in parts])
            for parts in (quarter_of // 2, quarter_of)
        )
        balls = _Balls(halves, quarters, (radii * b.scale).float())
        return _covering(a, b, balls, quarter_of)


class _Balls(NamedTuple):
    """Radii [R, N] of x in both kinds of parts, and [M] of y."""

    halves: Tensor
    quarters: Tensor
    of_y: Tensor


def _radii_within(low: Tensor, index: Tensor, part: Tensor, k: int) -> Tensor:
    """[N]: distances to the k-th nearest point of the same part; at most the furthest in `low`."""
    small = part.to(torch.int8)  # bytes are gathered several times faster
    found = (small.take(index) == small[:, None]).cumsum(dim=1, dtype=torch.int16)
    before = (found < k).sum(dim=1).clamp(max=low.shape[1] - 1)
    return low.gather(1, before[:, None])[:, 0]


def _covering(a: Rounded, b: Rounded, balls: _Balls, quarter_of: Tensor) -> Parts:
    """The shares, given all radii."""
    count, m = len(quarter_of), len(b.points)
    furthest = balls.quarters.masked_fill(quarter_of == 4, -torch.inf).amax(dim=0)
    halves, quarters, reached = (
        torch.zeros(count, parts + 1, m, dtype=torch.bool, device=b.low.device)
        for parts in (2, 4, 2)
    )
    for rows in _tiles(m, len(a.points)):
        low = _lower_bounds(b.rows(rows), a)
        j, i = (low <= furthest).nonzero(as_tuple=True)
        distance, place = low[j, i], j + rows.start
        near_j, near_i = (low <= balls.of_y[rows, None]).nonzero(as_tuple=True)
        for r, quarter in enumerate(quarter_of):
            for hits, radii, part in (
                (halves, balls.halves, quarter // 2),
                (quarters, balls.quarters, quarter),
            ):
                inside = distance <= radii[r, i]
                hits[r, part[i[inside]], place[inside]] = True
            reached[r, quarter[near_i] // 2, near_j + rows.start] = True
    return Parts(*(hits[:, :-1].double().mean(dim=2) for hits in (halves, quarters, reached)))


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
    """float64 [P]: squared distances of the points a[i] and b[j], as sums of squared differences.

    Equal pairs have equal distances, whichever call computes them, so that ties are ties: all blocks
    have one shape, on which the order of a sum may depend.
    """
    size, count = max(1, BLOCK // a.shape[1]), len(i)
    i, j = (torch.nn.functional.pad(index, (0, -count % size)) for index in (i, j))
    pairs = zip(i.split(size), j.split(size), strict=True)
    sums = [(a[s].double() - b[t].double()).square().sum(1) for s, t in pairs]
    return torch.cat(sums)[:count] if sums else torch.empty(0, dtype=torch.float64, device=a.device)


def _dense(pairs: int, a: Tensor, b: Tensor) -> bool:
    """Whether a whole tile of products costs less than so many single distances."""
    return DENSE * pairs > len(a) * len(b)


def _products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [len(a), len(b)]: squared distances from products, and a bound of their error.

    It is 0 of points that are both the centre, which is one of them: of sets that are all alike.
    """
    centre = a[0].double()
    left = a.double() - centre
    p = left.square().sum(1)[:, None]
    tiles, noises = [], []
    for rows in _blocks(b):
        right = b[rows].double() - centre
        q = right.square().sum(1)
        tiles.append(torch.addmm(q[None], left, right.T, alpha=-2).add_(p))
        noises.append((a.shape[1] + 16) * 2.0**-52 * (p + q))
    return torch.cat(tiles, dim=1), torch.cat(noises, dim=1)


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of x that have about 8 BLOCK numbers each."""
    step = max(1, 8 * BLOCK // x.shape[1])
    return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))


def _tiles(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows such that a tile of all columns has at most TILE entries, or one row."""
    step = max(1, TILE // columns)
    slices = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    yield from tqdm(slices, desc="distances", leave=False, delay=2)
