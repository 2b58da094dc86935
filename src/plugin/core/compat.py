"""All that is taken from transformers without its promise: private names, names that change, the words of its errors.

Supported are the releases from `OLDEST` to `NEWEST`, which `make test-versions` runs. A later one is let in where the calls
that are hooked look as they do in these; `check_calls` says so at `attach`, never in the middle of an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ...common.errors import LayoutError, UnsupportedModelError

OLDEST, NEWEST = "5.17.0", "5.24.0"
VERSION: str = transformers.__version__
MEND = f"install transformers>={OLDEST},<={NEWEST}"


def why_not(error: ImportError) -> str:
    """What keeps transformers from being used, from what an import of it raised: its release, or a package beside it."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    if root is error:
        return f"transformers {VERSION} has no place for attention edits any more ({error}): {MEND}"
    return (
        f"transformers {VERSION} cannot be loaded here ({type(root).__name__}: {root}): a package that it imports does not"
        " fit, often a torchvision that was made for another torch: install one that does, or uninstall it"
    )


try:
    from transformers import AttentionInterface, CompileConfig, LlamaForCausalLM, PreTrainedModel, QuantizedCache
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
    from transformers.utils.quantization_config import QuantizationMethod
except ImportError as error:
    raise UnsupportedModelError(why_not(error)) from error

CACHES = ("cache", "past_key_values")  # what keys and values are called, since 5.24 and before
#: What this release calls them, as an argument and in an output.
CACHE: str = next(
    (name for name in CACHES if name in inspect.signature(LlamaForCausalLM.forward).parameters), CACHES[0]
)
ENCODED = "mm_encoder_outputs"  # pictures that `generate` has already put through the vision tower, since 5.18
ROPE_OFFSETS = "rope_deltas"  # what Qwen's models note of a prompt's positions, on themselves
GENERATE_BEGINS = "_prepare_generation_config"  # what every `generate` calls on its model first
COMPILES = "get_compiled_call"  # what `generate` asks for a compiled pass, given the configuration of that
SDPA = ("module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "position_bias")


def renamed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, keys and values under the name that this release gives them."""
    found = [name for name in CACHES if name in kwargs]
    if found in ([], [CACHE]):
        return dict(kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in CACHES}
    return {**rest, CACHE: kwargs[CACHE if CACHE in found else found[0]]}


# ---- what is hooked --------------------------------------------------------------------------------------------------


def check_calls(generator: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Refuse a release of transformers whose calls do not look as the engine expects them.

    Args:
        generator: the module whose `forward` is a pass of `generate`.
        layers: the blocks of the text decoder.

    Raises UnsupportedModelError that names the call.
    """
    _check_arguments(generator.forward, "input_ids", "attention_mask", CACHE, "inputs_embeds")
    for layer in layers:
        _check_arguments(layer.forward, "hidden_states")
        if next(iter(inspect.signature(layer.forward).parameters)) != "hidden_states":
            _refuse(layer.forward, "its first argument is not hidden_states")
    _check_arguments(sdpa_attention_forward, *SDPA)
    _check_arguments(Cache.update, "key_states", "value_states", "layer_idx")
    for name in ("get_seq_length", "reorder_cache"):
        if not hasattr(Cache, name):
            _refuse(Cache, f"it has no {name}")
    _check_arguments(DynamicCache, "config")


def _check_arguments(call: Callable[..., Any], *names: str) -> None:
    found = inspect.signature(call).parameters
    missing = [name for name in names if name not in found]
    if missing:
        _refuse(call, f"it does not take {', '.join(missing)}")


def _refuse(call: Any, why: str) -> None:
    name = getattr(call, "__qualname__", type(call).__name__)
    raise UnsupportedModelError(
        f"transformers {VERSION} calls {name} otherwise than the releases that are known ({why}), so that edits would not"
        f" be carried out: {MEND}"
    )


# ---- attention -------------------------------------------------------------------------------------------------------


def register_attention(name: str, function: Callable[..., Any], eager: bool = False) -> None:
    """Make an attention function known, with the mask that sdpa expects, or eager (without it padding is lost)."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, eager_mask if eager else sdpa_mask)


def attention_name(config: Any) -> str | None:
    """The attention function that a text decoder's config names."""
    return getattr(config, "_attn_implementation", None)


def set_attention_name(config: Any, name: str) -> None:
    """Name another one in this config alone; the setter in public would name it in those of its parts, too."""
    config._attn_implementation_internal = name


@contextmanager
def kernel_named(config: Any, kernel: str) -> Iterator[None]:
    """Name sdpa or eager inside, in the place of a kernel that takes no edits (flash, flex)."""
    before = attention_name(config)
    if before is None or not before.startswith(("flash", "flex", "kernels-community")):
        yield
        return
    set_attention_name(config, kernel)
    try:
        yield
    finally:
        set_attention_name(config, before)


def attention_switches(model: nn.Module, decoder: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The calls that run the decoder with another attention: modules, and the name of their call."""
    for module in model.modules():
        if hasattr(module, "set_attn_implementation") and any(part is decoder for part in module.modules()):
            yield module, "set_attn_implementation"
    for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
        if hasattr(model, name):
            yield model, name


# ---- how a model was loaded ------------------------------------------------------------------------------------------


def is_model(model: Any) -> bool:
    """Whether it is a model of transformers, and no wrapper of one."""
    return isinstance(model, PreTrainedModel)


def brings_weights(model: nn.Module) -> bool:
    """Whether accelerate brings each weight when it is needed."""
    return hasattr(model, "hf_device_map") or hasattr(model, "_hf_hook")


def undivided(model: nn.Module) -> list[str]:
    """Classes of the blocks that may not be cut apart where a model is spread over devices."""
    return list(getattr(model, "_no_split_modules", None) or ())


def processes(model: nn.Module) -> int:
    """How many processes hold the model together by its heads (tensor parallel)."""
    return getattr(model, "_tp_size", None) or 1


def mesh(model: nn.Module) -> Any:
    """The processes that transformers has spread the model over, None where it has not."""
    return getattr(model, "_device_mesh", None)


def quantised(model: nn.Module) -> str | None:
    """How the weights are quantised; None where they are plain, as those read from a GGUF file are."""
    method = getattr(model, "quantization_method", None)
    return None if method in (None, QuantizationMethod.GGUF) else str(QuantizationMethod(method).value)


def compiled(model: nn.Module) -> bool:
    """Whether torch.compile has fixed the graph of the model or of a part of it."""
    return hasattr(model, "_orig_mod") or any(m._compiled_call_impl is not None for m in model.modules())


def compile_config(generator: Any, given: Any) -> Any:
    """The configuration with which a generator compiles its passes."""
    default = getattr(generator, "_default_compile_config", CompileConfig)
    return given or default()


# ---- pictures --------------------------------------------------------------------------------------------------------


def encoded_pictures(model: Any, kwargs: Mapping[str, Any]) -> Any:
    """The pictures among the arguments of `generate`, as it encodes them before its first pass.

    None where this release, or the model, leaves that to the pass.
    """
    encode = getattr(model, "_prepare_multimodal_encoder_kwargs_for_generation", None)
    if encode is None or ENCODED not in inspect.signature(model.forward).parameters:
        return None
    with torch.no_grad():
        return encode(dict(kwargs))[ENCODED]


def repeated_pictures(model: Any, ids: Tensor | None, encoded: Any, copies: int) -> Any:
    """Encoded pictures of the prompts `ids`, for `copies` of each (beams, several answers), in place."""
    return encoded if copies == 1 else model._expand_multimodal_outputs(ids, encoded, copies)


@contextmanager
def offsets_kept(model: nn.Module) -> Iterator[None]:
    """Bring back what a forward pass notes on the model about the prompt that it read."""
    noted = [(m, m.__dict__[ROPE_OFFSETS]) for m in model.modules() if ROPE_OFFSETS in m.__dict__]
    try:
        yield
    finally:
        for module, value in noted:
            setattr(module, ROPE_OFFSETS, value)


@contextmanager
def image_count_named() -> Iterator[None]:
    """Say what a wrong number of image tokens means.

    The model itself counts image features against placeholders, in words that differ by family: a ValueError that
    names both, or a bare mismatch of shapes where Qwen lays out its positions and where a Q-Former's tokens do not suffice.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error)
        bare = ("shape mismatch: value tensor", "elements of source < number of ones in mask")
        if ("features" in text and "tokens" in text) or any(words in text for words in bare):
            raise LayoutError(
                f"the picture and its placeholder tokens do not match ({text.splitlines()[0]}): build the prompt with this"
                " model's processor and pass its whole output"
            ) from error
        raise


# ---- caches ----------------------------------------------------------------------------------------------------------


def new_cache(config: Any) -> Any:
    """An empty cache for a text decoder of this config."""
    return DynamicCache(config=config)


def quantised_cache(cache: Any) -> bool:
    """Whether a cache keeps its keys and values quantised."""
    return isinstance(cache, QuantizedCache)


def states(config: Any) -> dict[int, str]:
    """The layers of a text decoder whose cache holds more than keys and values (linear attention, indexers), and its kind."""
    kinds = {number: type(layer) for number, layer in enumerate(DynamicCache(config=config).layers)}
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return {n: kind.__name__ for n, kind in kinds.items() if kind not in plain and kind.__name__ != "DummyLayer"}


def windows(cache: Any) -> dict[int, int]:
    """How many of the newest keys the sliding layers of a cache keep, by layer."""
    sliding = ((n, layer) for n, layer in enumerate(cache.layers) if getattr(layer, "is_sliding", False))
    return {number: getattr(layer, "sliding_window", None) or layer.max_cache_len for number, layer in sliding}


def held(layer: Any) -> tuple[Tensor, Tensor] | None:
    """The keys and values [B, Hkv, K, d] of a cache's layer; None before its first."""
    return (layer.keys, layer.values) if layer.is_initialized else None


def put(layer: Any, keys: Tensor, values: Tensor) -> None:
    """Let a cache's layer hold these keys and values, which stay where they are."""
    layer.keys, layer.values = keys, values
    torch._dynamo.mark_static_address(keys)
    torch._dynamo.mark_static_address(values)


def static(cache: Any) -> bool:
    """Whether each layer of a cache has room for the whole answer, in columns that never move."""
    layers = getattr(cache, "layers", None) or ()
    return len(layers) > 0 and all(type(layer) is StaticLayer and layer.is_initialized for layer in layers)


def cut_graph(cache: Any) -> None:
    """Leave values without a graph in a cache (None: nothing to do)."""
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            kept = getattr(layer, name, None)
            if isinstance(kept, Tensor) and kept.requires_grad:
                setattr(layer, name, kept.detach())


def grows_by_copies(cache: Any) -> bool:
    """Whether what is added to a cache can be taken back (`cache_undone`)."""
    return isinstance(cache, DynamicCache)


def saved_cache(cache: Any) -> Callable[[], None]:
    """What takes back all that the passes from now on add to a cache."""
    before = []
    for layer in cache.layers:
        # A dynamic layer grows by new tensors. A static one writes in place: what it has counted is kept, and its keys
        # where they move (sliding windows); elsewhere the next pass writes over them.
        moves = bool(getattr(layer, "is_sliding", False)) and not isinstance(layer, DynamicLayer)
        tensors = {name: value for name, value in layer.__dict__.items() if isinstance(value, Tensor)}
        kept = {name: value.clone() for name, value in tensors.items() if value.numel() == 1 or moves}
        before.append((layer, dict(layer.__dict__), kept))

    def restore() -> None:
        for layer, state, kept in before:
            layer.__dict__.clear()
            layer.__dict__.update(state)
            for name, value in kept.items():
                state[name].copy_(value)

    return restore


@contextmanager
def cache_undone(cache: Any) -> Iterator[None]:
    """Take back what the passes inside add to a cache."""
    restore = saved_cache(cache)
    try:
        yield
    finally:
        restore()
