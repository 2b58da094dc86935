"""Which benchmarks there are, found by name and imported when asked for.

Other distributions add theirs as entry points of the group `sightline.benchmarks`: a name, and the class that has it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ...common.errors import ConfigError, DataError
from ...common.readers import check_sums
from ...common.validation import suggest
from ..benchmark import Benchmark, DataSource

GROUP = "sightline.benchmarks"
_OWN = {
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
BENCHMARKS: dict[str, EntryPoint] = {
    name: EntryPoint(name, f"sightline.benchmarks.public.{place}", GROUP) for name, place in _OWN.items()
} | {point.name: point for point in entry_points(group=GROUP) if point.name not in _OWN}
"""Where each benchmark is defined, by the name a user types."""


def find(name: str) -> type[Benchmark]:
    """A benchmark by name.

    Raises:
        ConfigError: with the nearest and all names where there is none, or one of another distribution cannot be loaded.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"unknown benchmark {name!r}{suggest(name, list(BENCHMARKS))}; there are {', '.join(BENCHMARKS)}"
        )
    if name in _OWN:
        return BENCHMARKS[name].load()
    try:
        found = BENCHMARKS[name].load()
    except Exception as error:  # whatever a stranger's module raises when it is imported
        raise ConfigError(
            f"benchmark {name!r} ({BENCHMARKS[name].value}) cannot be loaded: {type(error).__name__}: {error}; mend or"
            " uninstall it"
        ) from error
    if not isinstance(found, type) or not issubclass(found, Benchmark) or found.name != name:
        raise ConfigError(f"{BENCHMARKS[name].value} is no Benchmark whose name is {name!r}: mend or uninstall it")
    return found


def read(name: str, source: DataSource) -> Benchmark:
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
