"""How much of a scene's truth a linear probe reads off the image tokens: what a method could gain at all.

`python -m studies.readable [--model embedded|embedded-smol] [--train N] [--scenes N] [--threads N]`

The probe is one linear layer over each image token, as the language model gets it, that names the object of the patch; it
learns on training scenes (the mix of objects in each patch, background counting a third). An object's score is its best
patch. Naming the k best objects of each test scene gives recall and CHAIR_I as a caption of k objects would have; the
model's own captions stand in `eval/results`. The probe knows nothing of which objects go together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sightline.models.loading import EMBEDDED, cpu_threads, load_model, quiet
from sightline.models.naming import EMBEDDED_SMOL
from sightline.testbed.data import draw_batch
from sightline.testbed.sprites import CATEGORIES
from torch import Tensor, nn

from .testbed.tower import labelling, targets, to_pixels

TRAIN, TEST, NAMED, BATCH = 1500, 300, 6, 50


def image_tokens(model: Any, split: str, number: int) -> Iterator[tuple[Tensor, Tensor, list[set[str]]]]:
    """Batches of a split: image tokens [B, n, D], targets of their patches [B, n, C + 1], objects of each scene."""
    for start in range(0, number, BATCH):
        drawn = draw_batch((split, start, min(BATCH, number - start), 0))
        with torch.inference_mode():
            seen = model.get_image_features(pixel_values=to_pixels(drawn["pixels"], model.device)).pooler_output
        tokens = torch.stack([torch.as_tensor(one) for one in seen]).float()
        there = [{name for name, _ in objects} for _, objects in drawn["scenes"]]
        yield tokens, targets(drawn["coverage"], tokens.device), there


def fitted(tokens: Tensor, target: Tensor, steps: int = 60) -> Callable[[Tensor], Tensor]:
    """The linear reading [.., D] -> [.., C + 1] of least weighted cross-entropy, by L-BFGS on standardised tokens."""
    mean, deviation = tokens.mean((0, 1)), tokens.std((0, 1)) + 1e-6
    reading = nn.Linear(tokens.shape[-1], target.shape[-1])
    for parameter in reading.parameters():
        nn.init.zeros_(parameter)  # so that every run finds the same
    standard = (tokens - mean) / deviation
    descent = torch.optim.LBFGS(reading.parameters(), max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        value = labelling(reading(standard), target)[0] + 1e-5 * reading.weight.square().sum()
        value.backward()
        return value.detach()

    descent.step(loss)
    return lambda found: reading((found - mean) / deviation)


def table(scores: Tensor, there: list[set[str]]) -> str:
    """Markdown: recall and CHAIR_I of naming the k best objects [scenes, C] of each scene."""
    lines = ["| objects named | CHAIR_I | recall |", "|---|---|---|"]
    for named in range(1, NAMED + 1):
        said = [{CATEGORIES[i] for i in row.topk(named).indices.tolist()} for row in scores]
        right = sum(len(names & truth) for names, truth in zip(said, there, strict=True))
        lines.append(
            f"| {named} | {100 * (1 - right / (named * len(there))):.1f} | {100 * right / sum(map(len, there)):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED, choices=(EMBEDDED, EMBEDDED_SMOL))
    parser.add_argument("--train", type=int, default=TRAIN, help="training scenes of the probe")
    parser.add_argument("--scenes", type=int, default=TEST, help="test scenes")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    quiet()
    cpu_threads(asked.threads)
    model, _ = load_model(asked.model)
    learned = list(image_tokens(model, "train", asked.train))
    read = fitted(torch.cat([tokens for tokens, _, _ in learned]), torch.cat([target for _, target, _ in learned]))
    there: list[set[str]] = []
    scores = []
    with torch.inference_mode():
        for tokens, _, objects in image_tokens(model, "test", asked.scenes):
            scores.append(read(tokens).softmax(-1)[..., :-1].amax(1))
            there += objects
    print(table(torch.cat(scores), there))


if __name__ == "__main__":
    main()
