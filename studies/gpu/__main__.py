"""What a card does, in one command of at most eight minutes: `python -m studies.gpu --out eval/results`.

It runs part by part and writes each into `gpu.json` as it ends; run again, it goes on with the parts that are missing, or
were made by other code or on another card. A part that would not fit into the minutes left is left for the next run. Then it writes the page `gpu.md`. On
a machine without a card both are called `gpu-dry-run` and say so: `--device cpu --tiny` proves the command, no more.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from sightline.benchmarks.speed import bench, shapes
from sightline.common.files import config_hash, locked, versions, write_json, write_text
from sightline.models.loading import quiet, torch_device

from . import conformance
from .page import page

MINUTES = 8.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Part:
    """One part: what makes it, from which arguments, and how many seconds it may take on one card, loading included."""

    make: Callable[..., dict[str, Any]]
    seconds: float
    arguments: dict[str, Any]


def parts(device: str, tiny: bool) -> dict[str, Part]:
    """Every part by name, in the order in which they run: right before fast, eager before compiled."""
    found = {}
    for dtype in conformance.BOUNDS:
        for family in conformance.FAMILIES:
            only = ("vhr", "decore") if tiny else ()
            arguments = {"family": family, "dtype": dtype, "device": device, "only": only}
            found[f"conformance {dtype} {family}"] = Part(conformance.part, 25, arguments)
    image = ["vhr", "var", "gift", "vcd"]
    rows: list[tuple[str, int, list[str], bool, float]] = [
        ("llava-7b-shape", 1, [*image, "naive:var", "naive:gift"], False, 45),
        ("llava-7b-shape", 8, image, False, 45),
        ("qwen2.5-vl-7b-shape", 1, image, False, 40),
        ("llama-2-7b-shape", 1, ["decore", "naive:decore", "cad"], False, 35),
        ("llava-7b-shape", 1, ["vhr", "gift"], True, 130),
        ("llama-2-7b-shape", 1, ["decore", "cad"], True, 90),
        ("qwen2.5-vl-7b-shape", 1, ["vhr", "gift"], True, 130),
    ]
    for name, batch, methods, compiled, seconds in rows:
        arguments = {"name": name, "batch": batch, "methods": methods, "compiled": compiled, "device": device}
        arguments |= {"prompt_tokens": 120 if tiny else 700, "new_tokens": 3 if tiny else 32}
        arguments |= {"repeats": 1 if tiny else 3, "dtype": "float32" if tiny else "bfloat16"}
        kind = "compiled" if compiled else "eager"
        found[f"speed {name} batch {batch} {kind}"] = Part(partial(speed, tiny), seconds, arguments)
    return found


def speed(tiny: bool, **arguments: Any) -> dict[str, Any]:
    """`sightline bench` with these arguments; its graphs and memory go with it."""
    with shrunk(tiny):
        try:
            return bench.bench(arguments.pop("name"), arguments.pop("methods"), **arguments)
        finally:
            torch._dynamo.reset()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@contextmanager
def shrunk(tiny: bool) -> Iterator[None]:
    """The shapes of the bench with small sizes in place of their own, and graphs that run as they are."""
    if not tiny:
        yield
        return
    text = {"hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 8, "num_key_value_heads": 4}
    small = {**text, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64, "vocab_size": 32064}
    small |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    before, side, compiling = dict(shapes.SHAPES), shapes.IMAGE_SIZE, transformers.CompileConfig
    for name, shape in before.items():
        shapes.SHAPES[name] = {
            part: {key: small.get(key, value) for key, value in sizes.items()} for part, sizes in shape.items()
        }
    shapes.IMAGE_SIZE = 112
    transformers.CompileConfig = partial(compiling, backend="eager")  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        shapes.SHAPES.update(before)
        shapes.IMAGE_SIZE = side
        transformers.CompileConfig = compiling  # type: ignore[misc]


def source() -> str:
    """A hash of the code that the numbers depend on."""
    files = sorted(
        [*(ROOT / "src").rglob("*.py"), *(ROOT / "studies/gpu").glob("*.py"), *(ROOT / "tests/helpers").glob("*.py")]
    )
    return config_hash([file.read_text(encoding="utf-8") for file in files])


def run(out: Path, device: str, tiny: bool, minutes: float) -> bool:
    """Run what is missing, write the page; returns whether every part is there and as it should be."""
    began, place = time.monotonic(), torch_device(device)
    card = torch.cuda.get_device_name(place) if place.type == "cuda" else None
    name = "gpu" if card and not tiny else "gpu-dry-run"
    state = out / f"{name}.json"
    made_by = {"device": card or str(place), "tiny": tiny, "versions": versions(), "source": source()}
    found: dict[str, Any] = {**made_by, "parts": {}}
    if state.exists():
        kept = json.loads(state.read_text(encoding="utf-8"))
        if {key: kept.get(key) for key in made_by} == made_by:
            found = kept
    todo = parts(device, tiny)
    for title, part in todo.items():
        if title in found["parts"] and "error" not in found["parts"][title]:
            print(f"{title}: there", flush=True)
            continue
        left = 60 * minutes - (time.monotonic() - began)
        if left < part.seconds:
            print(f"{title}: not begun, {left:.0f} s are left and it may take {part.seconds:.0f}", flush=True)
            continue
        print(f"{title} ...", flush=True)
        since = time.monotonic()
        try:
            result = part.make(**part.arguments)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        result["seconds"] = round(time.monotonic() - since, 1)
        found["parts"][title] = result
        write_json(state, found)
        print(f"{title}: {result.get('error') or result['seconds']}", flush=True)
    missing = [title for title in todo if title not in found["parts"]]
    write_text(out / f"{name}.md", page(found, missing))
    wrong = [
        title
        for title, one in found["parts"].items()
        if "error" in one or (one.get("passed", 0) < len(one.get("rows", ())) and "dtype" in one)
    ]
    print(f"{len(found['parts'])} of {len(todo)} parts are there; wrong: {', '.join(wrong) or 'none'}", flush=True)
    return not missing and not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where gpu.json and gpu.md go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no part begins that may last longer")
    parser.add_argument("--tiny", action="store_true", help="small sizes and a part of the subset: a dry run")
    options = parser.parse_args()
    quiet()
    with locked(options.out / ".gpu.lock", options.out):
        return 0 if run(options.out, options.device, options.tiny, options.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
