"""`python -m studies.release` (`make release`): build what is published, look at it, and try it as a stranger would.

The version stands in `src/__init__.py`; its section in `CHANGELOG.md`, `CITATION.cff`, and the tag `vVERSION`, if there is a
tag on this commit, must say the same. Then: sdist and wheel into `dist/`, `twine check`, the wheel in a fresh environment without
constraints, a small `sightline demo` there, and the README's first snippet, outside of the repository.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Annotated

import typer
import yaml
from sightline import __version__

ROOT = Path(__file__).parents[1]
TOOLS = ("build", "twine")


def contradictions(tags: list[str]) -> list[str]:
    """What says another version than `src/__init__.py`, in words."""
    found = []
    if not re.search(
        rf"^## {re.escape(__version__)}$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        found.append(f"CHANGELOG.md has no section '## {__version__}'")
    cited = str(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"])
    if cited != __version__:
        found.append(f"CITATION.cff says {cited}")
    found += [f"this commit has the tag {tag}" for tag in tags if tag != f"v{__version__}"]
    return found


def first_snippet() -> tuple[str, str]:
    """The README's first snippet, and what it prints."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1], match[2]


def command(
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the fresh environment here.")] = None,
) -> None:
    """Build, check and try a release."""
    tags = _said("git", "tag", "--points-at", "HEAD").split()
    if found := contradictions([tag for tag in tags if tag.startswith("v")]):
        typer.echo(f"error: the version is {__version__}, but {'; '.join(found)}", err=True)
        raise typer.Exit(1)
    with tempfile.TemporaryDirectory() as folder:
        tools = _environment(Path(folder) / "tools", *TOOLS)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        _run(tools, "-m", "build", "--outdir", str(ROOT / "dist"), str(ROOT))
        built = sorted((ROOT / "dist").iterdir())
        _run(tools, "-m", "twine", "check", "--strict", *map(str, built))
        wheel = next(path for path in built if path.suffix == ".whl")
        fresh = _environment(Path(folder) / "fresh" if keep is None else keep, str(wheel))
        _run(fresh, "-m", "sightline", "demo", "--scenes", "2", cwd=folder)
        source, shown = first_snippet()
        if (printed := _said(str(fresh), "-c", source, cwd=folder)) != shown:
            typer.echo(f"error: the README's first snippet prints\n{printed}instead of\n{shown}", err=True)
            raise typer.Exit(1)
    typer.echo(f"built and tried {', '.join(path.name for path in built)}")
    if not tags:
        typer.echo(f"to release: git tag v{__version__}, and upload dist/ with twine")


def _environment(folder: Path, *packages: str) -> Path:
    """The Python of a new environment with packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def _run(python: Path, *arguments: str, cwd: str | None = None) -> None:
    if subprocess.run([str(python), *arguments], cwd=cwd).returncode:
        typer.echo(f"error: python {' '.join(arguments)} failed", err=True)
        raise typer.Exit(1)


def _said(*arguments: str, cwd: str | None = None) -> str:
    return subprocess.run(arguments, cwd=cwd or ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    typer.run(command)
