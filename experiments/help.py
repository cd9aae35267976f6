"""`--help` of the commands: what can be set, in the sentences of configs/; without torch."""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from experiments.choices import (
    CONFIGS,
    Setting,
    chosen,
    config_path,
    header,
    options_of,
    stated,
    values_of,
)

FLAGS = {
    "-m": "run all combinations of values with commas, as in sampler=ddim,mix steps=10,25",
    "--cfg job": "print the whole config, and do nothing",
    "--config-dir DIR": "a folder of your own configs, laid out as configs/",
    "--shell-completion install=bash": "print what makes the shell complete settings (docs/completion.md)",
    "--hydra-help": "tell of the other flags, which are Hydra's",
    "-h, --help": "print this; with model=NAME, sampler=NAME, ... what can be set of these",
}
LAUNCHER = Setting(
    "hydra/launcher",
    "basic",
    "who runs the combinations of -m: basic, one after the other; or, as jobs of a cluster, ",
    "Machines",
)
DEFAULTS = "Settings are NAME=VALUE, here with their defaults; NAME=... must be given."
WIDTHS = (40, 110)  # of lines, whatever the terminal says
COLUMN = 28  # where sentences start


def show_help(command: str, doc: str | None, words: Sequence[str]) -> None:
    """Print the help as wide as the terminal is; a reader that has enough of it may close the pipe."""
    narrow, wide = WIDTHS
    width = min(max(shutil.get_terminal_size().columns, narrow), wide)
    try:
        print(help_text(command, doc or "", words, width), end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_text(command: str, doc: str, words: Sequence[str] = (), width: int = 80) -> str:
    """What a command does, by its docstring, and what can be set, given the settings `words`."""
    lines = [*_prose(doc, width), ""]
    lines += textwrap.wrap(DEFAULTS, width)
    for title, settings in sections(command, words).items():
        lines += ["", *textwrap.wrap(title, width)]
        for setting in settings:
            value = f"={setting.default}" if setting.default is not None else ""
            lines += _entry(setting.name + value, setting.sentence, width)
    lines += ["", "Flags"]
    for flag, sentence in FLAGS.items():
        lines += _entry(flag, sentence, width)
    return "\n".join(lines) + "\n"


def sections(command: str, words: Sequence[str] = ()) -> dict[str, list[Setting]]:
    """Title -> settings: the command's own, then those of the model, the sampler and so on, as chosen."""
    groups, own = chosen(command, words), stated(config_path("", command))
    values = _values(groups)
    # Most choices stand before all values, and begin no section.
    order = dict.fromkeys(s.section for s in own if s.name not in groups or s.unset)
    found: dict[str, list[Setting]] = {title: [] for title in order}
    for setting in own:
        found[setting.section].append(_chosen(setting, groups) or _valued(setting, values))
    launchers = ", ".join(path.stem for path in (CONFIGS / "hydra/launcher").glob("*.yaml"))
    launcher = replace(LAUNCHER, sentence=LAUNCHER.sentence + launchers)
    found[LAUNCHER.section].append(launcher)
    for group, names in groups.items():
        for name in set(names) & set(options_of(group)):
            path = config_path(group, name)
            values = _values(groups | {group: [name]})
            parts = [s for s in stated(path, f"{group}.") if s.name.startswith(f"{group}.")]
            if parts:
                title = f"{group}={name}: {header(path)}"
                found[title] = [_valued(part, values) for part in parts]
    return found


def _values(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The defaults of all that the choices set; an experiment has the last word."""
    values: dict[str, str] = {}
    for group in sorted(groups, key="experiment".__eq__):
        if groups[group][0] in options_of(group):
            values |= values_of(group, groups[group][0])
    return values


def _chosen(setting: Setting, groups: Mapping[str, Sequence[str]]) -> Setting | None:
    """A choice with the names that there are."""
    if setting.name not in groups:
        return None
    told = f"{setting.sentence}; one of {', '.join(options_of(setting.name))}"
    return replace(setting, default=",".join(groups[setting.name]), sentence=told)


def _valued(setting: Setting, values: Mapping[str, str]) -> Setting:
    """A setting with the default that the choices give it."""
    default = values.get(setting.name, setting.default)
    for name in re.findall(r"<(experiment\.\w+)", default or ""):
        other = re.search(rf"<{name}, else ([^<>]*)>", str(default))
        if value := values.get(name, other and other[1]):
            default = re.sub(rf"<{name}(, else [^<>]*)?>", value, str(default))
    return replace(setting, default=default)


def unknown_choices(command: str, words: Sequence[str]) -> list[str]:
    """The settings that choose what is not in configs/."""
    return [
        f"{group}={name}"
        for group, names in chosen(command, words).items()
        for name in names
        if name not in options_of(group)
    ]


def _prose(doc: str, width: int) -> list[str]:
    """A docstring with its paragraphs wrapped; what is indented there can be copied, and is left."""
    lines: list[str] = []
    for kept, part in groupby(doc.strip().splitlines(), lambda line: line[:1] in ("", " ")):
        text = list(part)
        lines += text if kept else textwrap.wrap(" ".join(text), width)
    return lines


def _entry(name: str, sentence: str, width: int) -> list[str]:
    """A name and what is said of it, beside it or, where the name is long, below."""
    indent = " " * min(COLUMN, width // 3)
    room = width - len(indent)
    words = textwrap.wrap(sentence, room, break_long_words=False, break_on_hyphens=False)
    lines = [indent + line for line in words]
    name = f"  {name}"
    if len(name) + 2 > len(indent) or not lines:
        return [name, *lines]
    return [name.ljust(len(indent)) + lines[0].lstrip(), *lines[1:]]
