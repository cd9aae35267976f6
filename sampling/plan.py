"""Samplers as tables of numbers.

Every sampler here is the same loop with other coefficients.  A row jumps from t to s (s = -1 is
the end, the clean image unless the schedule says otherwise):

    x_s = x * x_t + sum_j x0[j] * x0_(k-j) + sum_(j >= 1) eps[j] * eps_(k-j) + noise * z,

where z ~ N(0, I), x0_k is the clean image that network call k implies, clipped and guided or not,
eps_k = (x_t - alpha x0_k) / sigma, and j looks back at the calls before.  Most rows go down, s < t,
and call the network.  A row that does not (s >= t, as Restart and churn have them) calls it only
where it has a coefficient x0[0].

A `Plan` is the table of these coefficients in float64.  `builders.py`, `multistep.py` and
`detours.py` make them.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .schedule import Array

FORMAT, VERSION = "skipped_step.plan", 1


class Row(NamedTuple):
    """One jump of a plan as plain floats; the fields are the columns of `Plan`, and `visit`.

    `x0` and `eps` are as long as this row needs.  `visit` counts the rows before that went up
    with noise past this t: with it every z of a plan is another one, and a path of Brownian noise is
    walked once.
    """

    t: float
    s: float
    x: float
    x0: tuple[float, ...]
    eps: tuple[float, ...]
    noise: float
    noise_high: float
    gradient: float
    gradient_high: float
    alpha: float
    sigma: float
    eps_scale: float = 1.0
    visit: int = 0

    @property
    def calls(self) -> bool:
        """Whether this row calls the network."""
        return self.s < self.t or self.x0[0] != 0


COLUMNS = Row._fields[:-1]
PAST = ("x0", "eps")  # those that look back
UNBOUNDED = ("noise_high", "gradient", "gradient_high")  # NaN where there is none, perhaps infinite
OPTIONAL = ("eps_scale",)  # the last ones, of which a file says nothing where they are 1


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """A sampler for one schedule and one grid: float64 columns, all of shape [rows] but two.

    `t`, `s`: the network's time before and after the jump; the last `s` is -1, the end.
    `x`, `x0` [rows, K], `eps` [rows, K], `noise`: the coefficients of the update above.  Column j
    of `x0` and `eps` looks back at the j-th call before; eps[:, 0] is 0, since a row's own eps is
    a combination of x and x0.  Columns at the end that no row uses are dropped.

    A learned variance interpolates the noise per pixel: with the network's v in [-1, 1],
    coefficient noise^(1-f) * noise_high^f, f = (v + 1) / 2 (interpolation of log variances).
    `noise_high` is NaN where the variance is fixed.

    `gradient` is the classifier-guidance coefficient: x0_hat += gradient * grad log p(y | x_t),
    after clipping.  It shifts eps in DDIM and the mean in ancestral sampling, exactly as
    guided-diffusion does; `gradient_high` is its other bound under a learned variance.

    `alpha` and `sigma` at `t` convert what the network says to x0 and eps.  `eps_scale` divides its
    eps before x0 is limited, which is the denoiser's business (see `scale_eps`).  The first x is
    `start` times standard normal noise.

    The columns are copies that cannot be written to: `dataclasses.replace` makes another plan.
    """

    name: str
    t: Array
    s: Array
    x: Array
    x0: Array
    eps: Array
    noise: Array
    noise_high: Array
    gradient: Array
    gradient_high: Array
    alpha: Array
    sigma: Array
    eps_scale: Array = field(default_factory=lambda: np.ones(1))  # of all rows
    start: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.t)
        if self.eps_scale.shape == (1,):
            object.__setattr__(self, "eps_scale", np.repeat(self.eps_scale, n))
        shapes = {name: getattr(self, name).shape for name in COLUMNS}
        narrow = all(shapes[name] == (n,) for name in COLUMNS if name not in PAST)
        wide = all(len(s) == 2 and s[0] == n and s[1] for s in (shapes["x0"], shapes["eps"]))
        if n == 0 or not narrow or not wide:
            raise ValueError("a plan needs at least one row and columns of equal length")
        if self.s[-1] != -1:
            raise ValueError("a plan must end at the clean image, s = -1")
        if not (self.t >= 0).all() or not np.array_equal(self.t[1:], self.s[:-1]):
            raise ValueError("a plan must jump between neighbouring nodes, each row to the next t")
        if self.eps[:, 0].any():
            raise ValueError("a row's own eps is a combination of x and x0: eps[:, 0] must be 0")
        for name in COLUMNS:
            column = getattr(self, name)
            column = np.array(_trimmed(column) if name in PAST else column, dtype=np.float64)
            column.flags.writeable = False  # `rows` are made once
            object.__setattr__(self, name, column)
        self._check_look_back()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied by what it was made from, so that a copy is as fixed and as small."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def _check_look_back(self) -> None:
        before: NDArray[np.int64] = np.cumsum(self.calls) - self.calls
        for name in PAST:
            column = getattr(self, name)
            for j in range(1, column.shape[1]):
                if (column[before < j, j] != 0).any():
                    raise ValueError(
                        f"a row of a plan looks back at {j} calls, more than were made"
                    )

    @property
    def calls(self) -> NDArray[np.bool_]:
        """Of every row, whether it calls the network."""
        called: NDArray[np.bool_] = (self.s < self.t) | (self.x0[:, 0] != 0)
        return called

    @property
    def look_back(self) -> int:
        """How many calls back the farthest-looking row looks."""
        return max(self.x0.shape[1], self.eps.shape[1]) - 1

    def __len__(self) -> int:
        """Network calls (NFE): the rows but those that only add noise on their way up."""
        return int(self.calls.sum())

    def rows(self) -> Iterator[Row]:
        """The rows as plain Python floats, so that the loop never touches the device."""
        return iter(self._rows)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        columns |= {name: [_short(values) for values in columns[name]] for name in PAST}
        rows: list[Row] = []
        ups: list[tuple[float, float]] = []  # the stretches that noise has gone up before
        for row in map(Row, *columns.values()):
            if ups and row.noise:
                row = row._replace(visit=sum(low <= row.t <= high for low, high in ups))
            if row.noise and row.s >= row.t:
                ups.append((row.t, row.s))
            rows.append(row)
        return tuple(rows)

    def __repr__(self) -> str:
        return f"Plan({self.name}, NFE={len(self)})"

    def __str__(self) -> str:
        past = [f"x0[{j}]" for j in range(2, self.x0.shape[1])]
        past += [f"eps[{j}]" for j in range(1, self.eps.shape[1])]
        scaled = ["eps_scale"] if (self.eps_scale != 1).any() else []
        names = ["t", "s", "x", "x0", "x0_previous", *past, *scaled, "noise"]
        lines = ["".join(f"{name:>12}" for name in names)]
        for row in self.rows():
            t, s = f"{row.t:g}", "clean" if row.s == -1 else f"{row.s:g}"
            noise = f"{row.noise:.6f}"
            if not math.isnan(row.noise_high):
                noise += f"..{row.noise_high:.6f}"
            x0 = row.x0 + (0.0,) * (max(2, self.x0.shape[1]) - len(row.x0))
            eps = row.eps + (0.0,) * (self.eps.shape[1] - len(row.eps))
            values = (row.x, *x0, *eps[1:], *(getattr(row, name) for name in scaled))
            numbers = "".join(f"{v:12.6f}" for v in values)
            lines.append(f"{t:>12}{s:>12}{numbers}    {noise}")
        return f"{self.name}, {len(self)} network calls\n" + "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON, one line a row; `from_json` gives back every bit.

        `eps_scale` stands in the plans alone that have one.
        """
        head = {"format": FORMAT, "version": VERSION, "name": self.name, "start": self.start}
        columns = COLUMNS if (self.eps_scale != 1).any() else COLUMNS[: -len(OPTIONAL)]
        rows = [
            json.dumps(dict(zip(columns, map(_plain, row), strict=False)), allow_nan=False)
            for row in self.rows()
        ]
        return json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join(rows) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that `to_json` wrote.  Raises ValueError, one line, for what is no plan."""
        try:
            content = json.loads(text, object_pairs_hook=_without_twins)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is no JSON: {error}") from None
        _check_keys("a plan", content, ("format", "version", "name", "start", "rows"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(
                f"the plan's format is {content['format']!r}, version {content['version']!r}: "
                f"this release reads {FORMAT!r}, version {VERSION}"
            )
        rows = content["rows"]
        if not isinstance(rows, list) or not isinstance(content["name"], str):
            raise ValueError("a plan's name must be text, and its rows a list")
        optional = [n for n in OPTIONAL if any(isinstance(row, dict) and n in row for row in rows)]
        kept = [name for name in COLUMNS if name not in OPTIONAL or name in optional]
        for row in rows:
            _check_keys("a row of a plan", row, kept)
        columns = {name: _column(name, [row[name] for row in rows]) for name in kept}
        start = _number("start", content["start"])
        _check_values({**columns, "start": np.array([start])})
        return cls(name=content["name"], start=start, **columns)


def read_plan(path: str | Path) -> Plan:
    """The plan in a file that `show_plan=FILE.json` wrote.  Raises ValueError for what is none."""
    remedy = "`python sample.py ... show_plan=FILE.json` writes one"
    try:
        return Plan.from_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no plan at {path}: {remedy}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no plan: {error}; {remedy}") from None


def _trimmed(column: Array) -> Array:
    """Without the columns at the end that are 0, the first one kept."""
    used = np.flatnonzero(column.any(axis=0))
    return column[:, : max(1, used[-1] + 1 if len(used) else 0)]


def _short(values: list[float]) -> tuple[float, ...]:
    n = len(values)
    while n > 1 and values[n - 1] == 0:
        n -= 1
    return tuple(values[:n])


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: these become words."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value if math.isfinite(value) else str(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or value in ("nan", "inf", "-inf")
    ):
        raise ValueError(
            f"{name} of a plan must be a number, 'nan', 'inf' or '-inf', got {value!r}"
        )
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} of a plan is too large a number") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose later keys would else silently take the place of equal ones before."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twin!r} stands twice in a plan or in a row of it: leave one out")
    return content


def _check_values(columns: dict[str, Array]) -> None:
    """Raise ValueError for numbers from a file that no sampler has, by the first row with one."""
    for name, column in columns.items():
        right = np.isfinite(column)
        if name in ("start", "eps_scale"):
            right, wanted = right & (column > 0), "above 0 and finite"
        elif name in ("alpha", "sigma", "noise_high"):
            right, wanted = right & (column >= 0), "at least 0 and finite"
        else:
            wanted = "finite"
        if name in UNBOUNDED:
            right |= np.isnan(column) | (np.isinf(column) & (name != "noise_high"))
        if not right.all():
            row = int(np.flatnonzero(~right.reshape(len(column), -1).all(axis=1))[0])
            where = "" if name == "start" else f" in row {row + 1}"
            raise ValueError(f"{name} of a plan must be {wanted}{where}")


def _column(name: str, values: list[Any]) -> Array:
    if name not in PAST:
        return np.array([_number(name, v) for v in values])
    if not all(isinstance(v, list) and v for v in values):
        raise ValueError(f"{name} of a plan must be lists of numbers")
    padded = zip_longest(*values, fillvalue=0.0)
    return np.array([[_number(name, v) for v in column] for column in padded]).T


def _check_keys(what: str, content: Any, known: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a JSON object with {', '.join(known)}")
    if wrong := sorted({*content} ^ {*known}):
        raise ValueError(f"{what} has {', '.join(known)}: unknown or missing: {', '.join(wrong)}")


def splice(head: Plan, tail: Plan, cutoff: float) -> Plan:
    """The rows of `head` while t >= cutoff, then those of `tail` from its first with t < cutoff.

    A row that corrects the jump before it (s = t) stays with that jump.

    Raises ValueError if the two do not meet, i.e. if the last row taken from `head` does not
    end where the first row taken from `tail` begins, and if a row of the tail looks back at calls
    that are others in the head: its coefficients would be wrong.
    """
    above, below = _first_below(head, cutoff), _first_below(tail, cutoff)
    parts: dict[str, Any] = {
        name: _joined(getattr(head, name)[:above], getattr(tail, name)[below:]) for name in COLUMNS
    }
    if not np.array_equal(parts["t"][1:], parts["s"][:-1]):
        raise ValueError(
            f"cannot splice {head.name} and {tail.name} at cutoff {cutoff:g}: "
            "the head must end at a timestep of the tail"
        )
    if above:
        _check_history(head, tail, above, below)
    name = f"splice({head.name}, {tail.name}, cutoff={cutoff:g})"
    return Plan(name=name, start=(head if above else tail).start, **parts)


def _first_below(plan: Plan, cutoff: float) -> int:
    """The first row with t < cutoff that corrects no row before it."""
    for i in np.flatnonzero(plan.t < cutoff):
        if plan.s[i] != plan.t[i]:
            return int(i)
    return len(plan.t)


def _joined(a: Array, b: Array) -> Array:
    """One column on top of another, the narrower one widened by zeros."""
    if a.ndim == 1:
        return np.concatenate([a, b])
    width = max(a.shape[1], b.shape[1])
    return np.concatenate([np.pad(c, ((0, 0), (0, width - c.shape[1]))) for c in (a, b)])


def _check_history(head: Plan, tail: Plan, above: int, below: int) -> None:
    """Raise ValueError where a row of the tail looks back at calls that the head has not made."""

    def levels(plan: Plan, rows: slice) -> list[tuple[float, float, float]]:
        kept = plan.calls[rows]
        columns = (c[rows][kept].tolist() for c in (plan.t, plan.alpha, plan.sigma))
        return list(zip(*columns, strict=True))

    # Later rows look back at no more than the tail's own calls.
    first = below + np.flatnonzero(tail.calls[below:])[: tail.look_back]
    if not len(first):
        return
    theirs, ours = levels(head, slice(above)), levels(tail, slice(below))
    for done, i in enumerate(first):
        farthest = max(np.flatnonzero(column[i]).max(initial=0) for column in (tail.x0, tail.eps))
        for j in range(1, farthest - done + 1):
            if theirs[-j:][:1] != ours[-j:][:1]:
                raise ValueError(
                    f"cannot splice {head.name} and {tail.name}: the row of the tail at "
                    f"t = {tail.t[i]:g} looks back at calls that the head makes elsewhere"
                )


def eps_scale_of(given: Any, whose: str = "") -> tuple[float, float] | None:
    """k and b of the option `eps_scale`, b or (k, b); None for one that changes nothing.

    Raises ValueError for anything else.
    """
    k, b = given if isinstance(given, Sequence) and len(given) == 2 else (0.0, given)
    k, b = (v.item() if hasattr(v, "item") else v for v in (k, b))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (k, b))
    if given is not None and not numbers:
        raise ValueError(
            f"{whose}eps_scale must be a number b or a list [k, b] for k t + b, got {given!r}"
        )
    return None if given is None or (k, b) == (0, 1) else (float(k), float(b))


def scale_eps(plan: Plan, k: float, b: float, *, limited: bool = False) -> Plan:
    """The plan with every eps of the network divided by k t + b (Ning et al. 2024, "ES").

    Networks that see their own samples predict too large an eps ("exposure bias").  k = 0 is the
    authors' uniform schedule, b a little above 1; t is the network's time.  (Their code numbers the
    N nodes of the grid 0..N-1 instead: on an even grid their k is ours times (T - 1) / (N - 1).)

    x0 becomes x0 / scale + (1 - 1 / scale) x_t / alpha, a rewrite of coefficients.  Where the
    network's x0 is `limited`, eps is scaled before: the column `eps_scale` tells the denoiser.
    Raises ValueError where the scale is not in 0.001..1000, or alpha is 0.
    """
    scale = np.where(plan.calls, b + k * plan.t, 1.0)
    if not ((scale >= 1e-3) & (scale <= 1e3)).all():  # beyond, float32 overflows
        raise ValueError(
            f"eps_scale must be positive at every timestep, 0.001 to 1000, got k t + b with k = {k:g}, b = {b:g}: "
            "1.004 or [0, 1.004] is usual"
        )
    if (scale == 1).all():
        return plan
    if (plan.alpha[plan.calls] == 0).any():
        raise ValueError(
            "eps_scale needs a schedule that keeps some signal everywhere: leave it out for this model"
        )
    name = f"{plan.name}, eps / {f'({k:g} t + {b:g})' if k else f'{b:g}'}"
    if limited:
        return replace(plan, name=name, eps_scale=plan.eps_scale * scale)
    width = max(plan.x0.shape[1], plan.eps.shape[1])
    x, x0, eps = plan.x.copy(), *(_joined(c, np.zeros((0, width))) for c in (plan.x0, plan.eps))
    calls = np.flatnonzero(plan.calls)
    for i in range(len(plan.t)):
        before = calls[calls < i][::-1]
        for j, at in enumerate([i, *before][:width]):
            more = x0[i, j] * (1 - 1 / scale[at])
            if j == 0:
                x[i] += more / plan.alpha[at]
                x0[i, 0] /= scale[at]
            else:  # x_t there was alpha x0 + sigma eps
                eps[i, j] = eps[i, j] / scale[at] + more * plan.sigma[at] / plan.alpha[at]
    # What a classifier moves is the scaled x0.
    low, high = plan.gradient * scale, plan.gradient_high * scale
    return replace(plan, name=name, x=x, x0=x0, eps=eps, gradient=low, gradient_high=high)
