"""Tasks for lmms-eval and lm-eval from data on disk: their own tasks, and this package's benchmarks.

A task is a YAML file in a folder that the harness gets as `--include_path`. `local_task` inherits one of the harness's
tasks and points it at local parquet, JSON or `save_to_disk` data. `benchmark_task` makes a task of a benchmark of this
package: its rows as a parquet file, its prompts, its scorer, so that both roads must give the same numbers.

The functions at the end are what such a YAML file names with `!function`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ...common.documents import read_rows, read_yaml
from ...common.errors import LINE, ConfigError, DataError, install, shortened
from ...common.files import config_hash, replacing, write_text
from ...common.validation import suggest
from ..benchmark import Benchmark, DataSource
from ..runner import suite

HARNESSES = {"lmms-eval": "lmms_eval", "lm-eval": "lm_eval"}
"""Packages by the name a user types."""
LOWER = frozenset({"s", "i", "chair", "hal", "cog", "memory", "unparsed"})
"""Scores that are better when smaller."""
NEITHER = frozenset({"words", "mentions", "yes_ratio"})
"""Scores that are neither better nor worse."""


def package_folder(harness: str) -> Path:
    """Where a harness is installed, found without importing it. Raises ConfigError."""
    if harness not in HARNESSES:
        raise ConfigError(f"unknown --engine {harness!r}: choose {', '.join(HARNESSES)}")
    found = importlib.util.find_spec(HARNESSES[harness])
    if found is None or found.origin is None:
        raise ConfigError(f"--engine {harness} needs that package: {install('eval')}")
    return Path(found.origin).parent


def local_task(
    harness: str, name: str, data: Path, folder: Path, *, changes: Mapping[str, Any] | None = None
) -> list[str]:
    """Write tasks that are the harness's, but read their rows from `data`.

    Args:
        harness: one of `HARNESSES`.
        name: a task, or a group, which gives one task for each of its own.
        data: a parquet, JSON or JSON-lines file, a folder of `save_to_disk`, or a folder that has one of these under
            the task's name or as parquet files called `SPLIT*.parquet` (as datasets are kept on the hub). JSON may name
            pictures in `image`, relative to the file.
        folder: where the YAML files go.
        changes: further keys of the YAML to replace, as `lmms_eval_specific_kwargs` for other prompts.

    Returns:
        The names of the tasks: the harness's with `_local` behind, for its own would win over ours.

    Raises:
        ConfigError: there is no such task.
        DataError: no data is found, or it is damaged.
    """
    path, written = _find(harness, name)
    if isinstance(written.get("task"), list):
        parts = [part if isinstance(part, str) else part["task"] for part in written["task"]]
        return [made for part in parts for made in local_task(harness, part, data, folder, changes=changes)]
    split = written.get("test_split") or written.get("validation_split")
    if not split:
        raise DataError(f"{path}: the task {name} has no test or validation split")
    place, target = _place(data, name, split), f"{name}_local"
    task = {
        "include": str(path),
        "task": target,
        "dataset_path": "arrow" if place[0].suffix == ".arrow" else "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: [str(one.resolve()) for one in _readable(place, folder / target)]}},
        **(changes or {}),
    }
    write_text(folder / target / f"{target}.yaml", yaml.safe_dump(task, sort_keys=False))
    return [target]


def benchmark_task(harness: str, benchmark: Benchmark, source: DataSource, folder: Path) -> str:
    """Write a task that is a benchmark of this package: its rows and its YAML file.

    Args:
        harness: "lmms-eval" for benchmarks with pictures, "lm-eval" for text.
        benchmark: as `suite.read` gave it for `source`.
        source: where the scorer reads it again.
        folder: where the task goes.

    Returns:
        The task's name, `sightline_` and the benchmark's.

    Raises:
        ConfigError: the benchmark is for the other harness.
    """
    package_folder(harness)
    kinds = {(one.image is not None or not one.raw, bool(one.choices)) for one in benchmark.samples}
    if harness == "lmms-eval" and kinds != {(True, False)}:
        raise ConfigError(f"{benchmark.name} is about text: give --engine lm-eval")
    if harness == "lm-eval" and any(one.image is not None for one in benchmark.samples):
        raise ConfigError(f"{benchmark.name} shows pictures: give --engine lmms-eval")
    if len({bool(one.choices) for one in benchmark.samples}) > 1:
        raise ConfigError(f"{benchmark.name} both scores choices and asks for text, which no task of {harness} does")
    name, digest = f"sightline_{benchmark.name}", benchmark.data_hash()
    choosing, keys = bool(benchmark.samples[0].choices), _keys(benchmark)
    whole = None if source.folder is None else source.folder.resolve()
    origin = json.dumps(
        {**asdict(replace(source, folder=whole)), "benchmark": benchmark.name, "hash": digest}, default=str
    )
    rows = [
        {"number": number, "id": one.id, "text": one.text, "origin": origin, "scores": keys}
        | ({"image": one.image} if harness == "lmms-eval" else {})
        | ({"choices": list(one.choices)} if choosing else {})
        for number, one in enumerate(benchmark.samples)
    ]
    path = folder / name / f"{config_hash([origin])[:16]}.parquet"
    _write_parquet(rows, path)
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": [str(path.resolve())]}},
        "test_split": "test",
        "output_type": "multiple_choice" if choosing else "generate_until",
        "doc_to_text": _Function("asked"),
        "doc_to_target": 0 if choosing else "id",
        "process_results": _Function("result"),
        "metric_list": [
            {"metric": key, "aggregation": _Function("total"), "higher_is_better": _higher(key.split("/")[-1])}
            for key in keys
        ],
        "metadata": {"version": digest[:16]},
    }
    if choosing:
        task |= {"doc_to_choice": "choices", "target_delimiter": ""}
    else:
        longest = "max_new_tokens" if harness == "lmms-eval" else "max_gen_toks"
        task |= {"generation_kwargs": {longest: benchmark.new_tokens, "do_sample": False, "until": []}}
    if harness == "lmms-eval":
        task |= {"doc_to_visual": _Function("pictures")}
    write_text(folder / name / f"{name}.yaml", yaml.dump(task, Dumper=_Dumper, sort_keys=False))
    return name


def _higher(score: str) -> bool | None:
    return None if score in NEITHER else score not in LOWER


class _Function(str):
    """A function of this module, for `!function`."""


class _Dumper(yaml.SafeDumper):
    """Writes `!function sightline.benchmarks.harness.offline.NAME`, which both harnesses import."""


_Dumper.add_representer(
    _Function, lambda dumper, name: dumper.represent_scalar("!function", f"{__name__}.{name}", style="")
)


def _find(harness: str, name: str) -> tuple[Path, dict[str, Any]]:
    """The YAML file of a harness's task or group, and what is written in it and in the files it includes."""
    known = []
    for path in sorted((package_folder(harness) / "tasks").rglob("*.yaml")):
        text = path.read_text("utf-8", errors="replace")
        if name in text:
            written = _load(path)
            if written.get("task") == name or written.get("group") == name:
                return path, written
        known += [
            line.split(":", 1)[1].strip().strip("'\"")
            for line in text.splitlines()
            if line.startswith(("task:", "group:"))
        ]
    raise ConfigError(f"{harness} has no task {name!r}{suggest(name, known)}")


def _load(path: Path) -> dict[str, Any]:
    written = read_yaml(path, error=DataError, foreign=True)
    if not isinstance(written, dict):
        return {}
    included = written.pop("include", [])
    for one in [included] if isinstance(included, str) else included:
        written = {**_load(path.parent / one), **written}
    return written


def _place(data: Path, name: str, split: str) -> list[Path]:
    """The files that hold a task's rows. Raises DataError."""
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise DataError(f"no data at {data}: check --data")

    def looked() -> Iterator[list[Path]]:
        for folder in (data / name, data):
            yield sorted((folder / split).glob("*.arrow")) or sorted(folder.glob("*.arrow"))
            yield sorted(folder.glob(f"**/{split}*.parquet"))
            yield [
                path for end in ("parquet", "json", "jsonl") for path in [folder / f"{name}.{end}"] if path.is_file()
            ]
            yield [path for end in ("json", "jsonl") for path in [folder / f"{split}.{end}"] if path.is_file()]
        yield [path for end in ("parquet", "json", "jsonl") for path in [data / f"{name}.{end}"] if path.is_file()]

    found = next(filter(None, looked()), None)
    if found is None:
        raise DataError(
            f"{data} has no rows for {name}: expected {name}.parquet, {name}.json, {split}*.parquet, "
            f"or what save_to_disk writes, there or in {name}/"
        )
    return found


def _readable(files: Sequence[Path], folder: Path) -> list[Path]:
    """The files as they are, or for JSON a parquet file made of them, pictures and all."""
    if files[0].suffix not in (".json", ".jsonl"):
        return list(files)
    rows = []
    for path in files:
        for place, row in read_rows(path):
            if isinstance(row.get("image"), str):
                picture = path.parent / row["image"]
                if not os.path.isfile(picture):
                    raise DataError(f"{place}: no picture {shortened(str(picture), LINE)}")
                row = {**row, "image": picture}
            rows.append(row)
    stamp = [(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    made = folder / f"{config_hash(stamp)[:16]}.parquet"
    _write_parquet(rows, made)
    return [made]


def _write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as a parquet file, `image` (a file or a picture) with its bytes; a file that is there is kept.

    The name says what is in it, so that processes that write it together write the same.
    """
    if path.exists():
        return
    import datasets

    table = {key: [row.get(key) for row in rows] for key in rows[0]}
    if "image" in table:
        table["image"] = [str(one) if isinstance(one, Path) else one for one in table["image"]]
    features = {"image": datasets.Image()} if "image" in table else {}
    known = datasets.Dataset.from_dict({key: values for key, values in table.items() if key != "image"}).features
    made = datasets.Dataset.from_dict(table, features=datasets.Features({**known, **features}))
    with replacing(path) as new:
        made.to_parquet(new)


def _keys(benchmark: Benchmark) -> list[str]:
    """The names of a benchmark's scores, which those of empty replies have, too."""
    blank = [[0.0] * len(one.choices) if one.choices else "" for one in benchmark.samples]
    return list(_scores(benchmark, blank))


def _scores(benchmark: Benchmark, replies: Sequence[Any]) -> dict[str, float]:
    """The printed scores of a benchmark, a split's as `split/score`."""
    scored = benchmark.score(replies)
    parts = {f"{split}/": one for split, one in scored.items()} if isinstance(scored, Mapping) else {"": scored}
    found: dict[str, float] = {}
    for part, one in parts.items():
        values: Mapping[str, Any] = one.values
        found |= {f"{part}{key}": float(values[key]) for key in benchmark.columns if key in values and key != "n"}
    return found


# --- what the YAML files name ----------------------------------------------------------------------------------------


def asked(doc: Mapping[str, Any], *_: Any, **__: Any) -> str:
    """A row's prompt."""
    return str(doc["text"])


def pictures(doc: Mapping[str, Any], *_: Any, **__: Any) -> list[Any]:
    """A row's picture, if it has one."""
    return [] if doc["image"] is None else [doc["image"].convert("RGB")]


def result(doc: Mapping[str, Any], results: Sequence[Any], *_: Any, **__: Any) -> dict[str, dict[str, Any]]:
    """A row's reply, once for each score: the scores of a benchmark are of all replies together."""
    reply = [float(chance) for chance, _ in results] if doc.get("choices") else results[0]
    item = {"origin": doc["origin"], "number": doc["number"], "reply": reply}
    return {key: {**item, "metric": key} for key in doc["scores"]}


def total(items: Sequence[Mapping[str, Any]]) -> float:
    """A score of all rows, from what `result` gave for each, in any order.

    Raises:
        DataError: rows are missing: the harness was told to run a part of them.
    """
    replies = {item["number"]: item["reply"] for item in items}
    benchmark = _benchmark(items[0]["origin"])
    missing = len(benchmark.samples) - len(replies)
    if missing:
        raise DataError(f"{benchmark.name}: {missing} replies are missing: limit the benchmark, not the harness")
    return _scores(benchmark, [replies[number] for number in range(len(replies))])[items[0]["metric"]]


@functools.lru_cache(maxsize=8)
def _benchmark(origin: str) -> Benchmark:
    """The benchmark a row belongs to. Raises DataError where its files have changed since."""
    written = json.loads(origin)
    name, digest = written.pop("benchmark"), written.pop("hash")
    for key in ("folder", "synonyms"):
        written[key] = None if written[key] is None else Path(written[key])
    benchmark = suite.read(name, DataSource(**written))
    if benchmark.data_hash() != digest:
        raise DataError(f"{name}: the data has changed since the task was written: write it again")
    return benchmark
