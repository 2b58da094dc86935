"""A method of your own in one file: turn up the attention on the picture, but only while answering.

`docs/guides/method.md` explains the parts.
"""

from __future__ import annotations

import math

import sightline
import torch
from pydantic import Field
from sightline import Bias, Edit, Layout, Method, Session, Settings, Step, register, testbed


class StareSettings(Settings):
    factor: float = Field(4.0, gt=0, description="factor on the image tokens' attention, in the rows of the answer")


@register("stare")
class Stare(Method):
    summary = "look more at the picture while answering"
    source = "example"
    cost = "no extra pass; a bias on the fused kernel"
    acts = "logits"
    config = StareSettings

    def start(self, layout: Layout) -> StareSession:
        return StareSession(self, layout)


class StareSession(Session):
    def __init__(self, method: Stare, layout: Layout):
        bias = torch.where(layout.image, math.log(method.settings.factor), 0.0)
        layers = method.facts.own(range(method.facts.layers))
        self.plan: dict[int, list[Edit]] = {layer: [Bias(bias[:, None])] for layer in layers}

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        return {} if step.reading else self.plan


def main() -> None:
    model, processor = sightline.load_model("embedded")
    scene = testbed.scene("test", 0)
    inputs = processor(images=scene.image, text=testbed.prompt(processor, testbed.CAPTION_PROMPT), return_tensors="pt")
    for factor in (1.0, 4.0):
        with sightline.attach(model, {"methods": [{"stare": {"factor": factor}}]}, processor=processor):
            ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        print(f"{factor}: {processor.decode(ids[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True)}")


if __name__ == "__main__":
    main()
