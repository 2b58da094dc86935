"""Folders of results, read back, checked and put together: what `sightline report` shows.

A folder is one that `sightline eval` or `sightline demo` wrote. Runs about the same data (benchmark and data hash) make one
`ReportSection`, side by side; other data makes another. What is unfinished is told, what is damaged is an error that names file
and line.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.documents import read_json, read_rows
from ...common.errors import DataError
from ...common.files import config_hash
from ..benchmark import Benchmark
from ..runner import suite
from ..runner.evaluate import RESULT, SAMPLES
from ..runner.plan import PLAIN
from ..runner.store import MANIFEST, finished
from . import schema

Entry = dict[str, Any]
_COMMAND = "sightline eval or sightline demo"


@dataclass(frozen=True)
class Unfinished:
    """A run that is not part of the folder's result: samples done, of how many (None: not said), for which benchmark."""

    run: str
    done: int
    of: int | None
    benchmark: str


@dataclass(frozen=True)
class Folder:
    """A folder: `result.json` (None: nothing is merged yet), the lines of `samples.jsonl`, and what is unfinished."""

    path: Path
    name: str
    result: Mapping[str, Any] | None
    samples: list[tuple[str, dict[str, Any]]]
    unfinished: list[Unfinished]

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks that the result has scores of; a demo has two, captions first."""
        if self.result is None or "tasks" in self.result:
            return []
        first = self.result["runs"][0]
        return [self.result["benchmark"]] if "benchmark" in self.result else [k for k in first if k in suite.BENCHMARKS]

    @property
    def told(self) -> str | None:
        """The benchmark that the samples are of."""
        return next(iter(self.benchmarks), None)


@dataclass
class ReportSection:
    """Runs about the same data, in the shape of an evaluation's result (`runs`, `n`, `notes`).

    samples: rows of `samples.jsonl`, each run's reply under the name that the run has here, `at` their folder. data: their
    hash. folders: where the runs come from.
    """

    benchmark: str
    data: str
    n: int
    runs: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)

    @property
    def kind(self) -> type[Benchmark]:
        return suite.find(self.benchmark)

    @property
    def result(self) -> dict[str, Any]:
        return {"benchmark": self.benchmark, "n": self.n, "runs": self.runs, "notes": self.notes}


def read(paths: Sequence[Path]) -> list[Folder]:
    """The folders, and for one that holds no result itself the folders in it that do.

    Raises:
        DataError: one is missing, given twice, holds no results, or is damaged.
    """
    places: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise DataError(f"no folder {path}: give a folder that {_COMMAND} wrote")
        inside = [path] if _holds(path) else [one for one in sorted(path.iterdir()) if one.is_dir() and _holds(one)]
        if not inside:
            raise DataError(
                f"{path} holds no results: no {RESULT}, and no run with its {MANIFEST}; give a folder that {_COMMAND} wrote"
            )
        places += inside
    twice = [path for path, times in Counter(one.resolve() for one in places).items() if times > 1]
    if twice:
        raise DataError(f"the folder {twice[0]} is given twice")
    return [_read(path, name) for path, name in zip(places, _names(places), strict=True)]


def sections(folders: Iterable[Folder]) -> list[ReportSection]:
    """The folders' results, put together by what they are about. Raises DataError where samples contradict each other."""
    found: dict[tuple[str, str], ReportSection] = {}
    for folder in folders:
        for benchmark in folder.benchmarks:
            data = _data(folder)
            key = (benchmark, data)
            number = _number(folder, benchmark)
            section = found.setdefault(key, ReportSection(benchmark, data, number))
            section.folders.append(folder)
    for section in found.values():
        _fill(section)
    return list(found.values())


def _holds(path: Path) -> bool:
    return (path / RESULT).is_file() or any(path.glob(f"*/{MANIFEST}"))


def _names(places: Sequence[Path]) -> Iterator[str]:
    """As much of the end of each path as tells it from the others."""
    whole = [path.resolve().parts for path in places]
    for parts in whole:
        size = next(
            size for size in range(1, len(parts) + 1) if sum(other[-size:] == parts[-size:] for other in whole) == 1
        )
        yield "/".join(parts[-size:])


def _read(path: Path, name: str) -> Folder:
    result, samples = None, []
    if (path / RESULT).is_file():
        result = read_json(path / RESULT, dict)
        _check(result, path / RESULT)
        if (path / SAMPLES).is_file():
            samples = read_rows(path / SAMPLES)
            _check_samples(result, samples, path / SAMPLES)
    return Folder(path, name, result, samples, list(_unfinished(path, result)))


def _check(result: Mapping[str, Any], place: Path) -> None:
    """Raises DataError where a result is none of ours."""
    schema.check(result, place, _COMMAND)
    if "tasks" in result:
        return
    if "benchmark" in result:
        names = [result["benchmark"]]
        suite.find(str(names[0]))
    else:
        names = [key for key in suite.BENCHMARKS if result["runs"] and key in result["runs"][0]]
    if not result["runs"] or not names:
        raise DataError(f"{place}: it has scores of no benchmark: not a result of {_COMMAND}")
    for number, entry in enumerate(result["runs"]):
        lost = [key for key in ("name", "config", "time_ratio", "intervals", "differences", *names) if key not in entry]
        lost += [f"{part}.{name}" for part in ("intervals", "differences") for name in names if name not in entry[part]]
        if lost:
            raise DataError(f"{place}: run {number} has no {lost[0]!r}: not a result of {_COMMAND}")


def _check_samples(result: Mapping[str, Any], samples: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> None:
    runs = {entry["name"] for entry in result.get("runs", [])}
    for place, row in samples:
        said = row.get("runs")
        if not {"id", "text", "truth"} <= set(row) or not isinstance(said, dict) or set(said) != runs:
            raise DataError(f"{place}: not a sample with a reply of each run ({', '.join(sorted(map(str, runs)))})")
    if "n" in result and len(samples) != result["n"]:
        raise DataError(
            f"{path}, line {len(samples)}: the file ends, but {RESULT} has {result['n']} samples: it is cut off"
        )


def _unfinished(path: Path, result: Mapping[str, Any] | None) -> Iterator[Unfinished]:
    merged = {entry["name"] for entry in (result or {}).get("runs", [])}
    for manifest in sorted(path.glob(f"*/{MANIFEST}"), key=lambda one: (one.parent.name != PLAIN, one.parent.name)):
        if manifest.parent.name not in merged:
            made = read_json(manifest, dict)
            done = min(
                len(finished(manifest.parent)), made.get("samples") or sys.maxsize
            )  # not what plain is asked besides
            yield Unfinished(manifest.parent.name, done, made.get("samples"), str(made.get("benchmark")))


def _data(folder: Folder) -> str:
    """What tells data apart: the hash of the samples; of a demo, that of its scenes with what chose the questions."""
    assert folder.result is not None
    hashes = folder.result["hashes"]
    if "data" in hashes:
        return str(hashes["data"])
    return f"{hashes.get('scenes', folder.path)}, seed {folder.result.get('seed', 0)}"


def _number(folder: Folder, benchmark: str) -> int:
    assert folder.result is not None
    scores = folder.result["runs"][0][benchmark]
    found = folder.result.get("n", scores.get("n"))
    return int(found) if found is not None else sum(part["n"] for part in scores.values())


def _fill(section: ReportSection) -> None:
    """Put the folders' runs side by side, under names that tell them apart; equal plain runs are one."""
    told = {folder.path: folder.samples if folder.told == section.benchmark else [] for folder in section.folders}
    names = _labels(section, told)
    rows: dict[str, dict[str, Any]] = {}
    said: dict[str, list[str]] = {}
    for folder in section.folders:
        result, mine = folder.result, names[folder.path]
        assert result is not None
        for line in result.get("notes", []):
            said.setdefault(line, []).append(folder.name)
        if folder.told == section.benchmark and not folder.samples:
            said.setdefault(f"no {SAMPLES}: the replies are not shown", []).append(folder.name)
        for number, entry in enumerate(result["runs"]):
            label, against = mine[entry["name"]], entry.get("against", result["runs"][0]["name"] if number else None)
            if all(label != known["name"] for known in section.runs):
                compared = {"name": label, "against": mine.get(against), "folder": str(folder.path)}
                section.runs.append(_entry(folder, entry, section.benchmark) | compared)
        for place, row in told[folder.path]:
            kept = rows.setdefault(row["id"], {**row, "runs": {}, "at": folder.path})
            if (kept["truth"], kept["text"]) != (row["truth"], row["text"]):
                raise DataError(f"{place}: sample {row['id']!r} is another one than in {kept['at']}")
            kept["runs"] |= {mine[name]: reply for name, reply in row["runs"].items()}
    section.samples = list(rows.values())
    whole = len(section.folders)
    section.notes = [line if len(homes) == whole else f"{', '.join(homes)}: {line}" for line, homes in said.items()]
    models = {folder.result["hashes"].get("model") for folder in section.folders if folder.result}
    if len(models - {None}) > 1:
        section.notes.append("the runs are of different models; each is compared with its own folder's first run")
    elif alone := [str(entry["name"]) for entry in section.runs[1:] if entry["against"] is None]:
        section.notes.append(f"compared with none, as first runs of their folders: {', '.join(alone)}")


def _labels(
    section: ReportSection, told: Mapping[Path, Sequence[tuple[str, Mapping[str, Any]]]]
) -> dict[Path, dict[str, str]]:
    """For each folder, its runs' names -> their names here: with the folder's where two different runs share one."""
    first: dict[tuple[str, str], Folder] = {}
    keys: dict[Path, dict[str, tuple[str, str]]] = {}
    for folder in section.folders:
        assert folder.result is not None
        for number, entry in enumerate(folder.result["runs"]):
            which = str(folder.path) if number else _identity(folder, entry, section.benchmark, told[folder.path])
            key = (entry["name"], which)
            keys.setdefault(folder.path, {})[entry["name"]] = key
            first.setdefault(key, folder)
    sharing = Counter(name for name, _ in first)
    return {
        path: {name: name if sharing[name] == 1 else f"{name} ({first[key].name})" for name, key in mine.items()}
        for path, mine in keys.items()
    }


def _entry(folder: Folder, entry: Entry, benchmark: str) -> Entry:
    """What a run's entry says of one benchmark; the demo's says something of two."""
    assert folder.result is not None
    own = {key: one for key, one in entry.items() if key not in suite.BENCHMARKS or key == benchmark}
    own |= {part: {benchmark: entry[part][benchmark]} for part in ("intervals", "differences")}
    if "times" not in entry:  # a result from before times were kept batch by batch
        seconds, plain = (one.get("seconds", {}).get(benchmark) for one in (entry, folder.result["runs"][0]))
        own |= {"time_ratio": seconds / plain} if seconds is not None and plain else {}
    return own | ({} if folder.told == benchmark else {"head_maps": {}})  # they are of the captions


def _identity(
    folder: Folder, entry: Mapping[str, Any], benchmark: str, samples: Sequence[tuple[str, Mapping[str, Any]]]
) -> str:
    """What makes two plain runs one: the same model, settings, scores and replies."""
    assert folder.result is not None
    made = {key: one for key, one in folder.result.get("settings", {}).items() if key != "seed"}
    said = [row["runs"][entry["name"]] for _, row in samples]
    return config_hash([folder.result["hashes"].get("model"), made, entry[benchmark], said])
