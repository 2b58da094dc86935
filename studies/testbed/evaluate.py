"""A short evaluation of a checkpoint: CHAIR of greedy captions, also by mention position, and POPE in three splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sightline.benchmarks.public.captions import ChairBenchmark
from sightline.benchmarks.public.object_questions import PopeBenchmark
from sightline.benchmarks.public.pope import SPLITS
from sightline.benchmarks.runner.plan import PLAIN, RunPlan
from sightline.benchmarks.runner.run import run
from sightline.models.samples import Sample
from sightline.testbed.kinds import KINDS
from sightline.testbed.scenes import Scene, scenes
from sightline.testbed.text import CAPTION_PROMPT

from . import align
from .packs import Dialect, Pack, collate

CAPTION_TOKENS = 80
BATCH = {"chair": 32, "pope": 32}


def evaluate(
    model: Any,
    processor: Any,
    *,
    n: int = 300,
    split: str = "test",
    seed: int = 0,
    start: int = 0,
    dialect: Dialect | None = None,
) -> dict[str, Any]:
    """All numbers of the model card on `n` scenes of a split; with a dialect the questions are asked in packs."""
    shown = scenes(split, n, seed=seed, start=start)
    captions, questions = ChairBenchmark.of_scenes(shown, CAPTION_PROMPT), PopeBenchmark.of_scenes(shown, seed=seed)
    captions.new_tokens = CAPTION_TOKENS
    alone = [captions, questions] if dialect is None else [captions]
    (plain,) = run(model, processor, alone, {PLAIN: RunPlan()}, batch=BATCH)
    said = plain.replies[captions.name]
    replies = plain.replies[questions.name] if dialect is None else first_words(model, dialect, questions.samples)
    scores = questions.score(replies)
    return {
        "chair": captions.score(said).values | {"expected_share": expected_share(captions, said, shown)},
        "pope": {kind: scores[kind].values for kind in SPLITS},
        "examples": [(text, sorted(scene.names)) for text, scene in list(zip(said, shown, strict=True))[:6]],
    }


def first_words(model: Any, dialect: Dialect, samples: Sequence[Sample], batch: int = 8) -> list[str]:
    """The first token of each greedy reply; all samples of a picture read it once (see `packs`)."""
    speaker = align.Speaker(model)
    of: dict[int, list[int]] = {}
    for number, sample in enumerate(samples):
        of.setdefault(id(sample.image), []).append(number)
    groups, said = list(of.values()), [""] * len(samples)
    for start in range(0, len(groups), batch):
        chosen, packed = groups[start : start + batch], []
        for numbers in chosen:
            packed.append(Pack.begin(dialect, image=True))
            for number in numbers:
                packed[-1].ask(samples[number].text, "", lambda said: [1.0] * len(said))
        pixels = np.stack([np.asarray(samples[numbers[0]].image) for numbers in chosen])
        with torch.inference_mode():
            logits, _, _ = speaker.read({"pixels": pixels, **collate(packed)}, model.device)
        order = [number for numbers in chosen for number in numbers]
        for number, token in zip(order, logits.argmax(-1).tolist(), strict=True):
            said[number] = dialect.decode(token)
    return said


def expected_share(captions: ChairBenchmark, said: Sequence[str], shown: Sequence[Scene]) -> float:
    """Of the hallucinated mentions, those of objects that the type of scene makes one expect; 0.0 without any."""
    found = [
        mention["name"] in KINDS[scene.kind].expected
        for number, (text, scene) in enumerate(zip(said, shown, strict=True))
        for mention in captions.detail(number, text)["mentions"]
        if mention["hallucinated"]
    ]
    return sum(found) / len(found) if found else 0.0


def report(result: Mapping[str, Any]) -> str:
    """The numbers as a short text."""
    c = result["chair"]
    lines = [
        f"captions     CHAIR_I {c['i']:.3f}  CHAIR_S {c['s']:.3f}  recall {c['recall']:.3f}  "
        f"mentions {c['mentions']:.2f}  wrong mentions the scene type expects {c['expected_share']:.2f}",
        "by position  " + "  ".join(f"{p['position']}: {p['i']:.2f} (n={p['n']})" for p in c["by_position"]),
    ]
    for kind, p in result["pope"].items():
        lines.append(
            f"{kind:<12} accuracy {p['accuracy']:.3f}  precision {p['precision']:.3f}  recall {p['recall']:.3f}  "
            f"F1 {p['f1']:.3f}  yes {p['yes_ratio']:.2f}"
        )
    lines += [f"example      {text}  [{', '.join(truth)}]" for text, truth in result["examples"]]
    return "\n".join(lines)
