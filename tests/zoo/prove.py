"""What is checked of each model type, on a tiny model of it, against plain eager runs.

`prove` answers with one word per check: "ok", "refused: ..." with the package's own reason, "plain: ..." where the model
cannot do it without the package either, or "FAILED: ...", which a test does not accept.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sightline
import torch
from sightline.common.errors import SightlineError
from sightline.plugin.attach import observe
from sightline.plugin.core.compat import CACHE
from sightline.plugin.core.edits import Bias, Edit, Gain, Mass, Reweight
from sightline.plugin.core.families.inferred import vision_arguments
from sightline.plugin.core.layout import Layout, Step
from sightline.plugin.core.method import Method, ModelFacts, Session, Settings
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache
from transformers.models.auto import modeling_auto as auto_names

from tests.zoo import pictures
from tests.zoo.reference import Naive, running
from tests.zoo.shrink import BOS, PAD, build, tiny_config

NEW = 4
LENGTHS = (11, 6, 9)
LISTS = {
    "image": (AutoModelForImageTextToText, auto_names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    "text": (AutoModelForCausalLM, auto_names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
}
Inputs = dict[str, Any]


class Planned(Method):
    """A method whose edits a test gives: a function from the layout and the step to edits by layer."""

    name, summary, source, cost, acts = "planned", "", "", "", "weights"
    needs_image = False

    def __init__(self, facts: ModelFacts, make: Callable[[Layout, Step], Mapping[int, Sequence[Edit]]]):
        super().__init__(Settings(), facts)
        self.make = make

    def start(self, layout: Layout) -> Session:
        session = Session()
        session.edits = lambda step: self.make(layout, step)  # type: ignore[method-assign]
        return session


class Subject:
    """A tiny model with prompts for it; `kernel`: the attention that it is loaded with, where not by default."""

    def __init__(self, kind: str, model_type: str, kernel: str | None = None):
        auto = LISTS[kind][0]
        self.kind, self.type = kind, model_type
        self.model: Any = build(tiny_config(model_type), auto, kernel)
        self.generator: Any = self.model

    def take_host(self) -> None:
        """What the package found: which layers it edits, and what generates."""
        from sightline.plugin.core.host import Host

        host = Host(self.model)
        self.generator = host.family.generator(self.model)
        self.layers = sorted(host.attentions.keys() - host.across)
        self.hybrid = bool(host.linear)
        with sightline.attach(self.model, {"methods": []}) as plug:
            checked = plug._host.checked
        self.heads = {layer: checked.heads[layer] for layer in self.layers}

    def prompts(self, lengths: Sequence[int] = LENGTHS) -> Inputs:
        """Text prompts, padded on the left."""
        rng = torch.Generator().manual_seed(3)
        rows = [[BOS, *torch.randint(10, 200, (n - 1,), generator=rng).tolist()] for n in lengths]
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def answer(self, inputs: Inputs, who: Any = None) -> Tensor:
        """Logits of a greedy answer [B, steps, V]."""
        who = who or (self.generator if "pixel_values" not in inputs else self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(7)
            out = who.generate(
                **inputs,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return torch.stack(out.logits, dim=1).float()

    def edited(self, inputs: Inputs, make: Callable[[Layout, Step], Mapping[int, Sequence[Edit]]]) -> Tensor:
        """The answer with edits."""
        with observe(self.model, lambda facts: {"planned": Planned(facts, make)}):
            return self.answer(inputs)

    def naive(self, inputs: Inputs, naive: Naive) -> Tensor:
        """The answer of a plain eager run with the same edit made the naive way."""
        naive.layers = frozenset(self.layers)
        with running(self.model, self.generator, naive):
            return self.answer(inputs)


def differ(ours: Tensor, theirs: Tensor) -> str | None:
    """How two answers differ beyond rounding; None if they do not. Behind the first other token they may."""
    ours, theirs = (
        torch.nan_to_num(one, nan=torch.nan, neginf=0.0).masked_fill(one < -1e30, 0.0) for one in (ours, theirs)
    )
    scale = theirs.abs().max().clamp(min=1.0)
    for step in range(theirs.shape[1]):
        off = float((ours[:, step] - theirs[:, step]).abs().max() / scale)
        if not off < 1e-3:
            return f"step {step}: logits differ by {off:.1e}"
        if ours[:, step].argmax(-1).ne(theirs[:, step].argmax(-1)).any():
            return None
    return None


# ---- the checks ------------------------------------------------------------------------------------------------------


def empty(subject: Subject) -> None:
    """An empty plan computes the plain model's bits, generated and forward."""
    inputs = subject.prompts()
    plain = subject.answer(inputs)
    if plain.isnan().any():
        raise NotImplementedError("the plain model's logits are not numbers")
    with sightline.attach(subject.model, {"methods": []}):
        ours = subject.answer(inputs)
    assert torch.equal(plain, ours), f"bits differ by {float((plain - ours).abs().max()):.1e}"
    with observe(subject.model, lambda facts: {"planned": Planned(facts, lambda layout, step: {})}):
        ours = subject.answer(inputs)
    assert torch.equal(plain, ours), (
        f"bits differ by {float((plain - ours).abs().max()):.1e} with a method that does nothing"
    )


def _factors(subject: Subject, batch: int) -> dict[int, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {layer: 2 * torch.rand(batch, heads, generator=rng) for layer, heads in subject.heads.items()}


def gain(subject: Subject) -> None:
    inputs = subject.prompts()
    factors = _factors(subject, len(LENGTHS))
    most = max(subject.heads.values())
    wide = {layer: torch.nn.functional.pad(f, (0, most - f.shape[1]), value=1.0) for layer, f in factors.items()}
    ours = subject.edited(inputs, lambda layout, step: {layer: [Gain(f)] for layer, f in wide.items()})
    _same(subject, ours, inputs, Naive(gain=factors))


def bias(subject: Subject) -> None:
    inputs = subject.prompts()
    added = torch.randn(inputs["input_ids"].shape, generator=torch.Generator().manual_seed(2))
    ours = subject.edited(inputs, lambda layout, step: {layer: [Bias(added[:, None])] for layer in subject.layers})
    _same(subject, ours, inputs, Naive(bias=added))


def mass(subject: Subject) -> None:
    """In the last two prompt rows and every answer row, three tokens count twice, and the row is normalised again."""
    inputs = subject.prompts()
    length = inputs["input_ids"].shape[1]
    group = torch.zeros(len(LENGTHS), length)
    group[:, -5:-2] = 1

    def make(layout: Layout, step: Step) -> Mapping[int, Sequence[Edit]]:
        marked = torch.zeros(layout.ids.shape, dtype=torch.bool)
        marked[:, -2:] = True
        rows = step.rows(marked) if step.reading else None
        if step.reading and rows is None:
            return {}
        edit = Mass(lambda: group[..., None], torch.ones_like, renormalise=True, rows=rows)
        return {layer: [edit] for layer in subject.layers}

    def change(weights: Tensor, start: int, offset: int, sinks: Tensor) -> Tensor:
        total, count = weights.shape[-1], weights.shape[2]
        inside = torch.nn.functional.pad(
            group[:, offset : offset + total], (0, max(0, total - group[:, offset:].shape[1]))
        )
        moved = weights * (1 + inside[:, None, None])
        moved = moved / (moved.sum(-1, keepdim=True) + sinks)
        rows = torch.arange(start, start + count) >= length - 2
        return torch.where(rows[:, None], moved, weights)

    _same(subject, subject.edited(inputs, make), inputs, Naive(change=change))


def reweight(subject: Subject) -> None:
    """Weights of every row to the power of one and a half, not normalised again."""
    inputs = subject.prompts()
    edit = Reweight(lambda weights, logits, keys: weights**1.5, headwise=True)
    ours = subject.edited(inputs, lambda layout, step: {layer: [edit] for layer in subject.layers})
    _same(subject, ours, inputs, Naive(change=lambda weights, start, offset, sinks: weights**1.5))


def _same(subject: Subject, ours: Tensor, inputs: Inputs, naive: Naive) -> None:
    theirs = subject.naive(inputs, naive)
    wrong = differ(ours, theirs)
    assert wrong is None, wrong
    off = float((theirs - subject.answer(inputs)).abs().max())
    assert off > 1e-3, f"the edit shows nowhere ({off:.1e})"


def decore(subject: Subject) -> None:
    """DeCoRe with given heads against two plain passes per token: of the whole model, and of one that is blind in these heads

    from the prompt's last token on.
    """
    listed = [(layer, head) for layer in subject.layers for head in (1, subject.heads[layer] - 1)]
    inputs = subject.prompts((9, 7))
    with sightline.attach(subject.model, {"decoder": {"decore": {"head_list": listed, "alpha": 0.5}}}, check=False):
        ours = subject.answer(inputs)
    blind: dict[int, list[int]] = {}
    for layer, head in listed:
        blind.setdefault(layer, []).append(head)
    generator, ids, start = subject.generator, inputs["input_ids"], 0
    last, layers = ids.shape[1] - 1, frozenset(subject.layers)
    naives = Naive(layers=layers), Naive(layers=layers, blind=blind, since=last)
    with _places(generator) as places:
        plain = subject.answer(inputs).log_softmax(-1)

    def run(naive: Naive, ids: Tensor, cache: Any) -> Tensor:
        """Logits [B, n, V] of a pass over the tokens from `start` on, told what `generate` tells it."""
        stop = start + ids.shape[1]
        told = {"attention_mask": nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)[:, :stop]}
        if places:
            told["position_ids"] = torch.cat(places, -1)[..., start:stop]
        with torch.no_grad(), running(subject.model, generator, naive):
            return generator(input_ids=ids, use_cache=True, **{CACHE: cache}, **told).logits.float()

    caches = [DynamicCache(config=subject.model.config.get_text_config(decoder=True)) for _ in naives]
    other = torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=-1)
    earlier = inputs["attention_mask"][:, :-1].bool()
    if differ(*(run(naives[0], one, copy.deepcopy(caches[0]))[:, :-1][earlier][:, None] for one in (ids, other))):
        # Rows see later ones: the blind model reads its first token over the keys of a prompt that was read by the whole one.
        run(naives[0], ids, caches[0])
        caches[0].crop(-1)
        caches[1], start = copy.deepcopy(caches[0]), last
    token, theirs = ids[:, start:], []
    for step in range(NEW):
        both = [run(one, token, cache)[:, -1].log_softmax(-1) for one, cache in zip(naives, caches, strict=True)]
        if step == 0 and (wrong := differ(both[0][:, None], plain[:, :1])) is not None:
            raise NotImplementedError(f"on eager attention the plain model is another one ({wrong})")
        scores = (1.5 * both[0] - 0.5 * both[1]).masked_fill(both[0].isinf(), -torch.inf)
        theirs.append(scores)
        start, token = start + token.shape[1], scores.argmax(-1, keepdim=True)
    reference = torch.stack(theirs, 1)
    wrong = differ(ours.log_softmax(-1), reference.log_softmax(-1))
    assert wrong is None, wrong
    off = float((reference.log_softmax(-1) - plain).abs().max())
    assert off > 1e-3, "the contrast shows nowhere"


@contextlib.contextmanager
def _places(generator: Any) -> Iterator[list[Tensor]]:
    """The positions [.., B, n] that `generate` gives to the passes inside; none where it leaves them to the model."""
    seen: list[Tensor] = []

    def begin(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("position_ids") is not None:
            seen.append(kwargs["position_ids"])

    hook = generator.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def padded(subject: Subject) -> None:
    """Rows of a left-padded batch are the same rows alone, under a bias and a gain."""
    inputs = subject.prompts()
    rows = [
        subject.prompts_of(inputs, i) if hasattr(subject, "prompts_of") else _row(inputs, i)
        for i in range(len(LENGTHS))
    ]
    together = subject.answer(inputs)
    for i, row in enumerate(rows):
        if (wrong := differ(together[i : i + 1], subject.answer(row))) is not None:
            raise NotImplementedError(f"padding changes the plain model's rows ({wrong})")

    def make(layout: Layout, step: Step) -> Mapping[int, Sequence[Edit]]:
        first = torch.where(layout.first_token, 1.5, 0.0)
        return {layer: [Bias(first[:, None])] for layer in subject.layers}

    ours = subject.edited(inputs, make)
    for i, row in enumerate(rows):
        wrong = differ(ours[i : i + 1], subject.edited(row, make))
        assert wrong is None, f"row {i}, {wrong}"


def _row(inputs: Inputs, i: int) -> Inputs:
    keep = inputs["attention_mask"][i].bool()
    return {name: inputs[name][i : i + 1, keep] for name in ("input_ids", "attention_mask")}


def picture(subject: Subject) -> None:
    """A picture in the prompt: the plain bits with an empty plan, and a bias on its tokens as a plain eager run has it."""
    if not vision_arguments(subject.model):
        raise NotImplementedError(f"{type(subject.model).__name__} takes none")
    try:
        inputs = pictures.prompt(subject.model, subject.type)
        plain = subject.answer(inputs, subject.model)  # with nothing attached: what fails here is the picture
    except Exception as error:
        raise NotImplementedError(f"no picture could be drawn for the tiny model ({_said(error)})") from error
    if plain.isnan().any():
        raise NotImplementedError("the plain model's logits are not numbers")
    layouts: list[Layout] = []

    def make(layout: Layout, step: Step) -> Mapping[int, Sequence[Edit]]:
        layouts.append(layout)
        return {layer: [Bias(torch.where(layout.image, 1.0, 0.0)[:, None])] for layer in subject.layers}

    with observe(subject.model, lambda facts: {"planned": Planned(facts, lambda layout, step: {})}):
        ours = subject.answer(inputs, subject.model)
    assert torch.equal(plain, ours), f"bits differ by {float((plain - ours).abs().max()):.1e}"
    with observe(subject.model, lambda facts: {"planned": Planned(facts, make)}):
        ours = subject.answer(inputs, subject.model)
    image = layouts[0].image
    expected = inputs["input_ids"] == pictures.IMAGE
    assert torch.equal(image, expected), f"{int(image.sum())} image tokens found, {int(expected.sum())} in the prompt"
    naive = Naive(bias=image.float(), layers=frozenset(subject.layers))
    with running(subject.model, subject.generator, naive):
        theirs = subject.answer(inputs, subject.model)
    wrong = differ(ours, theirs)
    assert wrong is None, wrong


def detach(subject: Subject) -> None:
    """Nothing is left behind: bits, attributes, configuration."""
    inputs = subject.prompts()
    before = subject.answer(inputs)
    state = [(module, dict(module.__dict__)) for module in subject.model.modules()]
    config = subject.model.config.to_json_string(use_diff=False), subject.model.config._attn_implementation
    subject.edited(inputs, lambda layout, step: {layer: [Gain(torch.zeros(1, 1))] for layer in subject.layers})
    for module, attributes in state:
        changed = [n for n, v in attributes.items() if module.__dict__.get(n, None) is not v and n != "rope_deltas"]
        assert not changed, f"{type(module).__name__}: {changed}"
        assert len(module.__dict__) == len(attributes), type(module).__name__
    assert (subject.model.config.to_json_string(use_diff=False), subject.model.config._attn_implementation) == config
    assert torch.equal(subject.answer(inputs), before)


CHECKS: dict[str, Callable[[Subject], None]] = {
    one.__name__: one for one in (empty, gain, bias, mass, reweight, decore, padded, picture, detach)
}


def prove(kind: str, model_type: str, kernel: str | None = None) -> dict[str, str]:
    """Every check of one model type: its name -> what came of it. It is loaded as a refusal says that it be."""
    try:
        subject = Subject(kind, model_type, kernel)
    except Exception as error:
        return {"build": f"plain: {_said(error)}"}
    try:
        subject.take_host()
    except SightlineError as error:
        if kernel is None and "attn_implementation='eager'" in str(error):
            return prove(kind, model_type, "eager")
        return {"attach": f"refused: {error}"}
    except Exception as error:
        return {"attach": f"FAILED: {_said(error)}"}
    results = {"attach": "ok"}
    for name, one in CHECKS.items():
        if name == "picture" and kind == "text":
            continue
        try:
            one(subject)
            results[name] = "ok"
        except SightlineError as error:
            results[name] = f"refused: {error}"
        except NotImplementedError as error:
            results[name] = f"plain: {str(error).splitlines()[0]}"
        except Exception as error:
            results[name] = f"FAILED: {_said(error)}"
    return results


def plain_fault(kind: str, model_type: str) -> str | None:
    """What a forward of the plain model ends in, where nothing of ours is near; None where it runs."""
    try:
        subject = Subject(kind, model_type)
        subject.model(**subject.prompts())
    except Exception as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
