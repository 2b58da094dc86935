"""`sightline report`: one HTML page and a Markdown page from folders of results.

The page is one file: nothing is loaded from outside (a content policy in it forbids that), every text is escaped, and of
the samples only a screenful is ever drawn, so that thousands of captions are no burden.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...common.files import config_hash, provenance, write_text
from ...common.readers import Notes
from ..public.chair import LAST_POSITION
from ..runner import tables
from .cards import picture_file, question, view
from .charts import forest, heat, positions
from .folders import Folder, Section, read, sections
from .pictures import Mode, show
from .script import SCRIPT
from .style import STYLE

PAGE, TABLES = "report.html", "report.md"
LIMIT = 24
"""Megabytes of pictures in a page, unless told otherwise."""
CHARTS = 6
_LEGEND = (
    "Rates in percent with 95 % bootstrap intervals over images (questions, where there are none). Differences are paired, "
    "in points; on the page they are coloured where the interval leaves zero out. "
    + tables.TIME.format("the first run")
)


@dataclass(frozen=True)
class Options:
    """pictures: copied into the page, linked, or none. limit: megabytes of copies. images: where else pictures may lie."""

    pictures: Mode = "embed"
    limit: float = LIMIT
    images: Path | None = None


@dataclass
class Report:
    """Folders read and put together."""

    folders: list[Folder]
    sections: list[Section]
    made: Mapping[str, Any]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Report:
        """Read the folders. Raises SightlineError where one holds no results, or is damaged."""
        folders = read(paths)
        return cls(folders, sections(folders), provenance({}))

    @property
    def result(self) -> dict[str, Any]:
        """The report for machines: sections with their runs, and where each folder comes from."""
        shown = [
            {"benchmark": one.benchmark, "data": one.data, "n": one.n, "runs": one.runs, "notes": one.notes}
            | {"folders": [str(folder.path) for folder in one.folders]}
            for one in self.sections
        ]
        folders = []
        for folder in self.folders:
            made = {
                key: (folder.result or {}).get(key) for key in ("command", "versions", "hashes", "settings", "tasks")
            }
            unfinished = [vars(one) for one in folder.unfinished]
            folders.append({"folder": str(folder.path), "unfinished": unfinished} | made)
        return {"sections": shown, "folders": folders} | dict(self.made)

    def markdown(self) -> str:
        """Every table, and where it comes from."""
        parts = [f"# Results\n\n{tables.code(self.made['command'])}\n"] + [f"{_LEGEND}\n"] * bool(self.sections)
        parts += [
            f"## {_title(one)}\n\n{tables.one_line(_about(one))}\n\n{tables.body(one.result, one.kind)}"
            for one in self.sections
        ]
        for folder in self.folders:
            for title, grid in _harness(folder):
                parts.append(f"## {tables.one_line(title)}\n\n{tables.pipes(grid)}")
        parts += [f"- {tables.one_line(line)}\n" for line in self.unfinished()]
        parts.append("## How this was made\n")
        for folder in self.folders:
            if folder.result is not None:
                parts.append(
                    f"**{tables.one_line(folder.name)}**: {tables.code(folder.result['command'])}\n\n{tables.made_with(folder.result)}"
                )
        return "\n".join(parts)

    def unfinished(self) -> list[str]:
        """A line for each run that is not finished."""
        return [
            f"{folder.name}: {run.run} is not finished: {run.done} of {run.of if run.of is not None else 'unknown'} samples"
            f" of {run.benchmark} are done; the same command again does the rest and scores it"
            for folder in self.folders
            for run in folder.unfinished
        ]

    def html(self, place: Path, options: Options, advance: Callable[[int], None] = lambda total: None) -> str:
        """The page, for a file that will lie in the folder `place`. Raises DataError for a damaged sample."""
        notes = Notes()
        told = [(number, one) for number, one in enumerate(self.sections) if one.samples]
        files = list(dict.fromkeys(f for _, one in told for r in one.samples if (f := picture_file(r, options.images))))
        sources = show(files, place, notes, mode=options.pictures, limit=int(options.limit * 1e6), advance=advance)
        numbers = {path: number for number, path in enumerate(files)}
        data = [("pictures", sources)] + [(f"samples-{n}", view(one, numbers, options.images)) for n, one in told]
        body = [self._header(), _list(self.unfinished(), "Unfinished")]
        body += [_section(number, one, notes) for number, one in enumerate(self.sections)]
        body += [
            f"<section><h2>{escape(title)}</h2>{tables.html(grid)}</section>"
            for folder in self.folders
            for title, grid in _harness(folder)
        ]
        body += [_calibrations(self.folders), _footer(self)]
        scripts = "".join(f'<script type="application/json" id="{name}">{_json(one)}</script>' for name, one in data)
        scripts += f"<script>{SCRIPT}</script>"
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(options.pictures)}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Sightline: {escape(self._names())}</title><style>{STYLE}</style></head>"
            f"<body><main>{''.join(body)}</main>{scripts if told else ''}</body></html>\n"
        )

    def _names(self) -> str:
        names = [one.benchmark for one in self.sections]
        names += [task for folder in self.folders for task in (folder.result or {}).get("tasks", {})]
        return ", ".join(dict.fromkeys(names)) or "nothing finished"

    def _header(self) -> str:
        labels = dict.fromkeys(str(f.result["label"]) for f in self.folders if f.result and "label" in f.result)
        about = dict.fromkeys(str(f.result["about"]) for f in self.folders if f.result and "about" in f.result)
        tags = "".join(f'<p class="tag">{escape(label)}</p>' for label in labels)
        folders = ", ".join(folder.name for folder in self.folders)
        lines = "".join(f"<p>{escape(text)}</p>" for text in about) or f"<p>From {escape(folders)}.</p>"
        lines += f"<p>{_LEGEND}</p>" if self.sections else ""
        return f"<header>{tags}<h1>{escape(self._names())}</h1>{lines}</header>"


def write(
    paths: Sequence[Path],
    out: Path,
    options: Options | None = None,
    advance: Callable[[int], None] = lambda total: None,
) -> Report:
    """Read folders of results and write both pages into `out`. Raises SightlineError."""
    report = Report.of(paths)
    page = report.html(out, options or Options(), advance)
    write_text(out / TABLES, report.markdown())
    write_text(out / PAGE, page)
    return report


def _title(section: Section) -> str:
    return f"{section.benchmark}, {section.n} samples"


def _about(section: Section) -> str:
    where = ", ".join(folder.name for folder in section.folders)
    return f"From {where}; data {section.data[:16]}."


def _section(number: int, section: Section, notes: Notes) -> str:
    compared = tables.differences(section.result, section.kind)
    parts = [tables.html(tables.scores(section.result, section.kind))]
    if compared.rows:
        against = ", ".join(dict.fromkeys(str(one["against"]) for one in section.runs if one["against"] is not None))
        parts.append(f"<h3>Change against {escape(against)}</h3>{tables.html(compared)}")
        parts.append(f'<div class="charts">{"".join(_forests(section))}</div>')
    parts += [_places(section), _notes(section.notes), _head_maps(section)]
    if section.samples:
        parts.append(_samples(number, section, notes))
    return f'<section><h2>{escape(_title(section))}</h2><p class="note">{escape(_about(section))}</p>{"".join(parts)}</section>'


def _forests(section: Section) -> Iterator[str]:
    """The scores that have a direction; of a benchmark in splits, the first of them in each split."""
    kind, runs = section.kind, [entry for entry in section.runs if entry["against"] is not None]
    changes = [(entry["name"], entry["differences"][kind.name]) for entry in runs]
    directed = [key for key in kind.columns if key not in kind.neutral]
    split_up = not any("value" in one for one in changes[0][1].values())
    wanted: list[tuple[str | None, str]] = [(None, key) for key in directed if key in changes[0][1]]
    if split_up:
        firsts = ((s, next((key for key in directed if key in one), None)) for s, one in changes[0][1].items())
        wanted = [(split, key) for split, key in firsts if key is not None]
    for split, key in wanted[:CHARTS]:
        found = [(name, (one[split] if split else one)[key]) for name, one in changes]
        rows = [(name, one["value"], tuple(one["interval"]), tables.kind(one, key, kind)) for name, one in found]
        better = "lower" if key in kind.lower else "higher"
        where = f", {split}" if split else ""
        title = f"{kind.columns[key]}{where} ({better} is better)"
        yield forest(title, rows, scale=100 if key in kind.percent else 1)


def _places(section: Section) -> str:
    scored = [(entry["name"], entry[section.benchmark].get("by_position")) for entry in section.runs]
    series = [(name, found) for name, found in scored if found]
    if not series:
        return ""
    chosen = [series[0], series[-1]] if len(series) > 1 else series
    title = "Hallucinated share of the 1st, 2nd, … object that a caption names"
    return f'<div class="charts">{positions(title, chosen, LAST_POSITION)}</div>'


def _head_maps(section: Section) -> str:
    charts = [
        heat(f"{entry['name']}: heads that {method} chose", grid)
        for entry in section.runs
        for method, grid in entry.get("head_maps", {}).items()
    ]
    return _maps("Heads that were chosen", charts)


def _calibrations(folders: Sequence[Folder]) -> str:
    known = {digest: one for folder in folders for digest, one in (folder.result or {}).get("calibrations", {}).items()}
    charts = [
        heat(f"{one['model']}: {name}", grid) for one in known.values() for name, grid in one["head_tables"].items()
    ]
    body = _maps("", charts)
    return f"<section><h2>Calibration: what is known of each head</h2>{body}</section>" if charts else ""


def _maps(title: str, charts: Sequence[str]) -> str:
    if not charts:
        return ""
    note = "Layers from top to bottom, heads from left to right; the deeper the colour, the larger the value."
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'{heading}<p class="note">{note}</p><div class="charts">{"".join(charts)}</div>'


def _samples(number: int, section: Section, notes: Notes) -> str:
    """The frame that the script fills."""
    asked = question(section)
    prompt = f" All were asked: “{escape(asked)}”" if asked else ""
    return (
        f'<div class="samples" data-from="samples-{number}"><h3>Samples</h3><p class="note"><mark>marked</mark>: '
        f"hallucinated, or wrong; <b>underlined</b>: true.{prompt}</p>{_notes(notes.lines())}"
        '<form class="controls" data-is="form"><input type="search" data-is="search" placeholder="Search" '
        'aria-label="Search samples"><label>left <select data-is="left"></select></label><label>right '
        '<select data-is="right"></select></label><label><input type="checkbox" data-is="differ">only where they differ'
        '</label><label><input type="checkbox" data-is="wrong">only with a mark</label></form>'
        '<p class="note" data-is="told"></p><noscript><p class="note">The samples need JavaScript; they are in '
        'samples.jsonl, too.</p></noscript><div class="cards" data-is="cards"></div>'
        '<nav><button type="button" data-is="back">← back</button> <button type="button" data-is="next">next →</button>'
        "</nav></div>"
    )


def _harness(folder: Folder) -> Iterator[tuple[str, tables.Grid]]:
    """The tables of lmms-eval or lm-eval."""
    result = folder.result or {}
    for task, runs in result.get("tasks", {}).items():
        yield f"{task} ({result['engine']} {result['version']})", tables.harness(runs)


def _footer(report: Report) -> str:
    import yaml

    parts = []
    for folder in report.folders:
        result = folder.result
        if result is None:
            continue
        configs = result.get("configs") or {
            one["name"]: one["config"] for one in result.get("runs", []) if one["config"]
        }
        settings = "".join(
            f"<h4>{escape(str(name))}</h4><p>config <code>{config_hash(config)}</code></p>"
            f"<pre>{escape(yaml.safe_dump(config, sort_keys=False))}</pre>"
            for name, config in configs.items()
        )
        more = f"<details><summary>settings of each run</summary>{settings}</details>" if settings else ""
        hashes = [f"{name}: {digest}" for name, digest in result["hashes"].items()]
        made = {key: one for key, one in result.items() if key in ("seed", "split", "batch", "threads", "calibration")}
        lines = [f"{key}: {one}" for key, one in {**made, **result.get("settings", {})}.items()]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        parts.append(
            f"<h3>{escape(folder.name)}</h3><pre>{escape(str(result['command']))}</pre><p>{escape(versions)}</p>"
            f"<ul>{''.join(f'<li><code>{escape(line)}</code></li>' for line in [*lines, *hashes])}</ul>{more}"
        )
    command, versions = escape(str(report.made["command"])), report.made["versions"]
    return (
        f"<footer><h2>How this was made</h2>{''.join(parts)}<p>This page: <code>{command}</code>, sightline "
        f"{escape(versions['sightline'])}.</p></footer>"
    )


def _list(lines: Sequence[str], title: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{_notes(lines)}</section>" if lines else ""


def _notes(lines: Sequence[str]) -> str:
    return f'<ul class="note">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _json(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(pictures: Mode) -> str:
    """What a browser may load for the page: this style, this script, and pictures that are in it (or linked)."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, SCRIPT)]
    images = "data: 'self' file:" if pictures == "link" else "data:"
    return f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src {images}"
