"""What the engine's tests share: one thread, seeded generation, a calibration that fits a tiny model, exact snapshots."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import sightline
import torch

from tests.helpers import tiny

NEW = 4  # generated tokens; enough for two decode steps that read what an earlier one wrote
LENGTHS = (9, 3, 6)  # text tokens after the image, so that a batch of three is padded on the left
ALPHA = 8.0  # GIFT's strength; the default is too mild to show on a tiny model in every family
SETTINGS: dict[str, dict[str, Any]] = {  # a method that is not here runs with its defaults
    "faith": {
        "rows": "span",
        "span": "question",
        "head_list": [[0, 1], [0, 6], [1, 0], [1, 5], [2, 2], [2, 7], [3, 4]],
    },
    "head_gain": {"head_list": [[0, 4], [1, 2], [2, 5], [3, 1]]},
    "var": {"p": 0.2, "rho": 0.95, "min_visual": 0.0},
    "cai": {"layers": [1, 2, 3]},
    "cgvlm": {"alpha": 1.0, "layers": [1, 2], "when": None},  # the gate has tests of its own
    "vaf": {"enhance": 1.6, "suppress": 0.5, "layers": [1, 2]},
    "vhr": {"alpha": 3.0},
    "pai": {"alpha": 1.0},
    "focus": {"factor": 4.0},
    "locore": {"beta": 8.0, "layers": [0, 1, 2, 3]},
    "ocr_sink": {"beta": 0.1, "head_list": [[0, 1], [0, 6], [1, 0], [2, 3], [2, 5], [3, 2]]},
    "paint": {"alpha": 1.0, "beta": 0.5},
    "pasta": {"span": "question", "head_list": [[0, 0], [0, 5], [1, 3], [2, 2], [2, 7], [3, 6]]},
    "spotlight": {"span": "question", "target": 0.97},
}


SHARED: dict[str, tiny.TinyCase] = {}


def shared(family: str) -> tiny.TinyCase:
    """The family's case, one per process. A test may attach to its model, and change nothing else of it."""
    return SHARED.setdefault(family, tiny.get(family))


@dataclass(frozen=True)
class Answer:
    """The generated part: tokens [B, steps], logits and scores [B, steps, vocabulary]."""

    tokens: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor

    def same_bits(self, other: Answer) -> bool:
        """Whether both hold the same bits."""
        pairs = ((self.tokens, other.tokens), (self.logits, other.logits), (self.scores, other.scores))
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def generate(model: Any, inputs: tiny.Inputs, *, seed: int = 7, **how: Any) -> Answer:
    """`model.generate` with a seed and everything that it can return."""
    torch.manual_seed(seed)
    wanted = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    out = tiny.speaker(model, inputs).generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **wanted, **how})
    logits, scores = torch.stack(out.logits, dim=1), torch.stack(out.scores, dim=1)
    return Answer(out.sequences[:, inputs["input_ids"].shape[1] :], logits, scores)


def prompts(case: tiny.TinyCase, kind: str) -> tiny.Inputs:
    """The prompts that the tests use, by name."""
    if kind == "one":
        return case.inputs(1)
    if kind == "other":
        return case.inputs(1, lengths=(5,), seed=3)
    if kind == "padded":
        return case.inputs(3, lengths=LENGTHS)
    if kind == "pair":
        return case.inputs(2, lengths=LENGTHS[:2], seed=2)
    if kind == "images":
        return case.inputs(3, lengths=LENGTHS, images_per_row=(2, 1, 3) if case.uneven else (2, 2, 2), seed=1)
    if kind == "mixed":  # the second row has no image
        return case.inputs(3, lengths=LENGTHS, images_per_row=(1, 0, 2), seed=1)
    raise ValueError(kind)


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The blocks of the text decoder."""
    return list(tiny.decoder(model).layers)


@functools.cache
def _sinks(family: str) -> dict[str, Any]:
    """A dimension and a threshold under which most rows and layers have image tokens that are sinks and some that are not.

    The threshold lies in the widest gap near the median, so that rounding noise between a batch and its rows alone moves
    no token across it.
    """
    case = shared(family)
    seen: list[torch.Tensor] = []

    def see(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().float()
        seen.append(hidden.abs() * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6))

    hooks = [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in decoder_layers(case.model)[2:]]
    groups: list[torch.Tensor] = []  # the image tokens (or all tokens, of a text model) of one row entering one layer
    for kind in ("one", "other", "padded", "pair"):
        seen.clear()
        inputs = prompts(case, kind)
        case.model(**inputs)
        wanted = inputs["input_ids"].eq(tiny.IMAGE) if case.has_images else inputs["attention_mask"].bool()
        groups += [state[i][wanted[i]] for state in seen for i in range(len(state))]
    for hook in hooks:
        hook.remove()
    best = (0, 0.0, 0, 0.0)
    for dim in range(groups[0].shape[1]):
        values = torch.cat([group[:, dim] for group in groups]).sort().values
        low, high = int(0.3 * len(values)), int(0.7 * len(values))
        gap, at = (values[low + 1 : high + 1] - values[low:high]).max(0)
        tau = float(values[low + at] + gap / 2)
        both = sum(bool(group[:, dim].min() < tau < group[:, dim].max()) for group in groups)
        best = max(best, (both, float(gap), dim, tau))
    return {"dims": [best[2]], "tau": best[3]}


def _directions(case: tiny.TinyCase) -> dict[str, Any]:
    """Random query directions of a few heads."""
    heads = [[0, 2], [1, 7], [1, 4], [3, 0]]
    size = decoder_layers(case.model)[0].self_attn.head_dim
    return {"heads": heads, "directions": torch.randn(4, size, generator=torch.Generator().manual_seed(1)).tolist()}


def calibration(case: tiny.TinyCase, **changes: Any) -> dict[str, Any]:
    """A calibration that fits the tiny model and has every section, as a dict of the file's shape."""
    text = case.model.config.get_text_config()
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    across = getattr(text, "cross_attention_layers", [])
    scores = torch.rand(layers, heads, generator=torch.Generator().manual_seed(0)).tolist()
    data = {
        "schema": 1,
        "model": "tiny",
        "architecture": case.model.config.model_type,
        "layers": layers,
        "heads": heads,
        "sink": _sinks(case.name),
        "gaze": {"saliency_layers": [1], "enhanced_layers": [2, 3], "alpha": ALPHA},
        "visual_heads": {"layers": [n for n in range(layers - 3, layers) if n not in across], "scores": scores},
        "focus_heads": _directions(case),
    }
    return {**data, **changes}


ONLY = {"paint": ("llava", "llava_gqa")}  # methods that refuse every other family
METHODS = {name: one for name, one in sightline.methods().items() if one.kind == "method"}  # without the decoders


def fits(method: str, family: str) -> bool:
    """Whether the method runs on the family at all."""
    return family in ONLY.get(method, (family,)) and not (METHODS[method].weighs_image and family == "mllama")


def entry(method: str, **settings: Any) -> dict[str, Any]:
    """One entry of `methods`, with settings that show on a tiny model."""
    return {method: {**SETTINGS.get(method, {}), **settings}}


# --- exactness -------------------------------------------------------------------------------------------------------

_VOLATILE = {"rope_deltas"}  # Qwen writes it on every prompt, attached or not: compared by value


def _identity(value: Any) -> Any:
    """An attribute for comparison: tables by their entries, the rest by identity, kept alive so that no id returns."""
    if isinstance(value, dict):
        return {key: (id(item), item) for key, item in value.items()}
    if isinstance(value, list | set | tuple):
        return (id(value), value, [(id(item), item) for item in value])
    return (id(value), value)


def _ids(value: Any) -> Any:
    """What of `_identity` is compared."""
    if isinstance(value, dict):
        return {key: pair[0] for key, pair in value.items()}
    return (value[0], *([[pair[0] for pair in value[2]]] if len(value) == 3 else []))


class Snapshot:
    """A model's whole state: attributes, hooks, submodules, configs, weights and the classes of its modules."""

    def __init__(self, model: Any):
        self.attributes: dict[str, dict[str, Any]] = {}
        self.volatile: dict[str, Any] = {}
        self.classes: dict[str, dict[str, Any]] = {}
        for name, module in model.named_modules():
            self.attributes[name] = {k: _identity(v) for k, v in module.__dict__.items() if k not in _VOLATILE}
            self.volatile.update({f"{name}.{k}": module.__dict__[k] for k in _VOLATILE & module.__dict__.keys()})
            for kind in type(module).__mro__[:-1]:
                self.classes[kind.__qualname__] = {k: _identity(v) for k, v in vars(kind).items() if callable(v)}
        self.configs = {
            name: (id(module.config), dict(vars(module.config)), repr(module.config))
            for name, module in model.named_modules()
            if getattr(module, "config", None) is not None
        }
        self.implementations = [
            (name, module.config._attn_implementation)
            for name, module in model.named_modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation")
        ]
        self.generation = repr(model.generation_config), id(model.generation_config)
        self.weights = {key: value.clone() for key, value in model.state_dict().items()}

    def assert_same(self, model: Any) -> None:
        """Everything is as it was, down to identities and bits."""
        now = Snapshot(model)
        assert now.attributes.keys() == self.attributes.keys()
        for name, before in self.attributes.items():
            after = now.attributes[name]
            assert list(after) == list(before), f"attributes of '{name}'"
            for key, value in before.items():
                assert _ids(after[key]) == _ids(value), f"'{name}.{key}' changed"
        for kind, methods in self.classes.items():
            after = now.classes[kind]
            assert {k: v[0] for k, v in after.items()} == {k: v[0] for k, v in methods.items()}, f"class {kind}"
        assert now.configs == self.configs
        assert now.implementations == self.implementations
        assert now.generation == self.generation
        for key, value in self.weights.items():
            assert torch.equal(now.weights[key], value), f"weight '{key}' changed"
        assert now.volatile.keys() == self.volatile.keys()
        for key, value in self.volatile.items():
            same = torch.equal(now.volatile[key], value) if isinstance(value, torch.Tensor) else True
            assert same, f"'{key}' has another value than a plain run leaves"


# --- messages --------------------------------------------------------------------------------------------------------


def assert_message(error: BaseException, *words: str) -> None:
    """The message is one line that a user can act on and says all of `words`."""
    text = str(error)
    assert "\n" not in text, text
    assert len(text) > 20, text
    for word in words:
        assert re.search(re.escape(word), text, re.IGNORECASE), f"'{word}' is not in: {text}"
