"""How well the trace of an answer tells hallucinated from true object words.

`python -m studies.grounding [--scenes N] [--threads N] [--seed N] [--out FOLDER] [--calibration FILE]`

The embedded model describes scenes, greedily; every object that a caption names is a case, hallucinated or true (CHAIR's
rule). Its signals are the columns of `Plug.trace` at the word's first token, where the choice falls. Each signal is
judged by its AUROC, hallucinated against true, with a 95 % bootstrap interval over scenes. Hallucinations pile up at the
end of a caption, so place in the caption is a signal, too, and the AUROC among mentions of one place is given besides.

What is chosen is chosen on calibration scenes: the sign of each signal, the calibrated heads whose look at the image
tells most (all heads are there to compare with: they cost more), the branch whose contrast does, and the threshold of
`--explain`, where the true positive rate exceeds the false one most (Youden). Test scenes are for the report. The
combinations were stated beforehand: the sum of standard scores (mean and deviation of the calibration scenes) of entropy
and the look at the image, and of these two and the contrast.

Four runs record everything: four sets of heads, and beside them three branches, combined with the model at a strength
that leaves its choices alone. Writes `grounding.md` and `.json` into the folder, and the section `grounding` into the
calibration file.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sightline.benchmarks.public.scenes import CAPTION_TOKENS, scene_vocabulary
from sightline.common.errors import SightlineError
from sightline.common.files import check_writable, versions, write_json, write_text
from sightline.common.progress import progress_bar
from sightline.common.statistics import Auroc, Floats, difference, interval
from sightline.models.loading import EMBEDDED, cpu_threads, load_model, quiet
from sightline.plugin.calibration.files import Calibration

SPLITS = ("calibration", "test")
SCENES = 200
BATCH = 50
ENTROPY = "entropy"
RUNS: dict[str, dict[str, Any]] = {  # heads -> the branch that is recorded beside them, at no strength
    "all": {},
    "image_heads": {"pai_guidance": {"gamma": 1.0, "beta": 0.0}},
    "visual_heads": {"vcd": {"alpha": 0.0, "beta": 0.0}},
    "concept_heads": {"decore": {"by": "concept_heads", "heads": 8, "alpha": 0.0}},
}
BRANCHES = {"pai_guidance": "no picture", "vcd": "noised picture", "decore": "concept heads masked"}
LAST_PLACE = 8  # mentions from here on share a stratum


@dataclass
class Cases:
    """The object words of a split, all [cases].

    Whether each is hallucinated, its scene, its place among its caption's mentions, and its signals.
    """

    scenes: int
    wrong: list[bool] = field(default_factory=list)
    scene: list[int] = field(default_factory=list)
    place: list[int] = field(default_factory=list)
    signals: dict[str, list[float]] = field(default_factory=dict)

    def auroc(self, scores: Floats, *, within: bool = False) -> Auroc:
        """`within`: among mentions of one place only."""
        return Auroc.of(scores, self.wrong, self.scene, self.scenes, self.place if within else 0)

    def of(self, name: str) -> Floats:
        return np.asarray(self.signals[name])


@dataclass(frozen=True)
class Scale:
    """A signal's sign and its mean and deviation on the calibration scenes: a larger score means hallucinated."""

    sign: int
    mean: float
    deviation: float

    @classmethod
    def of(cls, cases: Cases, name: str) -> Scale:
        values = cases.of(name)
        sign = 1 if cases.auroc(values).value >= 0.5 else -1
        return cls(sign, float(values.mean()), float(values.std()) or 1.0)

    def __call__(self, values: Floats) -> Floats:
        return self.sign * (values - self.mean) / self.deviation


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.grounding", description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each split")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--out", type=Path, default=Path("eval/results"))
    parser.add_argument("--calibration", type=Path, default=Path("calibration/testbed.yaml"))
    arguments = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "studies.grounding", *(sys.argv[1:] if argv is None else argv)])
    known = Calibration.load(arguments.calibration)
    check_writable(arguments.calibration, out=arguments.out / "grounding.md")
    quiet()
    with cpu_threads(arguments.threads), progress_bar() as bar:
        job = bar.add_task("captions", total=len(SPLITS) * len(RUNS) * -(-arguments.scenes // BATCH))
        model, processor = load_model(EMBEDDED)
        found = {
            split: collect(model, processor, split, arguments.scenes, arguments.seed, known, lambda: bar.advance(job))
            for split in SPLITS
        }
    result = study(found["calibration"], found["test"])
    result |= {"scenes": arguments.scenes, "seed": arguments.seed, "command": command, "versions": versions()}
    write_json(arguments.out / "grounding.json", result)
    write_text(arguments.out / "grounding.md", report(result))
    write_text(arguments.calibration, with_section(known, model, result).dump())
    print(f"wrote {arguments.out / 'grounding.md'} and {arguments.calibration}")
    return 0


def collect(
    model: Any,
    processor: Any,
    split: str,
    scenes: int,
    seed: int,
    known: Calibration,
    advance: Callable[[], None] = lambda: None,
) -> Cases:
    """The object words of the captions of a split's scenes, with every signal.

    Raises:
        SightlineError: a branch of no strength has changed captions, so that its signals are of other words.
    """
    from sightline import attach, testbed

    pictures = testbed.scenes(split, scenes, seed=seed)
    cases, vocabulary = Cases(scenes), scene_vocabulary()
    asked = testbed.prompt(processor, testbed.CAPTION_PROMPT)
    for heads, decoder in RUNS.items():
        config = {"decoder": decoder} if decoder else {}
        said: list[tuple[int, int, bool, dict[str, Any]]] = []
        with attach(model, config, calibration=known, processor=processor, trace={"heads": heads}) as plug:
            for start in range(0, scenes, BATCH):
                shown = pictures[start : start + BATCH]
                inputs = processor(images=[one.image for one in shown], text=[asked] * len(shown), return_tensors="pt")
                model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=CAPTION_TOKENS, do_sample=False)
                table = plug.trace
                for row, one in enumerate(shown):
                    tokens = [token for token in table if token["row"] == row]
                    mentions = vocabulary.mentions("".join(token["text"] for token in tokens))
                    for place, mention in enumerate(mentions):
                        first = token_at(tokens, mention.start)
                        said.append((start + row, place, mention.name not in one.names, first))
                advance()
        _add(cases, heads, next(iter(decoder), None), said)
    return cases


def token_at(tokens: Sequence[Mapping[str, Any]], start: int) -> Any:
    """The token that holds a character of the text that the tokens spell."""
    end = 0
    for token in tokens:
        end += len(token["text"])
        if end > start:
            return token
    raise ValueError(f"the text has {end} characters, no {start}")


def _add(cases: Cases, heads: str, branch: str | None, said: Sequence[tuple[int, int, bool, dict[str, Any]]]) -> None:
    scene, wrong = [one[0] for one in said], [one[2] for one in said]
    place = [min(one[1], LAST_PLACE - 1) for one in said]
    if not cases.wrong:
        cases.scene, cases.wrong, cases.place = scene, wrong, place
        cases.signals["place in the caption"] = [float(one[3]["position"]) for one in said]
        for name in (ENTROPY, "probability"):
            cases.signals[name] = [one[3][name] for one in said]
    elif (scene, wrong) != (cases.scene, cases.wrong):
        raise SightlineError(
            f"the captions of run {heads!r} differ from those of the model alone: compare by --threads 1"
        )
    for name in ("image", "query", "prompt", "output"):
        cases.signals[f"{name}, {heads}"] = [one[3][name] for one in said]
    if branch is not None:
        for name in ("divergence", "contrast"):
            cases.signals[f"{name}, {BRANCHES[branch]}"] = [one[3][name] for one in said]


def study(calibration: Cases, test: Cases) -> dict[str, Any]:
    """Choices on the calibration cases, numbers on the test cases; JSON-ready."""
    scales = {name: Scale.of(calibration, name) for name in calibration.signals}

    def merit(name: str) -> float:
        return calibration.auroc(scales[name](calibration.of(name))).value

    look = max((f"image, {heads}" for heads in RUNS if heads != "all"), key=merit)
    contrast = max((f"contrast, {branch}" for branch in BRANCHES.values()), key=merit)
    sums: dict[str, tuple[str, ...]] = {name: (name,) for name in scales}
    sums[f"{ENTROPY} + {look}"] = pair = (ENTROPY, look)
    sums[f"{ENTROPY} + {look} + {contrast}"] = (*pair, contrast)

    def scored(cases: Cases, parts: Sequence[str]) -> Floats:
        return np.sum([scales[part](cases.of(part)) for part in parts], axis=0)

    alone, rows = test.auroc(scored(test, (ENTROPY,))), []
    for name, parts in sums.items():
        score = test.auroc(scored(test, parts))
        change, bounds = difference(score, alone)
        rows.append(
            {
                "signal": name,
                "sign": scales[name].sign if len(parts) == 1 else None,
                "calibration": calibration.auroc(scored(calibration, parts)).value,
                "test": score.value,
                "interval": interval(score),
                "minus_entropy": change,
                "minus_entropy_interval": bounds,
                "within_place": test.auroc(scored(test, parts), within=True).value,
                "within_place_interval": interval(test.auroc(scored(test, parts), within=True)),
            }
        )
    threshold = youden(scored(calibration, pair), np.asarray(calibration.wrong))
    weights = {part: -scales[part].sign / scales[part].deviation for part in pair}
    offset = sum(-scales[part].sign * scales[part].mean / scales[part].deviation for part in pair)
    return {
        "rows": rows,
        "chosen": {"look": look, "contrast": contrast},
        "cases": {
            split: {"n": len(cases.wrong), "hallucinated": sum(cases.wrong)}
            for split, cases in (("calibration", calibration), ("test", test))
        },
        "marks": {
            split: marks(scored(cases, pair) > threshold, np.asarray(cases.wrong))
            for split, cases in (("calibration", calibration), ("test", test))
        },
        "heads": look.split(", ")[1],
        "weights": {part.split(",")[0]: round(weight, 4) for part, weight in weights.items()},
        "threshold": round(offset - threshold, 4),
    }


def youden(scores: Floats, positive: Any) -> float:
    """The threshold above which the share of positive cases exceeds that of negative ones most; between two scores."""
    values = np.unique(scores)
    cuts = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2])
    above = scores[None] > cuts[:, None]
    gain = (above & positive).sum(1) / max(positive.sum(), 1) - (above & ~positive).sum(1) / max((~positive).sum(), 1)
    return float(cuts[int(gain.argmax())])


def marks(marked: Any, wrong: Any) -> dict[str, float]:
    """What marking these words does: share of the hallucinated and of the true words marked, and precision."""
    return {
        "of_hallucinated": float(marked[wrong].mean()),
        "of_true": float(marked[~wrong].mean()),
        "precision": float(wrong[marked].mean()) if marked.any() else 0.0,
    }


def with_section(known: Calibration, model: Any, result: Mapping[str, Any]) -> Calibration:
    """The calibration with the section `grounding` of a result."""
    from sightline import attach

    with attach(model, {}, calibration=known, trace={"heads": result["heads"]}) as plug:
        heads = [list(head) for head in plug.traced_heads]
    counts = result["cases"]["calibration"]
    section = {
        "heads": heads,
        "weights": result["weights"],
        "threshold": result["threshold"],
        "source": {
            "kind": "measured",
            "command": result["command"],
            "reference": f"{counts['n']} object words, {counts['hallucinated']} of them hallucinated, of captions",
            "versions": {name: result["versions"][name] for name in ("torch", "transformers")},
            "date": datetime.date.today().isoformat(),
            "samples": result["scenes"],
        },
    }
    return Calibration.load({**known.model_dump(by_alias=True, exclude_none=True), "grounding": section})


def report(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    cases, chosen = result["cases"], result["chosen"]
    libraries = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    counts = "; ".join(
        f"{split} scenes: {cases[split]['n']} object words, {cases[split]['hallucinated']} hallucinated"
        for split in cases
    )
    lines = [
        "# Does the trace tell hallucinated from true words?",
        "",
        f"`{result['command']}` ({libraries})",
        "",
        f"The embedded testbed model, greedy captions of {result['scenes']} scenes of each split. {counts}. AUROC of each"
        " signal at the word's first token, hallucinated against true, with 95 % bootstrap intervals over scenes; sign:"
        " whether hallucinated words have more (+) or less (-) of it, as on the calibration scenes. Within place: only"
        " mentions at the same place of their captions are compared. What is recorded and how:"
        " `src/plugin/tracing/trace.py`; how it is judged: `studies/grounding.py`.",
        "",
        "| signal | sign | calibration | test (95 %) | minus entropy alone (95 %) | within place (95 %) |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in result["rows"]),
        "",
        f"Chosen on the calibration scenes: {chosen['look']}; {chosen['contrast']}. Both sums were stated beforehand.",
        "",
        "## The marks of `sightline generate --explain`",
        "",
        f"Score of a word: {_formula(result['weights'])} at its first token; weakly grounded below"
        f" {result['threshold']:.3f} (Youden's threshold on the calibration scenes).",
        "",
        "| scenes | hallucinated words marked | true words marked | marked words that are hallucinated |",
        "|---|---|---|---|",
        *(
            f"| {split} | " + " | ".join(f"{100 * value:.1f} %" for value in numbers.values()) + " |"
            for split, numbers in result["marks"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    sign = {1: "+", -1: "-", None: ""}[row["sign"]]
    (low, high), (below, above), (least, most) = (
        row[key] for key in ("interval", "minus_entropy_interval", "within_place_interval")
    )
    change = "–" if row["signal"] == ENTROPY else f"{row['minus_entropy']:+.3f} ({below:+.3f} to {above:+.3f})"
    return (
        f"| {row['signal']} | {sign} | {row['calibration']:.3f} | {row['test']:.3f} ({low:.3f}–{high:.3f}) | {change} |"
        f" {row['within_place']:.3f} ({least:.3f}–{most:.3f}) |"
    )


def _formula(weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:.3f} {name}" for name, weight in weights.items()).replace("+ -", "- ")


if __name__ == "__main__":
    sys.exit(main())
