"""CARVE: show the model the part of the picture that its question, not just any question, makes it look at.

Source: arXiv 2509.06461 and its release. The model answers the question Q and a general instruction G about the same
picture. A(l, t): attention of the row that predicts answer token t = 1, 2, .. in layer l on the image tokens, mean over
heads. With w_t = t (later tokens weigh more)

    S = sum over t of w_t * sum over layers l of A_Q(l, t) / (A_G(l, t) + lambda),    layers 20..25 of 32,

is stretched to pixels (bilinear; being linear, once at the end). The share `top` of the pixels is kept, their connected
regions are ranked by the sum of S, `regions` of them stay; the rest turns black, the box around them is cut out and
enlarged to the picture's size. The question is then asked again.

What paper and release say apart from that, and what is ours: docs/methods/carve.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..common.errors import ConfigError, LayoutError, UnsupportedModelError
from ..common.validation import describe
from ..models.observe import Batch, Enough
from ..models.prompting import encoded, turn
from ..models.samples import Example
from ..plugin.core.edits import Edit, InputProbe, Rows, WeightProbe
from ..plugin.core.host import host_of
from ..plugin.core.layout import Layout, Step
from ..plugin.core.method import ModelFacts, Preprocessor, Session, Values
from ..plugin.core.registry import register_preprocessor
from ..plugin.tracing.grid import Grid, grid
from ..plugin.tracing.heat import Floats, stretched
from .regions import Corners, Mask, Refine, bounds, drawn, refined, strongest


class CarveSettings(Values):
    layers: list[int] | None = Field(
        None, min_length=1, description="layers whose attention counts; default: 20 to 25 of 32, in proportion"
    )
    steps: int = Field(32, ge=1, description="most answer tokens that are looked at; 1: the prompt's own look")
    instruction: str = Field(
        "Write a general description of the image.", min_length=1, description="what is asked for comparison"
    )
    smoothing: float = Field(1e-8, gt=0, description="lambda, added to the attention that is divided by")
    top: float = Field(0.2, gt=0, lt=1, description="share of the pixels that is kept")
    regions: int | None = Field(None, ge=1, description="regions that stay; default: a fifth of them, at least 3")
    refine: Refine = Field(
        "mask and crop", description="black out what is not kept, cut out the box around it, or both"
    )
    enlarge: bool = Field(True, description="bring a cut-out to the picture's size")
    pictures: Literal["refined", "both"] = Field(
        "refined", description="what is asked about (paper), or with the original"
    )


@register_preprocessor("carve")
class Carve(Preprocessor):
    summary = "show the part of the picture that the question makes the model look at"
    source = "arXiv 2509.06461"
    cost = "two short answers in one batch before the answer; explicit weights for their rows in some layers"
    config = CarveSettings  # type: ignore[assignment]  # without a gate: it acts before generate

    def __init__(self, settings: CarveSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if facts.across:
            raise UnsupportedModelError(
                f"carve looks at the attention on image tokens, and '{facts.name}' has none, it reads the image by"
                " cross-attention: use a model of the LLaVA or Qwen-VL kind"
            )
        first, last = (round(layer * facts.layers / 32) for layer in (20, 25))
        default = range(min(first, facts.layers - 1), min(last + 1, facts.layers))
        self.layers = facts.check_layers(settings.layers or default, "carve.layers")

    def maps(
        self, model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[str]
    ) -> list[ContrastMap]:
        """The contrast of one question to each picture, over the cells of its grid."""
        asked = [*questions, *[self.settings.instruction] * len(images)]
        shown = [Example("", text, image) for text, image in zip(asked, [*images] * 2, strict=True)]
        batch = Batch(model, processor, shown)
        grids = _grids(model, processor, batch.inputs, images)
        if self.settings.steps == 1:
            session = batch.read(lambda layout, facts: _Gaze(self, layout))
            counts = [1] * len(images)
        else:
            how = {"num_beams": 1, "stopping_criteria": StoppingCriteriaList([_Together(model)])}
            session, answers = batch.answer(lambda layout, facts: _Gaze(self, layout), self.settings.steps, **how)
            ended = [len(answer) + 1 for answer in answers]  # the end token was looked for, too
            counts = [min(pair) for pair in zip(ended[: len(images)], ended[len(images) :], strict=True)]
        found = []
        for row, (shape, count) in enumerate(zip(grids, counts, strict=True)):
            steps = torch.stack(session.steps[:count])[:, row, : shape.rows * shape.columns]
            weighted = (steps * torch.arange(1, len(steps) + 1)[:, None]).sum(0)
            found.append(ContrastMap(shape, weighted.view(shape.rows, shape.columns).numpy(), len(steps)))
        return found


def _grids(model: Any, processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[Grid]:
    """The grid of each picture, from the first rows of the model's inputs."""
    found = []
    for row, image in enumerate(images):
        tokens = sum(
            int((inputs["input_ids"][row] == one).sum()) for one in host_of(model).family.image_ids(model.config)
        )
        if not tokens:
            raise LayoutError(
                "carve found no image token in the prompt: the processor's chat template leaves pictures out, or its image"
                " token is not the model's"
            )
        found.append(grid(processor, inputs, row, tokens, image.size))
    return found


@dataclass(frozen=True)
class ContrastMap:
    """The contrast S [rows, columns] over the cells of a grid, from so many answer tokens."""

    grid: Grid
    cells: Floats
    steps: int


class _Gaze(Session):
    """Looks where the question looks more than the general instruction does.

    steps: A_Q / (A_G + lambda), summed over layers, at each answer token [B, most image tokens]. Question rows come first
    in the batch, then as many of the general instruction.
    """

    def __init__(self, method: Carve, layout: Layout):
        self.method, self.layout = method, layout
        # Image tokens first, in their order: pairs of rows are padded differently.
        self.order = (~layout.image).int().argsort(dim=-1, stable=True)[:, : int(layout.image.sum(-1).max())]
        self.steps: list[Tensor] = []

    def edits(self, step: Step) -> dict[int, list[Edit]]:
        edits: dict[int, list[Edit]] = {}
        rows: Rows | None = Rows(0, 1, torch.ones_like(self.layout.valid[:, :1]))
        if step.reading:
            rows = step.rows(self.layout.last_token)
        layers = self.method.layers
        if rows is not None:
            edits = {layer: [WeightProbe(partial(self._see, layer == layers[0]), rows)] for layer in layers}
        if self.method.settings.steps == 1 and layers[-1] + 1 < self.method.facts.layers:
            edits[layers[-1] + 1] = [InputProbe(_stop)]
        return edits

    def _see(self, new: bool, weights: Tensor, keys: slice, first: int) -> None:
        mean = self.layout.of_prompt(weights[:, :, -1], keys).mean(1).to(self.order.device)
        asked, general = mean.gather(1, self.order).chunk(2)
        contrast = (asked / (general + self.method.settings.smoothing)).cpu()
        if new:
            self.steps.append(contrast)
        else:
            self.steps[-1] = self.steps[-1] + contrast


def _stop(hidden: Tensor) -> None:
    raise Enough


class _Together(StoppingCriteria):
    """Ends both answers of a pair with the shorter one."""

    def __init__(self, model: Any):
        ends = getattr(model.generation_config, "eos_token_id", None)
        self.ends = torch.tensor([] if ends is None else ends).flatten()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = torch.isin(input_ids[:, -1], self.ends.to(input_ids))
        return ended.view(2, -1).any(0).repeat(2)


@dataclass(frozen=True)
class Carving:
    """What CARVE made of a picture and a question.

    map: the contrast over the cells of the picture's grid [rows, columns]. heat: the same at every pixel, NaN where the
    model does not see the picture. mask: the pixels that stay [height, width]. box: the corners around them, right and
    bottom outside. refined: the new picture. steps: answer tokens that were looked at.
    """

    image: Image.Image = field(repr=False)
    question: str
    grid: Grid
    map: Floats = field(repr=False)
    heat: Floats = field(repr=False)
    mask: Mask = field(repr=False)
    box: Corners
    refined: Image.Image = field(repr=False)
    pictures: tuple[Image.Image, ...] = field(repr=False)
    steps: int

    def inputs(self, model: Any, processor: Any) -> Any:
        """The question about the picture(s), as the model's `generate` takes it."""
        return carved_inputs(model, processor, [self])

    def drawn(self) -> Image.Image:
        """The picture under its heat, with the box."""
        return drawn(self.image, self.heat, [self.box])


def carved_inputs(model: Any, processor: Any, carvings: Sequence[Carving]) -> Any:
    """The questions of several carvings as one left-padded batch for `generate`."""
    texts = [turn(processor, one.question, len(one.pictures)) for one in carvings]
    return encoded(model, processor, texts, [one.pictures for one in carvings])


def carve(model: Any, processor: Any, image: Image.Image, question: str, **settings: Any) -> Carving:
    """Look for what a question is about, and make the picture to ask it about.

        found = sightline.carve(model, processor, image, "Is there a dog in the image?", top=0.4)
        model.generate(**found.inputs(model, processor), max_new_tokens=8)

    Args:
        processor: the model's processor; its chat template is applied.
        image: the picture.
        question: the user's words.
        settings: fields of `CarveSettings`, as `sightline methods carve` lists them.

    Raises:
        ConfigError: a setting that there is not, or a value that it does not take.
        CalibrationError: a layer that the model does not have.
        LayoutError: no picture, no question.
        UnsupportedModelError: a text model, or one of which it is not known where its image tokens lie in the picture.
    """
    return carve_all(model, processor, [image], [question], **settings)[0]


def carve_all(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[str], **settings: Any
) -> list[Carving]:
    """`carve` for one question to each of several pictures, in one batch."""
    chosen = checked(settings)
    _check(processor, images, questions)
    method = Carve(chosen, host_of(model).facts(None))
    pictures = [image.convert("RGB") for image in images]
    return [
        carved(chosen, image, question, look)
        for image, question, look in zip(
            pictures, questions, method.maps(model, processor, pictures, questions), strict=True
        )
    ]


def checked(settings: Mapping[str, Any]) -> CarveSettings:
    """The settings of `carve`. Raises ConfigError."""
    try:
        return CarveSettings.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(describe(error, "carve", CarveSettings)) from error


def _check(processor: Any, images: Sequence[Any], questions: Sequence[Any]) -> None:
    if not hasattr(processor, "image_processor"):
        raise UnsupportedModelError(
            f"carve looks at pictures, and {type(processor).__name__} has no image processor: pass the processor of a"
            " vision-language model"
        )
    if len(images) != len(questions) or not images:
        raise LayoutError(f"carve got {len(images)} pictures and {len(questions)} questions: pass one question to each")
    for image, question in zip(images, questions, strict=True):
        if not isinstance(image, Image.Image):
            raise LayoutError(f"carve needs a picture as PIL.Image, not {type(image).__name__}: open it first")
        if not isinstance(question, str) or not question.strip():
            raise LayoutError(
                f"carve needs a question to look for, not {question!r}: ask about something in the picture"
            )


def carved(settings: CarveSettings, image: Image.Image, question: str, look: ContrastMap) -> Carving:
    """The picture to ask the question about, once it is known where the model looks."""
    heat = stretched(look.cells, look.grid, image.size)
    mask = strongest(heat, settings.top, settings.regions)
    new = refined(image, mask, settings.refine, settings.enlarge)
    return Carving(
        image=image,
        question=question,
        grid=look.grid,
        map=look.cells,
        heat=heat,
        mask=mask,
        box=bounds(mask),
        refined=new,
        pictures=(new,) if settings.pictures == "refined" else (image, new),
        steps=look.steps,
    )
