"""SECURITY.md: what it says is shown by the tests that it names; and no call here asks for strangers' code."""

from __future__ import annotations

import ast
import io
import pickle
import re
from pathlib import Path

import pytest
from conftest import ROOT, refused

import evaluate
import sample
from models.cifar10 import data

TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
FOLDERS = ("files", "sampling", "models", "eval", "experiments", "report", "scripts")


def test_every_test_that_is_named_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 15
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.M), (path, name)
    for path in re.findall(r"`((?:configs|models|files)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path


def asks_for_code(source: str) -> list[str]:
    """Calls that would run, or let a library run, what a file or a repository brings."""
    safe = {"trust_remote_code": False, "weights_only": True, "allow_pickle": False, "shell": False}
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        name = ast.unparse(node.func)
        found += [f"{name}({k}={given[k]})" for k, v in safe.items() if given.get(k, v) is not v]
        if name == "torch.load" and "weights_only" not in given:
            found.append(name)
        if name in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "torch.hub.load"):
            found.append(name)
        if name == "yaml.load" and ast.unparse(node.args[1]) != "_Loader":  # of report/paper.py
            found.append(name)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(id, trust_remote_code=True)",
        "AutoModel.from_pretrained(id, trust_remote_code=trust)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "torch.hub.load(a, b)",
        "yaml.load(text, yaml.Loader)",
    ],
)
def test_such_a_call_is_noticed(line):
    assert len(asks_for_code(line)) == 1
    assert asks_for_code("net.eval(); np.load(p); torch.load(p, weights_only=True)") == []


def test_no_call_asks_for_strangers_code():
    paths = [*ROOT.glob("*.py"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))]
    found = {str(p.relative_to(ROOT)): asks_for_code(p.read_text("utf-8")) for p in paths}
    assert {path: calls for path, calls in found.items() if calls} == {}


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_unpickler_makes_more_than_arrays(tmp_path):
    """The one unpickler here, of CIFAR-10's published batches."""
    mark = tmp_path / "ran"
    with pytest.raises(pickle.UnpicklingError, match="which is no array"):
        data._Arrays(io.BytesIO(pickle.dumps({b"data": Evil(mark)}))).load()
    assert not mark.exists()
    paths = [p for f in FOLDERS for p in (ROOT / f).rglob("*.py")]
    users = [p for p in paths if re.search(r"\bimport pickle|Unpickler", p.read_text("utf-8"))]
    assert users == [ROOT / "models" / "cifar10" / "data.py"]


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """What a module beside the command leaves when it is imported."""
    path = tmp_path / "ran"
    text = f"import pathlib\npathlib.Path({str(path)!r}).touch()\ndef load(): raise ValueError('called')\n"
    (tmp_path / "theirs_of_security.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return path


@pytest.mark.parametrize("what", ["model", "metrics"])
def test_a_function_is_named_by_the_user_alone(command, mark, tmp_path, what):
    """A config from elsewhere names one: nothing of it is imported before the user says so."""
    name = "theirs_of_security"
    folder = tmp_path / "conf" / what
    folder.mkdir(parents=True)
    key = {"model": "load", "metrics": "extractor"}[what]
    base = {"model": "function", "metrics": "custom"}[what]
    (folder / "theirs.yaml").write_text(f"defaults: [{base}, _self_]\n{key}: {name}:load\n")
    if what == "model":
        words = [
            sample,
            "--config-dir",
            "conf",
            "model=theirs",
            "num_samples=1",
            "steps=2",
            "out=o",
        ]
    else:
        (tmp_path / "images").mkdir()
        words = [evaluate, "--config-dir", "conf", "metrics=theirs", "samples=images"]
    refused(command(*words), f"trusted=[{name}]")
    assert not mark.exists()
    status, _, err = command(*words, f"trusted=[{name}]")
    if what == "model":
        assert status == 2 and "called" in err and mark.exists()
