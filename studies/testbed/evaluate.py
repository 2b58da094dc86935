"""A short evaluation: CHAIR of greedy captions (also by mention position) and POPE-style questions in three splits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from sightline.testbed.kinds import KINDS
from sightline.testbed.model import prompt
from sightline.testbed.scenes import Scene, cooccurrence, frequency, scenes
from sightline.testbed.sprites import CATEGORIES
from sightline.testbed.text import CAPTION_PROMPT, mentions, question


def answers(
    model: Any, processor: Any, images: list[Any], questions: list[str], *, new_tokens: int, batch: int = 32
) -> list[str]:
    """Greedy answers to one question per image, in left-padded batches."""
    said: list[str] = []
    for start in range(0, len(images), batch):
        texts = [prompt(processor, q) for q in questions[start : start + batch]]
        inputs = processor(images=images[start : start + batch], text=texts, return_tensors="pt", padding=True)
        inputs = inputs.to(model.device, model.dtype)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        said += processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def chair(captions: list[str], pictures: list[Scene]) -> dict[str, Any]:
    """CHAIR_I and CHAIR_S, recall, CHAIR_I by mention position, and the share of wrong mentions the type expects."""
    wrong_at: dict[int, list[bool]] = defaultdict(list)
    expected: list[bool] = []
    recalls, any_wrong, lengths = [], [], []
    for text, picture in zip(captions, pictures, strict=True):
        named = mentions(text)
        wrong = [name not in picture.names for name in named]
        for position, bad in enumerate(wrong):
            wrong_at[position].append(bad)
        expected += [name in KINDS[picture.kind].expected for name, bad in zip(named, wrong, strict=True) if bad]
        recalls.append(len(picture.names & set(named)) / len(picture.names))
        any_wrong.append(any(wrong))
        lengths.append(len(named))
    flat = [bad for flags in wrong_at.values() for bad in flags]
    return {
        "chair_i": float(np.mean(flat)) if flat else 0.0,
        "chair_s": float(np.mean(any_wrong)),
        "recall": float(np.mean(recalls)),
        "mentions": float(np.mean(lengths)),
        "by_position": {p + 1: (float(np.mean(f)), len(f)) for p, f in sorted(wrong_at.items())},
        "expected_share": float(np.mean(expected)) if expected else 0.0,
    }


def pope_questions(pictures: list[Scene], split: str, per_side: int = 3) -> list[tuple[int, str, bool]]:
    """(scene, object, present) triples, as many absent as present objects for every scene.

    Absent objects are drawn at random ("random"), or are the most frequent ones overall ("popular"), or those that go
    most often with what the scene does show ("adversarial").
    """
    often, together = frequency(), cooccurrence()
    asked: list[tuple[int, str, bool]] = []
    for number, picture in enumerate(pictures):
        rng = np.random.default_rng([number, 11])
        present = [str(n) for n in rng.permutation(sorted(picture.names))][:per_side]
        absent = [str(n) for n in rng.permutation([n for n in CATEGORIES if n not in picture.names])]
        if split == "popular":
            absent.sort(key=lambda name: -often[name])
        elif split == "adversarial":
            ties = {name: sum(together[shown][name] for shown in sorted(picture.names)) for name in absent}
            absent.sort(key=ties.__getitem__, reverse=True)
        asked += [(number, name, True) for name in present]
        asked += [(number, name, False) for name in absent[: len(present)]]
    return asked


def pope(model: Any, processor: Any, pictures: list[Scene], split: str) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and share of "Yes" on one split."""
    asked = pope_questions(pictures, split)
    said = answers(
        model,
        processor,
        [pictures[number].image for number, _, _ in asked],
        [question(name) for _, name, _ in asked],
        new_tokens=2,
    )
    yes = np.array([text.lower().startswith("yes") for text in said])
    no = np.array([text.lower().startswith("no") for text in said])
    truth = np.array([present for _, _, present in asked])
    precision = float(truth[yes].mean()) if yes.any() else 0.0
    recall = float(yes[truth].mean())
    return {
        "accuracy": float(np.where(truth, yes, no).mean()),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "yes": float(yes.mean()),
    }


def evaluate(
    model: Any, processor: Any, *, n: int = 300, split: str = "test", seed: int = 0, start: int = 0
) -> dict[str, Any]:
    """All numbers of the model card on `n` scenes of a split."""
    pictures = scenes(split, n, seed=seed, start=start)
    captions = answers(model, processor, [p.image for p in pictures], [CAPTION_PROMPT] * n, new_tokens=80)
    kinds = ("random", "popular", "adversarial")
    return {
        "chair": chair(captions, pictures),
        "pope": {kind: pope(model, processor, pictures, kind) for kind in kinds},
        "examples": [(text, sorted(p.names)) for text, p in list(zip(captions, pictures, strict=True))[:6]],
    }


def report(result: dict[str, Any]) -> str:
    """The numbers as a short text."""
    c = result["chair"]
    lines = [
        f"captions     CHAIR_I {c['chair_i']:.3f}  CHAIR_S {c['chair_s']:.3f}  recall {c['recall']:.3f}  "
        f"mentions {c['mentions']:.2f}  wrong mentions the scene type expects {c['expected_share']:.2f}",
        "by position  " + "  ".join(f"{p}: {rate:.2f} (n={n})" for p, (rate, n) in c["by_position"].items()),
    ]
    for kind, p in result["pope"].items():
        lines.append(
            f"{kind:<12} accuracy {p['accuracy']:.3f}  precision {p['precision']:.3f}  recall {p['recall']:.3f}  "
            f"F1 {p['f1']:.3f}  yes {p['yes']:.2f}"
        )
    lines += [f"example      {text}  [{', '.join(truth)}]" for text, truth in result["examples"]]
    return "\n".join(lines)
