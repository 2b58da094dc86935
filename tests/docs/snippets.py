"""The code blocks of Markdown pages: found, and run as a reader would run them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomllib
import typer.main
import yaml
from sightline.cli.main import app, main
from sightline.common.errors import DISTRIBUTION
from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.config import KEYS, Config, named_configs
from sightline.plugin.core.registry import METHODS, PREPROCESSORS

ROOT = Path(__file__).parents[2]
ILLUSTRATIVE = re.compile(r"<!-- illustrative: (.+?) -->")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TOOLS = {"pip", "git", "make", "cd", "torchrun", "vllm", "python", "twine"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its page where it begins, and why it is not run, if it is not."""

    language: str
    text: str
    line: int
    illustrative: str = ""
    shown: str | None = None
    """The output that the page prints below it."""


def pages() -> list[Path]:
    """Every page whose blocks are run: all that people read, but for what the calibration of models looks like."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> list[Block]:
    """The blocks of a page; a `text` block right below another one is what that one prints."""
    text = path.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        between = text[end : match.start()]
        mark = ILLUSTRATIVE.search(between)
        why = mark[1] if mark is not None and not between[mark.end() :].strip() else ""
        if match[1] == "text" and found and not between.strip():
            found[-1] = Block(**{**vars(found[-1]), "shown": match[2]})
        elif match[1] != "text":
            found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 2, why))
        end = match.end()
    return found


def run(page: Path) -> Iterator[tuple[int, str, str]]:
    """Run the blocks of a page in order, in one namespace; yields line, what the page says is printed, and what is.

    YAML that begins with `# NAME.yaml` is written into the working directory, for the blocks behind it.
    """
    space: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if block.illustrative:
            continue
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text
            printed = _printed(lambda source=source: exec(compile(source, str(page), "exec"), space))  # type: ignore[misc]
            if block.shown is not None:
                yield block.line, block.shown, printed
        elif block.language == "yaml":
            configure(block.text)
        elif block.language == "toml":
            toml(block.text)
        elif block.language == "console":
            for command, output in commands(block.text):
                words = check(command)
                if output.strip():
                    assert words[0] == "sightline", f"{command}: its output is not checked"
                    yield block.line, output, _printed(lambda words=words: main(words[1:]))  # type: ignore[misc]
        else:
            raise AssertionError(
                f"{page.name}:{block.line}: no way to run a block of {block.language or 'no language'}"
            )


def _printed(action: Callable[[], Any]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert not action(), "the command failed"
    return said.getvalue()


def configure(text: str) -> None:
    """Read YAML as what it is: a configuration, or a suite of named ones; a named file is written."""
    data = yaml.safe_load(text)
    if set(data) <= set(KEYS):
        Config.load(data)
    else:
        named_configs(data, "the page")
    name = re.match(r"# ([\w.-]+\.yaml)\n", text)
    if name is not None:
        Path(name[1]).write_text(text, encoding="utf-8")


def toml(text: str) -> None:
    """Read a project file as what it is: it needs this package, and its entry points are in groups that the registries read."""
    groups = {f"sightline.{one.kind}s" for one in (METHODS, DECODERS, PREPROCESSORS)}
    project = tomllib.loads(text)["project"]
    assert project["dependencies"] == [DISTRIBUTION]
    assert set(project["entry-points"]) <= groups


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each `$ command` of a console block, and the output below it."""
    parts = re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block begins with a command"
    for part in parts[1:]:
        command, _, output = part.partition("\n")
        for one in command.split(" && "):
            yield re.sub(r"\s+#.*", "", one).strip(), output


def check(command: str) -> list[str]:
    """The words of a command that exists, with options that it takes."""
    words = shlex.split(command)
    if words[0] == "sightline":
        known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        if words[1] not in ("--version", "--help"):
            known[words[1]].make_context(words[1], words[2:])
    elif words[:2] == ["python", "-m"] and words[2].startswith(("studies", "tests", "sightline")):
        assert find_spec(words[2]) is not None, f"{command}: no such module"
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{command}: the Makefile has {targets}"
    else:
        assert words[0] in _TOOLS, f"{command}: an unknown program"
    return words
