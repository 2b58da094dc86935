"""What became of SmolLM2's heads and sinks when it learned to see: `embedded-smol` beside its own language model.

`python -m studies.smol_heads [--scenes N] [--seed N] [--threads N] [--out FOLDER]`

Retrieval heads of `embedded-smol` are measured as those of SmolLM2 were (`studies.heads`: the same needles, lengths and
depths, its first seed) and go into its calibration file, whose other sections are read. Calibration scenes then show, at
the caption prompt, where sinks stand: in each layer phi, VAR's largest RMS-normalised magnitude over the sink's
dimensions, of the first token and of image tokens, and how much attention each head pays to the first token from behind
the image. Writes `smol-heads.json`, from which `python -m studies.pages` draws the maps and the tables of the page.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sightline.benchmarks.runner.tables import code
from sightline.common.files import check_writable, versions, write_json, write_text
from sightline.common.progress import progress_bar
from sightline.common.readers import Notes
from sightline.common.statistics import spearman
from sightline.models.loading import cpu_threads, load_model, quiet
from sightline.models.naming import EMBEDDED_SMOL
from sightline.models.observe import Batch
from sightline.models.samples import TESTBED
from sightline.plugin.calibration.files import Calibration
from sightline.plugin.calibration.sections import HeadTable
from sightline.plugin.core.edits import Edit, InputProbe, Rows, WeightProbe
from sightline.plugin.core.layout import Layout, Step
from sightline.plugin.core.method import ModelFacts, Session
from sightline.profiling.data.examples import examples
from sightline.profiling.job import rounded
from sightline.profiling.probes import retrieval
from sightline.profiling.probes.sinks import magnitude
from torch import Tensor

from .heads import DEPTHS, LENGTHS

SMOL, BASE = Path("calibration/embedded-smol.yaml"), Path("calibration/smollm2-135m-instruct.yaml")
RETRIEVAL, LEARNED = "SmolLM2: retrieval", "tuned: retrieval"
LOOKS, IMAGE, FIRST = "looks at what it names", "on the image", "on the first token"
PAIRS = ((RETRIEVAL, LEARNED), (LEARNED, LOOKS), (IMAGE, LOOKS), (IMAGE, FIRST))
TOP = 20  # heads
BATCH = 8


def body(result: Mapping[str, Any]) -> str:
    """Markdown of `studies.smol_heads`: how alike the head maps are, their best heads, sinks by layer."""
    passed, runs = result["passed"]
    sink, libraries = result["sink"], ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{code(result['command'])} ({libraries})",
        "",
        f"{passed} of {runs} needle runs passed; {result['scenes']} calibration scenes.",
        "",
        "| maps | rank correlation | common in the best 20 |",
        "|---|---|---|",
        *(
            f"| {'; '.join(row['maps'])} | {row['spearman']:.3f} | {len(row['common'])}: {_listed(row['common'])} |"
            for row in result["agreement"]
        ),
        "",
        "| map | best heads (layer-head) |",
        "|---|---|",
        *(f"| {name} | {_listed(heads)} |" for name, heads in result["best"].items()),
        "",
        "## Sinks by layer",
        "",
        f"Dimensions {', '.join(map(str, sink['dims']))}; a token is a sink above tau, {sink['tau']}. phi of the state that"
        " enters a layer, means over prompts.",
        "",
        "| layer | phi, first token | image tokens, median | image tokens, largest | sinks among them |",
        "|---|---|---|---|---|",
        *(
            f"| {layer} | {row['first']:.1f} | {row['image_median']:.2f} | {row['image_most']:.1f} | {row['image_sinks']:.2f} |"
            for layer, row in enumerate(result["layers"])
        ),
    ]
    return "\n".join(lines)


def _listed(pairs: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{layer}-{head}" for layer, head in pairs) or "none"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.smol_heads", description=__doc__)
    parser.add_argument("--scenes", type=int, default=60, help="calibration scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the needles' filler")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("eval/results"))
    arguments = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "studies.smol_heads", *(sys.argv[1:] if argv is None else argv)])
    check_writable(arguments.out / "smol-heads.json")
    known, base = Calibration.load(SMOL), Calibration.load(BASE)
    quiet()
    with cpu_threads(arguments.threads), progress_bar() as bar:
        model, processor = load_model(EMBEDDED_SMOL)
        job = bar.add_task("needles", total=None)
        say = lambda name, total: bar.update(job, total=total, advance=1)  # noqa: E731
        runs = retrieval.runs(model, processor, lengths=LENGTHS, depths=DEPTHS, seed=arguments.seed, advance=say)
        known = with_retrieval(known, runs, command)
        shown = examples(TESTBED, arguments.scenes, seed=arguments.seed, sees=True, notes=Notes())
        bar.update(job, description="scenes", completed=0, total=len(shown))
        seen = sinks(model, processor, shown, known, lambda done: bar.update(job, advance=done))
    result = study(known, base, seen) | {
        "passed": [sum(run.passed for run in runs), len(runs)],
        "scenes": len(shown),
        "command": command,
        "versions": versions(),
    }
    write_json(arguments.out / "smol-heads.json", result)
    write_text(SMOL, known.dump())
    print(f"wrote {arguments.out / 'smol-heads.json'} and {SMOL}")
    return 0


def with_retrieval(known: Calibration, runs: Sequence[retrieval.AnsweredTrial], command: str) -> Calibration:
    """The calibration with the retrieval heads that these runs show."""
    source = {
        "kind": "measured",
        "command": command,
        "reference": f"{sum(run.passed for run in runs)} of {len(runs)} needle runs passed",
        "versions": {name: version for name, version in versions().items() if name in ("torch", "transformers")},
        "date": datetime.date.today().isoformat(),
        "samples": len(runs),
    }
    section = {"scores": rounded(retrieval.average(runs)), "source": source}
    return Calibration.load({**known.model_dump(by_alias=True, exclude_none=True), "retrieval_heads": section})


def study(known: Calibration, base: Calibration, seen: dict[str, Any]) -> dict[str, Any]:
    """The maps [layer][head], how alike they are, and the sinks by layer; JSON-ready."""
    maps: dict[str, HeadTable] = {
        RETRIEVAL: _scores(base, "retrieval_heads"),
        LEARNED: _scores(known, "retrieval_heads"),
        LOOKS: _scores(known, "concept_heads"),
        IMAGE: _scores(known, "image_heads"),
        FIRST: seen["attention"],
    }
    assert known.sink is not None
    return {
        "maps": maps,
        "agreement": [agreement(one, other, maps[one], maps[other]) for one, other in PAIRS],
        "best": {name: best(table) for name, table in maps.items()},
        "sink": known.sink.model_dump(include={"dims", "tau", "first", "tokens", "secondary"}),
        "layers": seen["layers"],
    }


def best(table: HeadTable) -> list[tuple[int, int]]:
    """The `TOP` heads of a map, best first."""
    order = torch.tensor(table).flatten().argsort(descending=True, stable=True)[:TOP]
    return [divmod(place, len(table[0])) for place in order.tolist()]


def agreement(name: str, another: str, one: HeadTable, other: HeadTable) -> dict[str, Any]:
    """Rank correlation over all heads, and the heads that are among the best of both."""
    common = [head for head in best(one) if head in best(other)]
    return {"maps": [name, another], "spearman": round(spearman(one, other), 3), "common": common}


def _scores(calibration: Calibration, section: str) -> HeadTable:
    found: HeadTable = getattr(calibration, section).scores
    return found


def sinks(
    model: Any, processor: Any, shown: Sequence[Any], known: Calibration, advance: Callable[[int], None]
) -> dict[str, Any]:
    """By layer, means over prompts of phi and of sinks among image tokens; by head the attention on the first token."""
    assert known.sink is not None
    dims, tau = known.sink.dims, known.sink.tau
    total: Tensor | float = 0.0
    looked: Tensor | float = 0.0
    for start in range(0, len(shown), BATCH):
        some = shown[start : start + BATCH]
        session = Batch(model, processor, some).read(lambda layout, facts: _Sinks(layout, facts, dims, tau))
        total, looked = total + session.phi.double(), looked + session.looked.double()
        advance(len(some))
    names = ("first", "image_median", "image_most", "image_sinks")
    means = (torch.as_tensor(total) / len(shown)).tolist()
    layers = [dict(zip(names, (round(value, 3) for value in row), strict=True)) for row in means]
    return {"layers": layers, "attention": rounded(torch.as_tensor(looked) / len(shown))}


class _Sinks(Session):
    """What prompts show, summed over the batch.

    phi: of the first token, of image tokens their median and most, and how many lie above tau [layers, 4]. looked: mean
    attention on the first token from behind the image [layers, heads].
    """

    def __init__(self, layout: Layout, facts: ModelFacts, dims: list[int], tau: float):
        self.layout, self.dims, self.tau = layout, dims, tau
        self.phi = torch.zeros(facts.layers, 4)
        self.looked = torch.zeros(facts.layers, facts.heads)

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        rows = step.rows(self.layout.after_image) if step.reading else None
        if rows is None:
            return {}
        return {
            layer: [InputProbe(partial(self._enter, layer)), WeightProbe(partial(self._look, layer, rows), rows)]
            for layer in range(len(self.phi))
        }

    def _enter(self, layer: int, hidden: Tensor) -> None:
        phi = magnitude(hidden)[..., self.dims].amax(-1)
        for row, image in zip(phi, self.layout.image, strict=True):
            seen = row[image]
            self.phi[layer] += torch.stack([row.new_zeros(()), seen.median(), seen.max(), (seen > self.tau).sum()])
        self.phi[layer, 0] += phi[self.layout.first_token].sum()

    def _look(self, layer: int, rows: Rows, weights: Tensor, keys: slice, first: int) -> None:
        active = rows.active[:, first - rows.start : first - rows.start + weights.shape[2]].to(weights)
        share = active / rows.active.sum(-1, keepdim=True)
        on_first = (weights[..., : keys.stop - keys.start] * self.layout.first_token[:, None, None, keys]).sum(-1)
        self.looked[layer] += torch.einsum("bhr,br->h", on_first, share)


if __name__ == "__main__":
    sys.exit(main())
