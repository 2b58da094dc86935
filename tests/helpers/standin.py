"""A stand-in for the embedded testbed whose replies are known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import sightline
import torch
from PIL import Image
from sightline.benchmarks import demo as demos
from sightline.plugin.reading import score as reading
from transformers import BatchFeature

WORLD = ["dog", "cat", "bus", "cup", "fork", "sink"]


class Model:
    """Replies to (image number, prompt): it hallucinates a fork, unless attached to something mild."""

    device, dtype = torch.device("cpu"), torch.float32
    generation_config = SimpleNamespace(eos_token_id=0)

    def __init__(self) -> None:
        self.mode: Any = None
        self.said: list[str] = []
        self.calls: list[tuple[Any, int]] = []

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.arange(3.0)}

    def generate(
        self, input_ids: Any, pixel_values: Any, max_new_tokens: int, do_sample: bool, logits_processor: Any = ()
    ) -> torch.Tensor:
        """With a processor, which is what makes a caption longer, a cup and a sink come last."""
        assert not do_sample
        self.calls.append((self.mode, len(input_ids)))
        replies = []
        for ids, pixels in zip(input_ids, pixel_values, strict=True):
            prompt = "".join(chr(i) for i in ids if i)
            names = sorted(SCENES[round(float(pixels.mean()) * 255)].names)
            extra = [] if self.mode in ("mild", "silent") else ["fork"]
            if "describe" in prompt:
                kept = names[:1] if self.mode == "silent" else names
                more = " Also a cup and a sink." if logits_processor else ""
                replies.append("A <b>photo</b> & a " + ", a ".join([*kept, *extra]) + "." + more)
            else:
                replies.append(
                    "Yes" if any(f" {name}?" in prompt for name in [*names, *extra]) else "No, there is none"
                )
        self.said += replies
        last = torch.arange(len(self.said) - len(replies), len(self.said)).unsqueeze(1) + 1000
        return torch.cat([input_ids, last], dim=1)


class Tokenizer:
    padding_side, pad_token = "right", "<pad>"

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [f" {self.model.said[int(row[0]) - 1000]}" for row in ids]


def score(model: Model, inputs: Any, answers: Any) -> list[list[SimpleNamespace]]:
    """As `plugin.reading.score`: yes is likelier where the stand-in says it."""
    ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    yes = [model.said[int(row[-1]) - 1000] == "Yes" for row in ids]
    return [
        [SimpleNamespace(logprob=-1.0 if (chr(one[0]) in "Yy") == said else -3.0) for one in row]
        for said, row in zip(yes, answers, strict=True)
    ]


class Processor:
    image_processor = chat_template = None

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tokenizer = Tokenizer(model)

    def __call__(self, images: list[Any], text: list[str], padding: bool, return_tensors: str) -> BatchFeature:
        assert padding
        assert return_tensors == "pt"
        assert self.tokenizer.padding_side == "left"
        width = max(map(len, text))
        ids = torch.tensor([[0] * (width - len(row)) + [ord(c) for c in row] for row in text])
        pixels = torch.tensor([image.getpixel((0, 0))[0] / 255 for (image,) in images]).view(-1, 1)
        return BatchFeature({"input_ids": ids, "pixel_values": pixels})


def scene(index: int) -> SimpleNamespace:
    names = frozenset(WORLD[(index + k) % 4] for k in range(2))
    image = Image.new("RGB", (8, 8), (index, 0, 0))
    return SimpleNamespace(image=image, names=names, index=index, split="test", seed=0)


SCENES = [scene(index) for index in range(12)]


class Standing:
    """A plan whose attachment only tells the stand-in its name."""

    needs_image = False

    def __init__(self, name: str, settings: Any) -> None:
        self.name, self.settings = name, settings

    @contextmanager
    def attached(self, model: Model, processor: Any, *, blind: bool = False) -> Iterator[Any]:
        name = model.mode = None if self.name == "plain" else self.name
        try:
            yield SimpleNamespace(
                report=lambda: {name: {"head_map": [[0.0, 1.0], [0.5, 0.0]]} if name == "mild" else {}}
            )
        finally:
            model.mode = None


def plans(configs: Any, model: Any = None, processor: Any = None) -> Any:
    """As `runner.plan.plans`, of stand-ins."""
    settings = {name: one.dump() if hasattr(one, "dump") else one for name, one in configs.items()}
    return {"plain": Standing("plain", {})} | {name: Standing(name, one) for name, one in settings.items()}


@pytest.fixture
def testbed(monkeypatch: pytest.MonkeyPatch) -> Model:
    """Put the stand-in in the place of the embedded testbed and of the plans."""
    model = Model()
    fake: Any = ModuleType("sightline.testbed")
    fake.CATEGORIES, fake.SYNONYMS = tuple(WORLD), {name: name for name in WORLD}
    fake.question = "Is there a {}?".format
    fake.asked = []

    def scenes(split: str, n: int, *, seed: int = 0, start: int = 0) -> list[Any]:
        fake.asked.append(split)
        return SCENES[:n]

    fake.scenes = scenes
    fake.frequency = lambda: {name: 1 - 0.1 * k for k, name in enumerate(WORLD)}
    fake.cooccurrence = lambda: {name: {"fork": 0.9, "sink": 0.2} for name in WORLD}
    fake.load = lambda dtype, device: (model, Processor(model))
    monkeypatch.setitem(sys.modules, "sightline.testbed", fake)
    monkeypatch.setattr(sightline, "testbed", fake, raising=False)
    monkeypatch.setattr(demos, "plans", plans)
    monkeypatch.setattr(reading, "score", score)
    monkeypatch.setattr(demos, "find_shipped", lambda model: None)
    monkeypatch.setattr(demos, "found_at", lambda model: None)
    model.testbed = fake  # type: ignore[attr-defined]
    return model


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text("wild:\n  methods: [vhr]\nmild:\n  methods: [{vhr: {alpha: 3}}]\n")
    return path
