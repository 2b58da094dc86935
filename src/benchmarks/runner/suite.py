"""Which benchmarks there are, found by name and imported when asked for."""

from __future__ import annotations

import importlib

from ...common.errors import ConfigError, DataError
from ...common.readers import check_sums
from ...common.validation import suggest
from ..benchmark import Benchmark, Source

BENCHMARKS: dict[str, str] = {
    "pope": "object_questions:PopeBenchmark",
    "chair": "captions:ChairBenchmark",
    "amber": "amber:Amber",
    "mme": "mme:MME",
    "hallusion": "hallusion:HallusionBench",
    "mmhal": "mmhal:MMHal",
    "memotrap": "textqa:MemoTrap",
    "nqswap": "textqa:NQSwap",
    "truthfulqa": "textqa:TruthfulQA",
}
"""Where each benchmark is defined, by the name a user types."""


def find(name: str) -> type[Benchmark]:
    """A benchmark by name. Raises ConfigError with the nearest and all names."""
    if name not in BENCHMARKS:
        raise ConfigError(
            f"unknown benchmark {name!r}{suggest(name, list(BENCHMARKS))}; there are {', '.join(BENCHMARKS)}"
        )
    module, _, kind = BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(f"sightline.benchmarks.public.{module}"), kind)


def read(name: str, source: Source) -> Benchmark:
    """A benchmark with its samples. Raises ConfigError for its name, DataError for its files."""
    kind = find(name)
    given = {"prompt", "synonyms", "categories", "match"} - kind.options
    if wrong := sorted(option for option in given if getattr(source, option) is not None):
        takers = [one for one in BENCHMARKS if wrong[0] in find(one).options]
        raise ConfigError(f"{name} does not take --{wrong[0]}, which is for {', '.join(takers)}")
    if source.folder is not None and source.folder.is_file():
        raise DataError(f"{source.folder} is a file: --data takes the folder that holds it")
    if source.folder is not None:
        check_sums(source.folder)
    benchmark = kind.read(source)
    if not benchmark.samples:
        raise ConfigError(f"{name}: no sample is left: raise --limit")
    return benchmark
