"""The house: imports go one way, nothing runs in a circle, and no part grows out of bounds.

Every rule is a function of sources, path -> text, that returns what breaks it; each is shown to
notice a small made-up offender.
"""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from conftest import ROOT

Sources = dict[str, str]

# Folder -> the other folders that it may import.  "" are the three commands.
FLOORS = {
    "files": set(),
    "sampling": set(),
    "models": {"sampling", "files"},
    "eval": {"models", "files"},
    "experiments": {"files", "sampling", "models", "eval"},
    "report": {"eval", "files"},
}
FLOORS |= {top: set(FLOORS) for top in ("", "scripts")}
# The study reckons with Gaussians and shows the embedded model's images.
STUDY = ("report/study", {"sampling", "models"})
COMMANDS = ("sample", "evaluate", "reproduce", "scripts")
HYDRA = {"hydra", "omegaconf", "hydra_plugins"}
MAY_USE_HYDRA = {
    "experiments/config.py": HYDRA,
    "scripts/slurm.py": {"hydra_plugins"},  # for the names of submitit's options alone
}


# --- what a source imports ---------------------------------------------------------------------


@cache
def tree_of(source: str) -> ast.Module:
    return ast.parse(source)


def imports(path: str, source: str) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import, also inside of functions and of TYPE_CHECKING."""
    package = path.split("/")[:-1]
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((module, alias.name) for alias in node.names)


def our_imports(sources: Sources) -> Iterator[tuple[str, str, str | None]]:
    """(importer, imported file, name) of the imports of files that are ours."""
    files = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
             for path in sources}  # fmt: skip
    for path, source in sources.items():
        for module, name in imports(path, source):
            target = files.get(f"{module}.{name}") or files.get(module)
            if target:
                yield path, target, name


def folder_of(path: str) -> str:
    return path.split("/")[0] if "/" in path else ""


# --- the rules ---------------------------------------------------------------------------------


def against_the_floors(sources: Sources) -> list[str]:
    broken = []
    for path, target, _ in our_imports(sources):
        ours, theirs = folder_of(path), folder_of(target)
        prefix, more = STUDY
        allowed = FLOORS[ours] | (more if path.startswith(prefix) else set())
        if theirs != ours and theirs not in allowed:
            broken.append(f"{path} imports {target}")
    return broken


def circles(sources: Sources) -> list[str]:
    graph: dict[str, set[str]] = {path: set() for path in sources}
    for path, target, _ in our_imports(sources):
        graph[path].add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def imported_commands(sources: Sources) -> list[str]:
    return [
        f"{path} imports {module}"
        for path, source in sources.items()
        for module, _ in imports(path, source)
        if module.split(".")[0] in COMMANDS
    ]


def hydra_elsewhere(sources: Sources) -> list[str]:
    return [
        f"{path} imports {module}"
        for path, source in sources.items()
        for module, _ in imports(path, source)
        if module.split(".")[0] in HYDRA - MAY_USE_HYDRA.get(path, set())
    ]


def private_names(sources: Sources) -> list[str]:
    return [
        f"{path} imports {name} of {target}"
        for path, target, name in our_imports(sources)
        if path != target and (name or "").startswith("_") and not name.startswith("__")
    ]


def import_paths_changed(sources: Sources) -> list[str]:
    return [
        f"{path}:{node.lineno} touches sys.path"
        for path, source in sources.items()
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    ]


def absolute_imports_of_the_wheel(sources: Sources) -> list[str]:
    """sampling/ is installed under another name: it must import itself relatively."""
    return [
        f"{path}: {line[0]}"
        for path, source in sources.items()
        if folder_of(path) == "sampling"
        for line in re.finditer(r"^\s*(from|import) sampling\b.*", source, re.M)
    ]


def functions(sources: Sources) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path, source in sources.items():
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def long_files(sources: Sources) -> list[str]:
    lengths = {path: source.count("\n") for path, source in sources.items()}
    return [f"{path} has {n} lines" for path, n in lengths.items() if n > 560]


def long_functions(sources: Sources) -> list[str]:
    return [
        f"{path}: {function.name} has {function.end_lineno - function.lineno + 1} lines"
        for path, function in functions(sources)
        if function.end_lineno - function.lineno >= 55
    ]


def wide_functions(sources: Sources) -> list[str]:
    """The constructors of our schedulers have diffusers' parameters, by its contract."""
    counts = [
        (path, function.name, len([*a.posonlyargs, *a.args, *a.kwonlyargs]) - is_method(a))
        for path, function in functions(sources)
        for a in [function.args]
        if path != "sampling/schedulers.py"
    ]
    return [f"{path}: {name} has {n} parameters" for path, name, n in counts if n > 8]


def is_method(arguments: ast.arguments) -> bool:
    return bool(arguments.args) and arguments.args[0].arg in ("self", "cls")


# --- the tests ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house() -> Sources:
    paths = [*ROOT.glob("*.py"), *(p for floor in FLOORS if floor for p in (ROOT / floor).rglob("*.py"))]  # fmt: skip
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


# Rule -> an offender, and how many offenders the house may have.
RULES: dict[Callable[[Sources], list[str]], tuple[Sources, int]] = {
    against_the_floors: ({"models/a.py": "def f():\n    from eval import b", "eval/b.py": ""}, 0),
    circles: (
        {
            "models/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import models.b",
            "models/b.py": "from models.c import x",
            "models/c.py": "from .a import y",
        },
        0,
    ),
    imported_commands: ({"report/a.py": "from scripts.train import main"}, 0),
    hydra_elsewhere: ({"experiments/a.py": "import omegaconf as o"}, 0),
    private_names: ({"eval/a.py": "from eval.b import _c", "eval/b.py": ""}, 0),
    import_paths_changed: ({"scripts/a.py": "import sys\nsys.path.insert(0, '.')"}, 0),
    absolute_imports_of_the_wheel: ({"sampling/a.py": "from sampling.b import c"}, 0),
    long_files: ({"eval/a.py": "pass\n" * 561}, 0),
    long_functions: ({"eval/a.py": "def f():\n" + "    pass\n" * 55}, 5),
    wide_functions: ({"eval/a.py": "def f(a, b, c, d, *, e, f, g, h, i): ..."}, 8),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(house, rule):
    offender, allowed = RULES[rule]
    assert len(rule(offender)) == 1
    broken = rule(house)
    assert len(broken) <= allowed, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("files/a.py", "import eval.b"),
        ("sampling/a.py", "from files import b"),
        ("models/a.py", "from experiments import b"),
        ("eval/a.py", "from sampling.b import c"),
        ("experiments/a.py", "from report.b import c"),
        ("report/a.py", "from experiments.b import c"),
        ("report/a.py", "from models.b import c"),
        ("report/study.py", "from experiments.b import c"),
        ("files/a.py", "from sample import main"),
    ],
)
def test_every_floor_notices_an_import_against_it(path, line):
    others = {f"{floor}/b.py" if floor else "sample.py": "" for floor in FLOORS}
    assert len(against_the_floors({**others, path: line})) == 1


def test_what_is_allowed_is_no_offence():
    sources = {
        "report/study.py": "from sampling.b import c\nfrom models import d",
        "report/a.py": "from eval.b import c\nfrom .e import f",
        "report/e.py": "import report",
        "report/__init__.py": "",
        "sampling/__init__.py": "from .b import c",
        "sampling/b.py": "from . import a",
        "sampling/a.py": "import math",
        "models/d.py": "import torch",
        "eval/b.py": "from eval.d import c\nfrom eval import __version__",
        "eval/d.py": "_c = 1",
        "sample.py": "from experiments.b import c\nfrom report.a import d",
        "experiments/b.py": "",
    }
    for rule in (against_the_floors, circles, imported_commands, private_names):
        assert rule(sources) == [], rule.__name__


def test_the_floors_are_all_there_is():
    """mypy checks every folder of the house, and these rules every folder that mypy checks."""
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    assert {name for name in checked if not name.endswith(".py")} == set(FLOORS) - {""}


def test_the_number_of_configs():
    assert len(list((ROOT / "configs").rglob("*.yaml"))) <= 75
