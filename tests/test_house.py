"""The house: imports go one way, nothing runs in a circle, and no part grows out of bounds.

Every rule is a function of sources, path -> text, that returns what breaks it; each is shown to
notice a small made-up offender.
"""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache

import pytest
from conftest import LONGEST, ROOT

Sources = dict[str, str]

# Folder -> the other folders that it may import; the commands and scripts see all of them.
FLOORS = {
    "files": set(),
    "sampling": set(),
    "models": {"sampling", "files"},
    "eval": {"models", "files"},
    "experiments": {"files", "sampling", "models", "eval"},
    "report": {"eval", "files"},
}
# The study reckons with Gaussians and shows the embedded model's images.
STUDY = ("report/study", {"sampling", "models"})
COMMANDS = ("sample", "evaluate", "reproduce", "scripts")
# The script asks hydra_plugins for the names of submitit's options.
HYDRA = ("hydra", "omegaconf", "hydra_plugins")
MAY_USE_HYDRA = {
    "experiments/config.py": HYDRA,
    "experiments/endings.py": HYDRA,  # what its errors say
    "experiments/answers.py": HYDRA,  # flags and completion, before torch is imported
    "scripts/slurm.py": ("hydra_plugins",),
}


@cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def imports(sources: Sources) -> Iterator[tuple[str, str, str]]:
    """(path, module, name or "") of every import, also inside of functions and of TYPE_CHECKING."""
    for path, source in sources.items():
        package = path.split("/")[:-1]
        for node in nodes(source):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else []
                module = ".".join([*above, *filter(None, [node.module])])
                yield from ((path, module, alias.name) for alias in node.names)


def our_imports(sources: Sources) -> Iterator[tuple[str, str, str]]:
    """(importer, imported file, name) of the imports of files that are ours."""
    modules = {re.sub(r"(/__init__)?\.py$", "", path).replace("/", "."): path for path in sources}
    for path, module, name in imports(sources):
        if target := modules.get(f"{module}.{name}") or modules.get(module):
            yield path, target, name


def folder_of(path: str) -> str:
    return path.split("/")[0] if "/" in path else ""


def against_the_floors(sources: Sources) -> list[str]:
    broken = []
    for path, target, _ in our_imports(sources):
        ours, theirs = folder_of(path), folder_of(target)
        allowed = {ours} | FLOORS.get(ours, set(FLOORS))
        if path.startswith(STUDY[0]):
            allowed |= STUDY[1]
        if theirs not in allowed:
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
    return [f"{p} imports {m}" for p, m, _ in imports(sources) if m.split(".")[0] in COMMANDS]


def hydra_elsewhere(sources: Sources) -> list[str]:
    return [
        f"{path} imports {module}"
        for path, module, _ in imports(sources)
        if (top := module.split(".")[0]) in HYDRA and top not in MAY_USE_HYDRA.get(path, ())
    ]


def private_names(sources: Sources) -> list[str]:
    return [
        f"{path} imports {name} of {target}"
        for path, target, name in our_imports(sources)
        if path != target and re.match("_(?!_)", name)
    ]


def changed_import_paths(sources: Sources) -> list[str]:
    return [f"{path} touches sys.path" for path, text in sources.items() if "sys.path" in text]


def absolute_imports_in_the_wheel(sources: Sources) -> list[str]:
    """sampling/ is installed under another name: it must import itself relatively."""
    wheel = {path: text for path, text in sources.items() if folder_of(path) == "sampling"}
    return [p for p, text in wheel.items() if re.search(r"^\s*(from|import) sampling", text, re.M)]


def long_files(sources: Sources) -> list[str]:
    return [path for path, text in sources.items() if text.count("\n") > 560]


def functions(sources: Sources) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path, source in sources.items():
        yield from ((path, node) for node in nodes(source) if isinstance(node, ast.FunctionDef))


def long_functions(sources: Sources) -> list[str]:
    return [
        f"{path}: {function.name} has {lines} lines"
        for path, function in functions(sources)
        if (lines := function.end_lineno - function.lineno + 1) > 55
    ]


def wide_functions(sources: Sources) -> list[str]:
    """Functions of more than 8 parameters; our schedulers have those of diffusers, by contract."""
    wide = []
    for path, function in functions(sources):
        names = [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]
        count = sum(name not in ("self", "cls") for name in names)
        if count > 8 and path not in ("sampling/schedulers.py", "sampling/plan_scheduler.py"):
            wide.append(f"{path}: {function.name} has {count} parameters")
    return wide


def _names_an_encoding(call: ast.Call) -> bool:
    """Whether a call that may read or write text says in which encoding; of any other call True."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if {None, "encoding"} & given.keys():
        return True
    if any(isinstance(given.get(k), ast.Constant) for k in ("text", "universal_newlines")):
        return False  # of a process
    method = isinstance(call.func, ast.Attribute)
    name = getattr(call.func, "attr" if method else "id", "")
    if name in ("read_text", "write_text"):  # one's own write_text(path, text) is UTF-8
        return not method or len(call.args) > (name == "write_text")
    if name not in ("open", "fdopen"):
        return True
    modes = [*call.args[not method or name == "fdopen" :][:1], *filter(None, [given.get("mode")])]
    if not modes:
        return method and bool(call.args)  # archive.open(member)
    mode = getattr(modes[0], "value", None)
    return not (isinstance(mode, str) and re.fullmatch("[rwaxt+]+", mode))


def texts_of_the_locale(sources: Sources) -> list[str]:
    """Text is UTF-8, on every machine; ruff's PLW1514 misses paths whose type it does not see."""
    return [
        f"{path}: line {node.lineno} names no encoding"
        for path, source in sources.items()
        for node in nodes(source)
        if isinstance(node, ast.Call) and not _names_an_encoding(node)
    ]


# Rule -> an offender, and how many of them the house may have.
RULES = {
    against_the_floors: ({"models/a.py": "def f():\n    from eval import b", "eval/b.py": ""}, 0),
    circles: (
        {
            "models/a.py": "if TYPE_CHECKING:\n    import models.b",
            "models/b.py": "from models.c import x",
            "models/c.py": "from .a import y",
        },
        0,
    ),
    imported_commands: ({"report/a.py": "from scripts.train import main"}, 0),
    hydra_elsewhere: ({"experiments/a.py": "import omegaconf as o"}, 0),
    private_names: ({"eval/a.py": "from eval.b import _c", "eval/b.py": ""}, 0),
    changed_import_paths: (
        {"scripts/a.py": "import sys\nsys.path.insert(0, '.')"},
        2,
    ),  # models/imports.py, and what scripts/notebooks.py writes for Colab
    absolute_imports_in_the_wheel: ({"sampling/a.py": "def f():\n    from sampling import c"}, 0),
    long_files: ({"eval/a.py": "pass\n" * 561}, 0),
    long_functions: ({"eval/a.py": "def f():\n" + "    pass\n" * 55}, 5),
    texts_of_the_locale: ({"eval/a.py": "text = path.read_text()"}, 0),
    wide_functions: ({"eval/a.py": "def f(self, a, b, c, d, *, e, f, g, h, i): ..."}, 9),
}


@pytest.fixture(scope="module")
def house() -> Sources:
    folders = [ROOT / folder for folder in (*FLOORS, "scripts")]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}


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
    others = {"sample.py": ""} | {f"{floor}/b.py": "" for floor in FLOORS}
    assert len(against_the_floors({**others, path: line})) == 1


@pytest.mark.parametrize(
    ("line", "offends"),
    [
        ("path.read_text(errors='replace')", True),
        ("path.read_text('utf-8')", False),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, 'utf-8')", False),
        ("write_text(path, text)", False),
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("open(path, mode='w', newline='')", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('w')", True),
        ("path.open(mode='r+')", True),
        ("path.open('ab')", False),
        ("archive.open(info)", False),
        ("os.fdopen(number, 'w')", True),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words, text=True, encoding='utf-8')", False),
    ],
)
def test_text_without_an_encoding_is_noticed(line, offends):
    assert bool(texts_of_the_locale({"files/a.py": line})) is offends


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
    assert {rule.__name__: rule(sources) for rule in RULES if rule(sources)} == {}


def test_the_floors_are_all_there_is_and_the_configs_are_few():
    """mypy checks every folder of the house, and these rules every folder that mypy checks."""
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]["files"]
    assert {name for name in checked if not name.endswith(".py")} == {*FLOORS, "scripts"}
    assert len(list((ROOT / "configs").rglob("*.yaml"))) <= 109


def test_the_files_that_are_begun_first_are_there():
    assert {f"test_{name}" for name in LONGEST} <= {p.stem for p in (ROOT / "tests").rglob("*.py")}
