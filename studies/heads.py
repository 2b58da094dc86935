"""What the heads of a language model do: retrieval heads, how stable they are, and what masking them costs.

`python -m studies.heads [--model smollm2] [--threads N] [--out FOLDER] [--calibration FILE]`

Writes `retrieval-heads.md` and `.json` into the folder, and the calibration file with the retrieval, inducing and
conflict heads.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID
from sightline.common.files import check_writable, versions, write_json, write_text
from sightline.common.statistics import Ratio, difference, interval, spearman
from sightline.models.loading import cpu_threads, load_model, quiet
from sightline.plugin.branches.heads import best_heads, random_heads
from sightline.plugin.calibration.files import Calibration
from sightline.profiling.data.facts import choices, conflicts
from sightline.profiling.data.needles import NEEDLES
from sightline.profiling.job import Job, Partial, rounded
from sightline.profiling.probes import retrieval
from sightline.profiling.probes.conflict import conflict_heads
from sightline.profiling.probes.direct import Direct
from sightline.profiling.probes.importance import inducing_heads
from sightline.profiling.probes.masking import Mode, passes
from torch import Tensor

from .heads_report import THRESHOLD, report

SEEDS = (0, 1)  # of the filler
LENGTHS = (500, 1500)  # tokens of the prompts that heads are scored on
DEPTHS = 4
MASKED = (5, 10, 20)
DRAWS = 3  # sets of random heads
TEST: dict[str, Any] = {"seed": 2, "lengths": (500, 1000), "depths": 3}  # fresh filler for the masking


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.heads", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("eval/results"))
    parser.add_argument("--calibration", type=Path, default=Path("calibration/smollm2-135m-instruct.yaml"))
    arguments = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "studies.heads", *(sys.argv[1:] if argv is None else argv)])

    check_writable(arguments.calibration, out=arguments.out / "retrieval-heads.md")
    quiet()
    with cpu_threads(arguments.threads), Progress() as bar:
        model, tokenizer = load_model(arguments.model)
        result = {"model": model.name_or_path, **study(model, tokenizer, _Steps(bar)), "command": command}
    result["versions"] = versions()
    write_json(arguments.out / "retrieval-heads.json", result)
    write_text(arguments.out / "retrieval-heads.md", report(result))
    write_text(arguments.calibration, calibration(model, result, arguments.calibration).dump())
    print(f"wrote {arguments.out / 'retrieval-heads.md'} and {arguments.calibration}")
    return 0


class _Steps:
    """Progress bars, one for each part of the study."""

    def __init__(self, bar: Progress):
        self.bar = bar
        self.tasks: dict[str, TaskID] = {}

    def show(self, title: str, done: int, total: int) -> None:
        if title not in self.tasks:
            self.tasks[title] = self.bar.add_task(title, total=total)
        self.bar.update(self.tasks[title], completed=done)

    def part(self, title: str) -> Callable[[str, int], None]:
        """Called after each step with a name and the number of all."""
        steps = itertools.count(1)
        return lambda name, total: self.show(title, next(steps), total)


def study(model: Any, tokenizer: Any, steps: _Steps) -> dict[str, Any]:
    """Measure everything; the dict is what the JSON file holds, less the command and the versions."""
    runs = {
        seed: retrieval.runs(
            model, tokenizer, lengths=LENGTHS, depths=DEPTHS, seed=seed, advance=steps.part(f"needles, seed {seed}")
        )
        for seed in SEEDS
    }
    every = [run for seed in SEEDS for run in runs[seed]]
    scores = retrieval.average(every)
    questions = sorted({run.trial.needle.question for run in every})
    parts = {
        "seeds": [retrieval.average(runs[seed]) for seed in SEEDS],
        "lengths": [retrieval.average([r for r in every if r.trial.length == length]) for length in LENGTHS],
        "needles": [
            retrieval.average([r for r in every if questions.index(r.trial.needle.question) % 2 == half])
            for half in (0, 1)
        ],
    }
    with Direct(model) as direct:
        job = Job(model, tokenizer, (), direct.facts, Partial(None, {}, resume=False), advance=steps.show)
    examples, asked = choices(tokenizer), conflicts(tokenizer)
    job.profile = "inducing heads"
    inducing = inducing_heads(job, examples)
    job.profile = "conflict heads"
    conflict = conflict_heads(job, asked)
    return {
        "settings": {"seeds": SEEDS, "lengths": LENGTHS, "depths": DEPTHS, "needles": len(NEEDLES), "masking": TEST},
        "scores": rounded(scores),
        "share": float((scores >= THRESHOLD).float().mean()),
        "passed_by": {
            f"{length} tokens, depth {depth:.2f}": [sum(r.passed for r in chosen), len(chosen)]
            for length in LENGTHS
            for depth in sorted({r.trial.depth for r in every})
            if (chosen := [r for r in every if r.trial.length == length and r.trial.depth == depth])
        },
        "stability": {name: _agreement(first, second) for name, (first, second) in parts.items()},
        "masking": masking(model, tokenizer, rounded(scores), steps),
        "inducing_heads": inducing.scores,
        "inducing_examples": len(examples),
        "conflict_heads": conflict.model_dump(include={"enhance", "suppress"}),
        "conflict_examples": len(asked),
        "runs": [retrieval.record(runs[seed], seed) for seed in SEEDS],
    }


def masking(model: Any, tokenizer: Any, scores: list[list[float]], steps: _Steps) -> list[dict[str, Any]]:
    """Needle accuracy plain, with the best heads masked and with others masked, by both kinds of mask."""
    with Direct(model) as direct:
        facts = direct.facts
    best = {k: best_heads(scores, k, facts, "masked") for k in MASKED}
    sets: dict[str, list[Sequence[tuple[int, int]]]] = {"plain": [()]}
    for k in MASKED:
        sets[f"top {k}"] = [best[k]]
        sets[f"random {k}"] = [random_heads(k, best[max(MASKED)], seed, facts, "masked") for seed in range(DRAWS)]
    modes: tuple[tuple[Mode, list[str]], ...] = (
        ("output", list(sets)),
        ("query", [name for name in sets if not name.startswith("random")]),
    )
    rows = []
    for mode, names in modes:
        flat = [heads for name in names for heads in sets[name]]
        passed = passes(model, tokenizer, flat, mode=mode, advance=steps.part(f"masking, {mode}"), **TEST).numpy()
        plain, at = Ratio.of(passed[0], 1), 0
        for name in names:
            ours = passed[at : at + len(sets[name])]
            at += len(ours)
            score = Ratio.of(ours.mean(0), 1)
            change, bounds = difference(score, plain)
            rows.append(
                {
                    "heads": name,
                    "mode": mode,
                    "accuracy": score.value,
                    "interval": interval(score),
                    "change": change,
                    "change_interval": bounds,
                    "draws": ours.mean(1).tolist(),
                    "trials": len(ours[0]),
                }
            )
    return rows


def _agreement(first: Tensor, second: Tensor) -> dict[str, float]:
    """How alike two measurements of the same heads are; `top20` counts heads in both lists of the best 20."""
    one, other = first.flatten(), second.flatten()
    found = (one >= THRESHOLD) | (other >= THRESHOLD)
    common = set(one.topk(20).indices.tolist()) & set(other.topk(20).indices.tolist())
    return {
        "spearman": spearman(one, other),
        "spearman_of_retrieval_heads": spearman(one[found], other[found]),
        "top20": len(common),
    }


def calibration(model: Any, result: dict[str, Any], path: Path) -> Calibration:
    """The calibration file of what was measured, with the other sections of the file that is there."""
    known = Calibration.load(path).facts() if path.is_file() else {}
    text = model.config.get_text_config()
    passed, runs = (sum(run[key] for run in result["runs"]) for key in ("passed", "runs"))
    sources = {
        "retrieval": f"{passed} of {runs} needle runs passed; hits counted per step, as released",
        "inducing": f"{result['inducing_examples']} choices on everyday facts, with and without a context; scale 20",
        "conflict": f"{result['conflict_examples']} everyday facts; target: what the context says",
    }
    return Calibration.load(
        {
            "model": result["model"],
            "architecture": model.config.model_type,
            "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "source": {
                "kind": "measured",
                "command": result["command"],
                "versions": {name: result["versions"][name] for name in ("torch", "transformers")},
                "date": datetime.date.today().isoformat(),
                "samples": runs,
            },
            **known,
            "retrieval_heads": {"scores": result["scores"], "source": sources["retrieval"]},
            "inducing_heads": {"scores": result["inducing_heads"], "source": sources["inducing"]},
            "conflict_heads": {**result["conflict_heads"], "source": sources["conflict"]},
        }
    )


if __name__ == "__main__":
    sys.exit(main())
