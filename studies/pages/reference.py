"""The reference of the Python interface and of the shell, from docstrings and from the commands' own help."""

from __future__ import annotations

import inspect
import re
from typing import Any

import sightline
import typer.main
from sightline.cli.main import app

MADE = "Written by `make docs` from {}."
GROUPS = {
    "Attaching": ("load_model", "attach", "wrap", "unwrap", "Plug", "Config", "Calibration", "methods", "unmark"),
    "Scores": ("score", "Score"),
    "Before `generate`": ("carve", "carve_all", "carved_inputs", "Carving"),
    "Writing a method": ("register", "Method", "Session", "Settings", "ModelFacts", "Layout", "Step"),
    "Edits": (
        *("Edit", "Rows", "Gain", "Bias", "Reweight", "Mass", "Add", "Shift", "Disperse", "Input"),
        *("WeightProbe", "OutputProbe", "InputProbe"),
    ),
    "Writing a decoder": ("register_decoder", "Decoder", "Contrast", "Branch"),
    "Errors": (
        *("SightlineError", "ConfigError", "CalibrationError", "UnsupportedModelError", "LayoutError", "CallError"),
        *("ScoresError", "NoEffectWarning", "UncompiledWarning"),
    ),
}


def api() -> str:
    """Markdown page: every public name, by what it is for. Raises ValueError where a name has no group."""
    listed = [name for names in GROUPS.values() for name in names]
    if sorted(listed) != sorted(sightline.__all__):
        raise ValueError(
            f"studies/pages/reference.py and sightline.__all__ differ: {set(listed) ^ set(sightline.__all__)}"
        )
    lines = ["# Python reference", "", MADE.format("the docstrings of what `import sightline` gives"), ""]
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += _entry(name, getattr(sightline, name), "###")
    return "\n".join(lines).rstrip() + "\n"


def _entry(name: str, thing: Any, mark: str) -> list[str]:
    """A heading, the signature, the docstring, and of a class its public methods and properties."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):  # Edit: a union of types
        return [f"{mark} `{name}`", "", f"`{_shown(str(thing))}`", ""]
    lines = [f"{mark} `{name}`", ""]
    error = inspect.isclass(thing) and issubclass(thing, Exception)
    if not error:
        lines += ["```text", _signature(name, thing), "```", ""]
    lines += [_docstring(thing), ""]
    if inspect.isclass(thing) and not error:
        for key, member in vars(thing).items():
            member = getattr(member, "__func__", member)
            if key.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            told = _docstring(member.fget if isinstance(member, property) else member)
            shown = key if isinstance(member, property) else _signature(key, member)
            if told:
                lines += [f"- **`{' '.join(shown.split())}`**: " + told.replace("\n", "\n  ")]
        lines += [""]
    return lines


def _signature(name: str, thing: Any) -> str:
    try:
        return _shown(f"{name}{inspect.signature(thing)}")
    except ValueError:
        return name


def _shown(text: str) -> str:
    """Types by their last name: `Layout`, not `sightline.plugin.core.layout.Layout`; no addresses."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations; what is left in quotes are defaults
    text = re.sub(r"\b(?:[a-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _docstring(thing: Any) -> str:
    """A docstring as Markdown: the names under Args and Raises become a list."""
    lines = (inspect.getdoc(thing) or "").splitlines() if "__doc__" in vars(thing) or not inspect.isclass(thing) else []
    out, listing = [], False
    for line in lines:
        if re.fullmatch(r"(Args|Raises|Returns|Yields|Attributes):", line):
            listing = True
            out += [f"**{line}**", ""]
        elif listing and (found := re.match(r"    (\w[\w, ]*): (.*)", line)):
            out.append(f"- `{found[1]}`: {found[2]}")
        elif listing and line.startswith("    "):
            out.append(f"  {line.strip()}")
        else:
            listing = False
            out.append(line)
    return "\n".join(out).strip().replace("<", "&lt;")


def cli() -> str:
    """Markdown page: every command with its arguments and options."""
    lines = ["# The shell", "", MADE.format("the commands' own help, `sightline COMMAND --help`"), ""]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        told = " ".join(inspect.cleandoc(command.help or "").split())
        lines += [f"## {name}", "", told, "", "| option | meaning |", "|---|---|"]
        context = command.make_context(name, [], resilient_parsing=True)
        for one in command.get_params(context):
            if one.name == "help":
                continue
            names, meaning = one.get_help_record(context) or ("", "")
            cells = (
                " ".join(text.split()).replace("|", "\\|") for text in (f"`{names}`", meaning.replace("<", "&lt;"))
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
