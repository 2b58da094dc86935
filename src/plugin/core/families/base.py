"""The adapter class with the defaults that hold for most families, the table of declared families, and the refusals.

A family is declared where a model does not tell enough of itself (`inferred.py`): its prompt rows see later ones, another
module generates, the image comes by cross-attention. Every other model gets an adapter from what it tells.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ....common.errors import UnsupportedModelError
from . import inferred


@dataclass(frozen=True)
class Family:
    """How to reach the parts of a model.

    model_types: `config.model_type` values it stands for. image_token_fields: config fields that hold the ids of image
    or video placeholder tokens; empty for a text model. vision_inputs: forward arguments that carry pictures; they
    belong to the pass that reads the image tokens and to no other.
    bidirectional_prompt: prompt rows see later prompt rows, so the prompt cannot be read in two parts.
    no_forks: why no copy of the model can ride along in its passes; empty where one can.
    pictures_by_row: pictures come as [B, images, ...], not one below the other.
    inferred: nobody declared it, the model told it of itself.
    """

    model_types: tuple[str, ...]
    image_token_fields: tuple[str, ...] = ()
    vision_inputs: tuple[str, ...] = ("pixel_values", "image_sizes")
    bidirectional_prompt: bool = False
    no_forks: str = ""
    pictures_by_row: bool = False
    inferred: bool = False

    def decoder(self, model: nn.Module) -> nn.Module:
        """The text decoder: the module whose `layers` are its blocks."""
        return inferred.text_decoder(model)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        return inferred.blocks(self.decoder(model))

    def attention(self, layer: nn.Module) -> nn.Module | None:
        """The softmax self-attention of a block; it has `layer_idx`. None where the block has none (linear, SSM, conv)."""
        return inferred.self_attention(layer)

    def norm(self, model: nn.Module) -> nn.Module | None:
        """The decoder's final norm; None where it cannot be told."""
        return inferred.final_norm(self.decoder(model))

    def generator(self, model: nn.Module) -> nn.Module:
        """The module whose `forward` is a pass of `generate`, and whose `generate` makes the answer.

        Where it is not the model itself, the model hands it embeddings, and `handed` says how.
        """
        return model

    def handed(self, model: nn.Module, given: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        """The generator's arguments for reading a prompt, from what a pass of the whole model would take: `given`.

        told: the same for the prompt as the model handed it over, its `inputs_embeds` included.
        """
        return given

    def across(self, config: Any) -> frozenset[int]:
        """The layers that read the image by cross-attention, in place of tokens in the sequence. Nothing edits them."""
        return frozenset()

    def image_ids(self, config: Any) -> frozenset[int]:
        found = (getattr(config, field, None) for field in self.image_token_fields)
        return frozenset(token for token in found if token is not None)

    def read_text(self, model: nn.Module, ids: Tensor, mask: Tensor) -> None:
        """Run the decoder over a prompt without its image: ids and mask [B, m], left-padded.

        Nothing is returned or cached; the caller's probes look. The decoder is called directly, so that no state of the outer model
        (Qwen's rope offsets) changes.
        """
        decoder = self.decoder(model)
        placed = {}
        if "position_ids" in inspect.signature(decoder.forward).parameters:
            placed["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        decoder(input_ids=ids, attention_mask=mask, use_cache=False, **placed)


_FAMILIES: dict[str, Family] = {}
_REFUSED: dict[str, str] = {}


def register_family(family: Family) -> Family:
    for name in family.model_types:
        _FAMILIES[name] = family
    return family


def refuse(*model_types: str, reason: str) -> None:
    """Say why some families cannot be edited yet."""
    for name in model_types:
        _REFUSED[name] = reason


def _load() -> None:
    if not _FAMILIES:
        package = importlib.import_module(__package__ or "")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


def families() -> list[str]:
    """All model types that have a declaration of their own."""
    _load()
    return sorted(_FAMILIES)


def declared(model_type: str) -> bool:
    """Whether a model type has a declaration of its own."""
    return model_type in families()


def find_family(model: nn.Module) -> Family:
    """The adapter of `model`: the declared one, or what the model tells of itself.

    Raises UnsupportedModelError with the reason where no plug point is.
    """
    config: Any = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None:
        raise UnsupportedModelError(
            f"a {type(model).__name__} is no model of transformers: pass what from_pretrained returns"
        )
    name = getattr(config, "model_type", type(model).__name__)
    return declared_family(config, name) or infer(model, name)


def declared_family(config: Any, name: str) -> Family | None:
    """The declared adapter of the model type `name`, whose configuration this is; None where nobody declared one.

    Raises UnsupportedModelError with the reason where no plug point is.
    """
    _load()
    if name in _REFUSED:
        raise UnsupportedModelError(f"model type '{name}' is not supported: {_REFUSED[name]}")
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        whole = "is" if text.model_type == name else f"speaks through '{text.model_type}', which is"
        raise UnsupportedModelError(
            f"model type '{name}' {whole} an encoder-decoder: image and answer meet in its cross-attention, which has no"
            " plug point; use a decoder-only model"
        )
    return _FAMILIES.get(name)


def infer(model: nn.Module, name: str) -> Family:
    """An adapter from what a model tells of itself."""
    images = inferred.placeholder_fields(model.config)
    inputs = inferred.vision_arguments(model) if images else ()
    return Family(model_types=(name,), image_token_fields=images, vision_inputs=inputs, inferred=True)
