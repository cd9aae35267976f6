"""What pyproject.toml cannot say: the wheel's evaluation is made of folders that have other names here.

In the clone eval/, files/ and models/ are packages of their own, which import each other by these
names; installed they are parts of skipped_step.  As they are copied their imports are rewritten,
`from files.npz import ...` to `from skipped_step.files.npz import ...`, and nothing else is.
"""

import ast
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Folder of the clone -> what is installed of it.
PACKAGES = {
    "sampling": "skipped_step",
    "eval": "skipped_step.evaluation",
    "files": "skipped_step.files",
    "models": "skipped_step.models",
}
# Modules that evaluation does without: of runs, tables and videos, and the classifiers and models here.
LEFT_OUT = {
    "skipped_step.evaluation": {"classifiers", "sheets", "table", "vbench"},
    "skipped_step.files": {"media", "prompts", "videos"},
}
KEPT = {"skipped_step.models": {"__init__", "devices", "hub", "imports", "memory", "weights"}}


def rewritten(source: str) -> str:
    """The source with imports of the clone's folders as those of the installed packages."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] in PACKAGES for alias in node.names):
                raise ValueError(f"line {node.lineno}: write `from PACKAGE import MODULE`")
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            top, dot, rest = node.module.partition(".")
            if top in PACKAGES:
                line = lines[node.lineno - 1]
                old, new = f"from {node.module} ", f"from {PACKAGES[top]}{dot}{rest} "
                lines[node.lineno - 1] = line.replace(old, new, 1)
    return "\n".join(lines)


class BuildPy(build_py):
    """Copies the modules of the wheel's packages, with their imports rewritten."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        kept, left_out = KEPT.get(package), LEFT_OUT.get(package, set())
        return [m for m in found if (not kept or m[1] in kept) and m[1] not in left_out]

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        built, copied = super().build_module(module, module_file, package)
        path = Path(built)
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
        return built, copied


setup(cmdclass={"build_py": BuildPy})
