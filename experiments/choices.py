"""What stands in configs/, and what is said there of each setting; known without torch.

A setting's sentence is the comment beside it, or right above it, in its file of configs/, and nowhere
else: a file that says nothing of a setting has the sentence of the files that it builds on, or of
another file of its folder.  `## Title` starts a section, and `# name: value # sentence` tells of a setting
that has no value until it is given.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from files.places import ROOT

CONFIGS = ROOT / "configs"
CARDS = ROOT / "models" / "adm" / "cards.yaml"
# Functions are named by configs, and Hydra's own part has its own help.
NOT_TYPED = ("_target_", "defaults", "hydra")
# Levels whose entries have names of their own, and comments that are of these.
TABLES = ("rows", "rivals", "published")
# A setting without a value: name, default and sentence.
UNSET = re.compile(r"# ([\w.]+): (\S.*?) #(?: (.+))?")
Lines = list[str]


@dataclass(frozen=True)
class Setting:
    """A setting as one file states it: `default` is None for a whole level, `unset` if a comment alone states it."""

    name: str
    default: str | None
    sentence: str = ""
    section: str = ""
    line: int = 0
    unset: bool = False


def options_of(group: str) -> list[str]:
    """The names of configs/<group>, those of ADM's cards among the models."""
    names = {path.stem for path in (CONFIGS / group).glob("*.yaml")}
    return sorted(names | set(adm_models()) if group == "model" else names)


@cache
def adm_models() -> dict[str, dict[str, Any]]:
    """The configs of the models that need no file: one for every ADM card of a diffusion model."""
    cards = yaml.safe_load(CARDS.read_text(encoding="utf-8"))["cards"]
    return {
        name: {
            "defaults": [
                "adm",
                {"override /reference@_global_.reference": card["reference"]},
                "_self_",
            ],
            "name": name,
            "card": name,
            "checkpoint": "${downloads}/" + card["url"].rsplit("/", 1)[-1],
            "precision": card["precision"],
        }
        for name, card in cards.items()
        if card["kind"] == "unet"
    }


def config_path(group: str, name: str) -> Path:
    """The file of a choice: that of `adm` for the models that have none; "" is the commands' own."""
    is_card = group == "model" and name in adm_models()
    return CONFIGS / group / f"{'adm' if is_card else name}.yaml"


@cache
def chain(path: Path) -> tuple[Path, ...]:
    """The files of the same folder that a config builds on, and the config itself, the last one wins."""
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    names = [entry for entry in entries if isinstance(entry, str) and re.fullmatch(r"\w+", entry)]
    bases = [path.with_name(f"{name}.yaml") for name in names if name != "_self_"]
    return (*(file for base in bases for file in chain(base)), path)


def brought(group: str, name: str) -> dict[str, str]:
    """What a config brings along of other groups, as a command its own defaults: group -> name."""
    entries: list[Any] = []
    for file in chain(config_path(group, name)):
        entries += yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", [])
    if group == "model" and name in adm_models():
        entries += adm_models()[name]["defaults"]
    found = {}
    for entry in entries:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if part := re.fullmatch(r"(?:override )?(?:/(\w+)@_global_\.\1|(\w+))", key):
                found[part[1] or part[2]] = str(value)
    return found


def groups_of(command: str) -> list[str]:
    """The command's settings that choose a file of configs/."""
    names = [setting.name for setting in stated(config_path("", command))]
    return [name for name in names if (CONFIGS / name).is_dir()]


def chosen(command: str, words: Sequence[str]) -> dict[str, list[str]]:
    """The names of every group of a command: as typed, else as its experiment, its model, its file say."""
    groups, own = groups_of(command), brought("", command)
    typed = (word.lstrip("+").partition("=")[::2] for word in words)
    told = {key: value.split(",") for key, value in typed if key in groups}
    for group in ("experiment", "model"):
        name = told.get(group, [own.get(group, "")])[0]
        if group in groups and name in options_of(group):
            for key, other in brought(group, name).items():
                told.setdefault(key, [other])
    for key, name in own.items():
        told.setdefault(key, told["model"] if name == "${model}" else [name])
    return {key: told[key] for key in groups if key in told}


def header(path: Path) -> str:
    """The first sentence of what a file says of itself; that of the file that it builds on, if it says nothing."""
    for file in reversed(chain(path)):
        text = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if line == "# @package _global_":
                continue
            if not re.match(r"# (?! )", line):
                break
            text.append(line[2:])
        if text:
            return re.split(r"(?<=\w\w\.|.[)\]]\.)\s", " ".join(text))[0]
    return ""


def stated(path: Path, prefix: str = "") -> list[Setting]:
    """The settings of a config and of the files that it builds on, each as the last of them has it.

    The order is that of the config's own file, then of what it builds on.  What has no sentence is left
    out: names of files, and levels of which all is told.
    """
    known: dict[str, Setting] = {}
    for file in reversed(chain(path)):
        for setting in in_file(file, prefix):
            known.setdefault(setting.name, setting)
    told = {name: sentence_of(path, name, prefix) for name in known}
    return [
        replace(setting, sentence=told[name])
        for name, setting in known.items()
        if told[name] and not set(name.split(".")[:-1]) & set(TABLES)
    ]


def sentence_of(path: Path, name: str, prefix: str = "") -> str:
    """What is said of a setting in the config's files, or else beside them; "" if nothing is.

    Experiments say beside a value why it is this one: what a setting is, compare.yaml tells of all.
    Commands have theirs of sample.yaml.
    """
    first = [path.with_name("compare.yaml")] if path.parent.name == "experiment" else []
    then = [path.with_name("sample.yaml")] if path.parent == CONFIGS else []
    for file in (*first, *reversed(chain(path)), *then, *sorted(path.parent.glob("*.yaml"))):
        for setting in in_file(file, prefix):
            if setting.name == name and setting.sentence:
                return setting.sentence
    return ""


def values_of(group: str, name: str) -> dict[str, str]:
    """What a choice sets, of its own level and of others: setting -> default."""
    values = {
        setting.name: setting.default
        for file in chain(config_path(group, name))
        for setting in in_file(file, f"{group}.")
        if setting.default is not None
    }
    card = adm_models().get(name, {}) if group == "model" else {}
    return values | {
        f"model.{key}": resolved(text) for key, text in card.items() if key != "defaults"
    }


# --- one file -----------------------------------------------------------------------------------


@cache
def in_file(path: Path, prefix: str = "") -> tuple[Setting, ...]:
    """All that one file states, also whole levels, in order; `prefix` unless it states where it belongs."""
    text = path.read_text(encoding="utf-8")
    prefix = "" if text.startswith("# @package _global_") else prefix
    lines, root = text.splitlines(), yaml.compose(text, yaml.SafeLoader)
    found = [*_groups(root, lines), *_walk(root, prefix, lines), *_unset(prefix, lines)]
    return tuple(sorted(found, key=lambda setting: setting.line))


def _walk(node: Any, prefix: str, lines: Lines) -> Iterator[Setting]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value not in NOT_TYPED:
            line = key.start_mark.line
            yield Setting(
                prefix + key.value,
                shown(value),
                _beside(lines, line, value) or _over(lines, line),
                _section(lines, line),
                line,
            )
            yield from _walk(value, f"{prefix}{key.value}.", lines)


def _groups(root: Any, lines: Lines) -> Iterator[Setting]:
    """The choices of a command's defaults."""
    entries: list[Any] = next((v.value for key, v in root.value if key.value == "defaults"), [])
    for entry in entries:
        for key, value in entry.value if isinstance(entry, yaml.MappingNode) else ():
            if re.fullmatch(r"\w+", key.value):
                line = key.start_mark.line
                sentence, section = _beside(lines, line, value), _section(lines, line)
                yield Setting(key.value, shown(value), sentence, section, line)


def _unset(prefix: str, lines: Lines) -> Iterator[Setting]:
    """Settings without a value, which stand in comments."""
    for i, line in enumerate(lines):
        if found := UNSET.fullmatch(line):
            name, value, sentence = found.groups()
            yield Setting(prefix + name, value, sentence or "", _section(lines, i), i, True)


def _beside(lines: Lines, line: int, value: Any) -> str:
    """The comment at the end of the line, and those below it in the same column."""
    if isinstance(value, yaml.ScalarNode) or value.flow_style:
        line, column = value.end_mark.line, value.end_mark.column
    else:
        column = lines[line].index(":")
    found = re.match(r"\s*# (.+)", lines[line][column:].removeprefix(":"))
    if not found:
        return ""
    column, words = lines[line].rindex(f"# {found[1]}"), [found[1]]
    for below in lines[line + 1 :]:
        if not re.match(rf" {{{column}}}# \S", below):
            break
        words.append(below.strip()[2:])
    return " ".join(words)


def _over(lines: Lines, line: int) -> str:
    """The comment right above, in the same column, unless it is the file's own."""
    column, first = len(lines[line]) - len(lines[line].lstrip()), line
    while first and re.match(rf" {{{column}}}# \S", lines[first - 1]):
        if UNSET.fullmatch(lines[first - 1]):
            break
        first -= 1
    return " ".join(text.strip()[2:] for text in lines[first:line]) if first else ""


def _section(lines: Lines, line: int) -> str:
    titles = (re.match(r"\s*## (.+)", text) for text in reversed(lines[:line]))
    return next((title[1] for title in titles if title), "")


def shown(value: Any) -> str | None:
    """A default as it is typed: None for a level, `...` for what must be given, <...> for what stands elsewhere."""
    if isinstance(value, yaml.MappingNode):
        return None
    if isinstance(value, yaml.SequenceNode):
        parts = [shown(part) for part in value.value]
        text = f"[{','.join(map(str, parts))}]"
        return None if None in parts else text if len(text) < 60 else "[...]"
    if value.value == "???":
        return "..."
    return resolved(value.value) or ("null" if value.tag.endswith("null") else "''")


def resolved(text: str) -> str:
    """A text whose interpolations are in words, <...>."""
    while found := re.search(r"\$\{([^${}]*)\}", text):
        text = text.replace(found[0], _elsewhere(found[1]))
    return text


def _elsewhere(interpolation: str) -> str:
    function, colon, argument = interpolation.partition(":")
    if not colon:
        return f"<{interpolation.lstrip('.')}>"
    if function == "oc.select":
        return "<{}, else {}>".format(*argument.split(",", 1))
    return f"<{function}>" if not argument else f"<{function} of {argument}>"
