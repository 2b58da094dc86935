"""The package as a whole: found from anywhere, whole without the repository, nothing in it that is not for its users."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import tomllib
from sightline.common.errors import DISTRIBUTION

ROOT = Path(__file__).parents[1]


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """As beside a clone, which is no package itself but is called as the package is."""
    (tmp_path / "sightline").mkdir()
    command = [sys.executable, "-c", "import sightline; sightline.attach"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_a_docstring_begins_with_a_sentence() -> None:
    """A summary line that a blank line or a line end breaks reads as noise in help and editors."""
    found = []
    for folder in ("src", "studies"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    summary = (ast.get_docstring(node) or ".").split("\n")[0]
                    if not summary.endswith((".", "?", ":")):
                        found.append(f"{path.relative_to(ROOT)}: {summary}")
    assert found == []


def test_no_file_outgrows_a_reader() -> None:
    long = {path.name: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_a_name_means_one_class() -> None:
    """Two classes of one name are two things that a reader must tell apart by where they stand."""
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_pip_is_told_of_this_package() -> None:
    """Not of the other one that has the name `sightline` there; and every extra that an error names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    told, stranger = set(), []
    for path in sorted(
        path for folder in ("src", "docs", "eval", "calibration") for path in (ROOT / folder).rglob("*")
    ):
        if path.suffix in (".py", ".md", ".ipynb"):
            text = path.read_text("utf-8")
            told |= set(re.findall(r"\binstall\(['\"](\w+)['\"]\)", text))
            stranger += re.findall(r"pip install [^`\n]*(?<![\w-])sightline(?![\w-]).*", text)
    assert told
    assert told <= set(project["optional-dependencies"])
    assert stranger == []
