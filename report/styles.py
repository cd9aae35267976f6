"""Sampler -> colour, line and marker: the one map of every figure, page and notebook.

A sampler looks alike wherever it is drawn, also without colour: twelve colours that stay apart for
the colour-blind (tests/report/test_styles.py), and what shares one differs in line and marker.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

SOLID: tuple[float, ...] = ()
DASHED, DASH_DOT, LONG = (5.0, 2.0), (7.0, 2.0, 1.5, 2.0), (8.0, 3.0)
DASH_DOT_DOT, DOTTED = (7.0, 2.0, 1.5, 2.0, 1.5, 2.0), (1.0, 1.6)
SHORT, UNEVEN = (2.5, 1.5), (10.0, 2.0, 4.0, 2.0)

MARKERS = {  # matplotlib's letter -> the outline of an SVG path within -1..1, y down
    "o": "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0Z",
    "s": "M-.9 -.9H.9V.9H-.9Z",
    "^": "M0 -1L1 .8H-1Z",
    "v": "M0 1L1 -.8H-1Z",
    "<": "M-1 0L.8 -1V1Z",
    ">": "M1 0L-.8 -1V1Z",
    "D": "M0 -1.1L1.1 0L0 1.1L-1.1 0Z",
    "d": "M0 -1.2L.65 0L0 1.2L-.65 0Z",
    "P": "M-.35 -1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "X": "M-.5 -1L0 -.5L.5 -1L1 -.5L.5 0L1 .5L.5 1L0 .5L-.5 1L-1 .5L-.5 0L-1 -.5Z",
    "*": "M0 -1.2L.28 -.38L1.14 -.37L.45 .15L.71 .97L0 .48L-.71 .97L-.45 .15L-1.14 -.37L-.28 -.38Z",
    "p": "M0 -1L.95 -.31L.59 .81H-.59L-.95 -.31Z",
    "h": "M0 -1L.87 -.5V.5L0 1L-.87 .5V-.5Z",
}


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: hex colours for light and dark ground, dash and marker.

    `dash` is lengths on, off, on, ... in widths of the line, () for a solid one; `marker` is
    matplotlib's letter, a key of MARKERS, or "" for none.
    """

    colour: str
    dark: str
    dash: tuple[float, ...]
    marker: str

    def plot(self) -> dict[str, Any]:
        """Arguments of matplotlib's plot and errorbar."""
        line = (0, self.dash) if self.dash else "-"
        return {"color": self.colour, "linestyle": line, "marker": self.marker or None}

    def clashes(self, other: "Style") -> bool:
        """Whether the two could be taken for each other on the same axes."""
        alike = self.dash == other.dash or self.marker == other.marker
        return self.colour == other.colour and alike


# The first eight are further apart than the rest: they meet most often.
COLOURS = {  # on white, on black
    "blue": ("#0154c3", "#3c87ec"),
    "green": ("#06874c", "#29d57f"),
    "red": ("#ea5302", "#ff4122"),
    "grey": ("#5a5a5a", "#7f7f7f"),
    "purple": ("#9e2e8c", "#b65eaf"),
    "brown": ("#5c3a00", "#ebec32"),
    "sky": ("#4192ff", "#adeeff"),
    "pink": ("#dd689f", "#fba0c2"),
    "indigo": ("#332288", "#aeaef8"),
    "plum": ("#70295b", "#fe4a90"),
    "olive": ("#879527", "#bdae47"),
    "pine": ("#0e5f37", "#36a95a"),
}


def _style(colour: str, dash: tuple[float, ...], marker: str) -> Style:
    return Style(*COLOURS[colour], dash, marker)


REAL = Style("#000000", "#ffffff", DOTTED, "")  # real images in place of samples

# In the order in which they are wanted where there is room for few.
SAMPLERS = {
    "Mix": _style("red", SOLID, "s"),
    "DDIM": _style("blue", SOLID, "o"),
    "Skipped-Step": _style("green", SOLID, "^"),
    "Mix*": _style("brown", SOLID, "*"),
    "DPM-Solver++(2M)": _style("sky", DASHED, "P"),
    "SDE-DPM-Solver++(2M)": _style("pink", DASHED, "X"),
    "DDPM": _style("grey", SOLID, "v"),
    "Mix++": _style("purple", SOLID, "D"),
    "Mix++ 166..624": _style("purple", DASHED, "o"),
    "Mix++ 444..": _style("purple", DASH_DOT, "s"),
    "Mix++ 410..886": _style("purple", DASH_DOT_DOT, "^"),
    "Mix++ 11..999": _style("purple", LONG, "d"),
    "UniPC": _style("indigo", DASH_DOT, "<"),
    "DEIS": _style("plum", DASH_DOT, ">"),
    "SA-Solver": _style("olive", DASH_DOT, "p"),
    "Heun": _style("pine", DASH_DOT, "h"),
    "ER-SDE": _style("blue", LONG, "v"),
    "iPNDM": _style("indigo", LONG, "o"),
    "PNDM": _style("sky", LONG, "d"),
    "LMS": _style("olive", LONG, "D"),
    "DEIS (AB)": _style("plum", LONG, "s"),
    "Churn": _style("pine", LONG, "^"),
    "Restart": _style("brown", LONG, "h"),
    "Naive stride": _style("grey", LONG, "P"),
}
MOST = 6  # curves of a panel
REFERENCE = "Mix"  # what the panels that share a figure have in common
ALSO = {  # other names of theirs, as `_key` has them
    **{"skipped": "Skipped-Step", "mixpp": "Mix++", "tuned": "Mix++", "mixstar": "Mix*"},
    **{"dpmpp": "DPM-Solver++(2M)", "sdedpmpp": "SDE-DPM-Solver++(2M)"},
    **{"cutoff": "Mix"},
}
SHADES = {  # of Mix by its cutoff, from next to Skipped-Step to next to DDIM
    "colour": ("#f0863c", "#d9530a", "#b53c06", "#8c2a04", "#631a02", "#3f0f00"),
    "dark": ("#ffd9c7", "#ffb494", "#ff9168", "#ff6f42", "#f0502a", "#d84a2c"),
}
PAPERS_CUTOFF = {"", "paper", "291", "cutoff291"}  # what says no more of Mix than its name
ENDS = {"0": "Skipped-Step", "1000": "DDIM"}  # Mix at both ends of its cutoffs

# Of rows that are no more than variants of a sampler, or unknown.
SPARE = list(product((SHORT, UNEVEN, DASH_DOT_DOT, LONG, DASHED, SOLID, DASH_DOT), MARKERS))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9+*]", "", name.casefold())


NAMES = {_key(name): name for name in SAMPLERS} | ALSO


def sampler_of(row: str) -> tuple[str | None, str]:
    """The sampler whose variant a row is, None if unknown, and what the row says beyond its name.

    ("Mix", "125") of "Mix 125" and "Mix (cutoff=125)", ("Mix", "") of "Mix (paper)" and
    "Mix 291", which is the same sampler as "Mix".
    """
    words = row.split(" ")
    for count in range(len(words), 0, -1):
        name = NAMES.get(_key(" ".join(words[:count])))
        if name is None:
            continue
        rest = _key(" ".join(words[count:]))
        if name == "Mix":
            rest = "" if rest in PAPERS_CUTOFF else rest.removeprefix("cutoff")
            name, rest = (ENDS[rest], "") if rest in ENDS else (name, rest)
        return name, rest
    return None, row


def style_of(row: str) -> Style:
    """The style of a row that is drawn alone: a function of its name."""
    return styles_of([row])[row]


def styles_of(rows: Iterable[str]) -> dict[str, Style]:
    """The styles of the rows of one pair of axes, no two alike.

    Each is `style_of` its row unless that clashes with one that comes before: samplers under
    their own names come first, then their variants and rows unknown in the order given.
    """
    wanted = list(dict.fromkeys(rows))
    taken: dict[str, Style] = {}
    for row in sorted(wanted, key=lambda row: sampler_of(row)[1] != ""):
        taken[row] = _free(_candidates(row, list(taken.values())), list(taken.values()))
    return {row: taken[row] for row in wanted}


def _free(candidates: Iterator[Style], taken: Sequence[Style]) -> Style:
    """The first that clashes with none, or else the first that is not there yet, or else any."""
    second, style = None, REAL
    for style in candidates:
        if not any(style.clashes(other) for other in taken):
            return style
        if second is None and style not in taken:
            second = style
    return second or style


def _candidates(row: str, taken: Sequence[Style]) -> Iterator[Style]:
    """Styles that a row may have, the best first; none but a sampler's own clashes with a sampler's."""
    sampler, rest = sampler_of(row)
    digest = hashlib.sha256(rest.encode("utf-8", "replace")).digest()
    spare = _rotated(SPARE, digest[0])  # 91 of them
    if sampler and not rest:
        yield SAMPLERS[sampler]
    if sampler:
        own = _shade(rest) if sampler == "Mix" else SAMPLERS[sampler]
        yield from _unclaimed(replace(own, dash=d, marker=m) for d, m in spare)
    else:
        used = [style.colour for style in taken]
        # sorted keeps the order of those that are used as often
        names = sorted(
            _rotated(list(COLOURS), digest[1]), key=lambda name: used.count(COLOURS[name][0])
        )
        yield from _unclaimed(_style(name, d, m) for name in names for d, m in spare)


def _shade(cutoff: str) -> Style:
    """Mix in the shade of its cutoff, or as the paper's if that is no timestep."""
    mix = SAMPLERS["Mix"]
    if not re.fullmatch(r"\d{1,3}", cutoff):
        return mix
    at = int(cutoff) * len(SHADES["colour"]) // 1000
    return replace(mix, colour=SHADES["colour"][at], dark=SHADES["dark"][at])


def _unclaimed(styles: Iterable[Style]) -> Iterator[Style]:
    known = SAMPLERS.values()
    return (style for style in styles if not any(style.clashes(other) for other in known))


def _rotated(items: list[Any], by: int) -> list[Any]:
    by %= len(items)
    return items[by:] + items[:by]


def ordinal(count: int) -> list[Style]:
    """Styles of things in an order that are no samplers (cutoffs, lengths of training), first to last."""
    light = ["#b8a200", "#d0761b", "#b8405e", "#7d2a8a", "#43307f", "#10162f"]
    dark = ["#fff0a0", "#ffbe5c", "#ff8570", "#e05aa0", "#a566d8", "#6f7fff"]
    marks = ["o", "s", "^", "D", "v", "P"]
    places = [round(i * 5 / max(1, count - 1)) for i in range(count)]
    lines = [SOLID, DASHED, DASH_DOT]
    return [Style(light[at], dark[at], lines[i % 3], marks[i % 6]) for i, at in enumerate(places)]


def in_groups(rows: Sequence[str], at_most: int = MOST) -> list[list[str]]:
    """Rows for panels of at most so many curves, the first those to be shown where only one is.

    It has the best known samplers in the order of SAMPLERS, one row each where they suffice.
    REFERENCE, where it is a row, is in every panel.
    """
    if len(rows) <= at_most:
        return [list(rows)]
    order = sorted(rows, key=_fame)
    best = {sampler_of(row)[0] or row: row for row in reversed(order)}  # of each sampler the first
    first = sorted(order, key=lambda row: row not in best.values())[:at_most]
    rest = [row for row in order if row not in first]
    shared = [row for row in first if sampler_of(row) == (REFERENCE, "")][:1]
    panels = math.ceil(len(rest) / (at_most - len(shared)))
    size = math.ceil(len(rest) / panels)
    others = [[*shared, *rest[i : i + size]] for i in range(0, len(rest), size)]
    return [[row for row in rows if row in group] for group in (first, *others)]


def _fame(row: str) -> tuple[int, bool]:
    sampler, rest = sampler_of(row)
    return list(SAMPLERS).index(sampler) if sampler else len(SAMPLERS), rest != ""
