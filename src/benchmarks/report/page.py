"""`sightline report`: one HTML page and a Markdown page from folders of results.

The page is one file, made from the templates beside this module: nothing is loaded from outside (a content policy in it
forbids that), every text is escaped, and of the samples only a screenful is ever drawn, so that thousands of captions are
no burden.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...common.errors import DataError, shortened, shown
from ...common.files import config_hash, provenance, write_text
from ...common.readers import Notes
from ..public.chair import LAST_POSITION
from ..runner import tables
from .cards import picture_file, question, view
from .charts import Chart, forest, heat, positions, tradeoff
from .findings import by_split, findings, headline
from .folders import Folder, ReportSection, read, sections
from .pictures import Mode, show

PAGE, TABLES = "report.html", "report.md"
TEMPLATES = Path(__file__).parent / "templates"
LIMIT = 24
"""Megabytes of pictures in a page, unless told otherwise."""
CHARTS = 6
_LEGEND = (
    "Rates in percent with 95 % bootstrap intervals over images (questions, where there are none). Differences are paired, "
    "in points; on the page they are coloured where the interval leaves zero out. n: the replies that a row is about. "
    + f"{tables.TIME.format('the first run')} {tables.EQUAL}"
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
    sections: list[ReportSection]
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
            f"## {_title(one)}\n\n{tables.one_line(_about(one))}\n\n"
            + "".join(f"- {tables.one_line(found.text)}\n" for found in findings(one))
            + f"\n{tables.body(one.result, one.kind)}"
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
        told = [one for one in self.sections if one.samples]
        files = list(dict.fromkeys(f for one in told for r in one.samples if (f := picture_file(r, options.images))))
        sources = show(files, place, notes, mode=options.pictures, limit=int(options.limit * 1e6), advance=advance)
        numbers = {path: number for number, path in enumerate(files)}
        data: list[tuple[str, Any]] = [("pictures", sources)]
        shown = []
        for number, one in enumerate(self.sections):
            name = f"samples-{number}" if one.samples else ""
            shown.append(_section(one) | {"samples": name})
            if name:
                data.append((name, view(one, numbers, options.images)))
        results = [folder.result for folder in self.folders if folder.result is not None]
        style, script = (_template_file(name) for name in ("report.css", "report.js"))
        return (
            _templates()
            .get_template("report.html")
            .render(
                policy=_policy(options.pictures, style, script),
                style=Markup(style),
                script=Markup(script),
                names=self._names(),
                labels=list(dict.fromkeys(str(one["label"]) for one in results if "label" in one)),
                about=list(dict.fromkeys(str(one["about"]) for one in results if "about" in one))
                or [f"From {', '.join(folder.name for folder in self.folders)}."],
                legend=_LEGEND,
                unfinished=self.unfinished(),
                sections=shown,
                picture_notes=notes.lines(),
                harness=[table for folder in self.folders for table in _harness(folder)],
                calibrations=_calibrations(results),
                folders=[_made(folder) for folder in self.folders if folder.result is not None],
                made=self.made,
                data=data if told else [],
            )
        )

    def _names(self) -> str:
        names = [one.benchmark for one in self.sections]
        names += [task for folder in self.folders for task in (folder.result or {}).get("tasks", {})]
        return ", ".join(dict.fromkeys(names)) or "nothing finished"


def write(
    paths: Sequence[Path],
    out: Path,
    options: Options | None = None,
    advance: Callable[[int], None] = lambda total: None,
) -> Report:
    """Read folders of results and write both pages into `out`. Raises SightlineError."""
    try:
        report = Report.of(paths)
        page, tables_page = report.html(out, options or Options(), advance), report.markdown()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What the scores of a damaged result lead to, whose shape is each benchmark's own (`schema.py` has the rest).
        where = ", ".join(map(str, paths))
        raise DataError(
            f"{shortened(where, 200)}: a score in it is damaged, or of another release of sightline"
            f" ({type(error).__name__}: {shown(str(error))}): run the evaluation again, or leave that folder out"
        ) from error
    write_text(out / TABLES, tables_page)
    write_text(out / PAGE, page)
    return report


def _title(section: ReportSection) -> str:
    """The benchmark and its n: the replies that a row of its table is about."""
    scores = section.runs[0][section.benchmark]
    parts = [one["n"] for split, one in scores.items() if isinstance(one, Mapping) and split != "mean" and "n" in one]
    if not parts:
        return f"{section.benchmark}, n = {scores.get('n', section.n)}"
    return f"{section.benchmark}, n = {'–'.join(map(str, sorted({min(parts), max(parts)})))} a split"


def _about(section: ReportSection) -> str:
    where = ", ".join(folder.name for folder in section.folders)
    return f"From {where}; data {section.data[:16]}."


def _section(section: ReportSection) -> dict[str, Any]:
    """A section as its template takes it."""
    result, kind = section.result, section.kind
    changes = tables.differences(result, kind)
    against = dict.fromkeys(str(one["against"]) for one in section.runs if one["against"] is not None)
    main = headline(section)
    forests = list(_forests(section))
    first = [chart for key, chart in forests if key == main]
    plots = [chart for chart in (_tradeoff(section), *first) if chart is not None]
    return {
        "name": section.benchmark,
        "title": _title(section),
        "about": _about(section),
        "found": findings(section),
        "scores": tables.scores(result, kind),
        "changes": changes,
        "against": ", ".join(against),
        "first_plots": plots,
        "plots": [chart for key, chart in forests if key != main]
        + [one for one in [_places(section)] if one is not None],
        "notes": section.notes,
        "heads": [
            heat(f"{entry['name']}: heads that {method} chose", grid)
            for entry in section.runs
            for method, grid in entry.get("head_maps", {}).items()
        ],
        "question": question(section),
    }


def _forests(section: ReportSection) -> Iterator[tuple[str, Chart]]:
    """The scores that have a direction, each with its chart; of a benchmark in splits, its headline in each split."""
    kind, main, parts = section.kind, headline(section), by_split(section)
    wanted = [("", key) for key in kind.columns if key not in kind.neutral]
    if "" not in parts:
        wanted = [(split, main) for split in parts if main is not None]
    charts = 0
    for split, key in wanted:
        known = [(str(entry["name"]), changes[key]) for entry, changes in parts.get(split, ()) if key in changes]
        rows = [(name, one["value"], tuple(one["interval"]), tables.kind(one, key, kind)) for name, one in known]
        if rows and (charts := charts + 1) <= CHARTS:
            where = f", {split}" if split else ""
            title = f"{kind.columns[key]}{where} ({'lower' if key in kind.lower else 'higher'} is better)"
            yield key, forest(title, rows, scale=100 if key in kind.percent else 1)


def _tradeoff(section: ReportSection) -> Chart | None:
    """Each run's recall and CHAIR_I, beside plain captions that are cut shorter."""
    kind = section.kind
    curve = next((found for one in section.runs if (found := one.get("curves", {}).get(kind.name))), None)
    if curve is None:
        return None
    runs = []
    for entry in section.runs:
        equal = entry["differences"][kind.name].get("equal")
        counts = "open" if equal is None else tables.kind(equal, "equal", kind)
        runs.append((str(entry["name"]), entry[kind.name], entry["intervals"][kind.name], counts))
    return tradeoff(
        "CHAIR_I and recall: below the line is better than stopping the plain captions earlier", curve, runs
    )


def _places(section: ReportSection) -> Chart | None:
    scored = [(entry["name"], entry[section.benchmark].get("by_position")) for entry in section.runs]
    series = [(name, found) for name, found in scored if found]
    if not series:
        return None
    chosen = [series[0], series[-1]] if len(series) > 1 else series
    return positions("Hallucinated share of the 1st, 2nd, … object that a caption names", chosen, LAST_POSITION)


def _calibrations(results: Sequence[Mapping[str, Any]]) -> list[Chart]:
    known = {digest: one for result in results for digest, one in result.get("calibrations", {}).items()}
    return [
        heat(f"{one['model']}: {name}", grid) for one in known.values() for name, grid in one["head_tables"].items()
    ]


def _harness(folder: Folder) -> Iterator[tuple[str, tables.TextTable]]:
    """The tables of lmms-eval or lm-eval."""
    result = folder.result or {}
    for task, runs in result.get("tasks", {}).items():
        yield f"{task} ({result['engine']} {result['version']})", tables.harness(runs)


def _made(folder: Folder) -> dict[str, Any]:
    """Where a folder's result comes from: command, versions, settings, hashes, configurations."""
    import yaml

    result = folder.result or {}
    configs = result.get("configs") or {one["name"]: one["config"] for one in result.get("runs", []) if one["config"]}
    made = {key: one for key, one in result.items() if key in ("seed", "split", "batch", "threads", "calibration")}
    lines = {**made, **result.get("settings", {}), **result["hashes"]}
    return {
        "name": folder.name,
        "command": result["command"],
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "lines": [f"{key}: {one}" for key, one in lines.items()],
        "configs": [
            (str(name), config_hash(config), yaml.safe_dump(config, sort_keys=False))
            for name, config in configs.items()
        ],
    }


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return found


def _template_file(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _policy(pictures: Mode, style: str, script: str) -> str:
    """What a browser may load for the page: this style, this script, and pictures that are in it (or linked)."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    images = "data: 'self' file:" if pictures == "link" else "data:"
    return f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src {images}"
