"""No decode step waits for a tensor's value: on an accelerator the host runs ahead.

`torch.cuda.set_sync_debug_mode("error")` says so where there is a GPU. Here the host behaves as it does beside one, and
every operation that would have to wait is refused while a step of ours asks for it.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import sightline
import torch
from sightline.common.errors import ScoresError
from sightline.plugin.core.host import Host
from sightline.plugin.reading.runner import Runner
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import naive
from tests.helpers.engine import METHODS, calibration, entry, fits, generate, prompts, shared

FAMILY = "llava_gqa"
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2")
#: They wait by what they are: sgrs walks down graphs, opera takes tokens back.
DECODERS = [name for name in naive.SETUPS if name not in ("sgrs", "opera")]


class Waiting(TorchDispatchMode):
    """Refuses what waits for a value, unless the model's own code asks for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picked = args[1] if func.overloadpacket is torch.ops.aten.index else ()
        by_mask = any(one is not None and one.dtype == torch.bool for one in picked)
        if (by_mask or func.overloadpacket.__name__ in WAITING) and (place := self._asked_by_us()):
            raise AssertionError(f"{place} waits for {func}")
        return func(*args, **(kwargs or {}))

    def _asked_by_us(self) -> str | None:
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if "transformers" in name:
                return None
            if frame.f_globals.get("__name__", "").startswith("sightline."):
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many decode steps were watched."""
    watched: list[int] = []
    real = Runner.forward

    def forward(self: Runner, original: Any, kwargs: dict[str, Any]) -> Any:
        if not (self._host.prompts and kwargs["input_ids"].shape[1] == 1):
            return real(self, original, kwargs)
        watched.append(1)
        with Waiting():
            return real(self, original, kwargs)

    monkeypatch.setattr(Runner, "forward", forward)
    monkeypatch.setattr(Host, "unseen", True)
    return watched


def _answer(config: dict[str, Any], **options: Any) -> torch.Tensor:
    case = shared(FAMILY)
    facts = {**calibration(case), **naive.sections(case)}
    with sightline.attach(case.model, config, calibration=facts, **{"query": naive.question, **options}):
        how = {"cache_implementation": "static", "disable_compile": True}
        return generate(case.model, prompts(case, "padded"), **how).logits


@pytest.mark.parametrize("name", [name for name in METHODS if fits(name, FAMILY)])
def test_no_step_of_a_method_waits(steps: list[int], name: str) -> None:
    for when in (None, {"signal": "entropy", "above": 4.5, "scale": 1.0}):
        settings = {**entry(name)[name], **({"rows": "all"} if name == "faith" else {})}
        _answer({"methods": [{name: {**settings, "when": when}}]})
    assert len(steps) == 6


@pytest.mark.parametrize("name", DECODERS)
def test_no_step_of_a_decoder_waits(steps: list[int], name: str) -> None:
    setup = naive.SETUPS[name]
    for when in (None, {"signal": "entropy", "above": 4.5, "scale": 1.0}):
        settings = {**setup.config[setup.name], "when": when}
        _answer({"decoder": {setup.name: settings}}, **setup.options)
    assert len(steps) == 6


def test_the_numbers_are_those_of_a_host_that_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    when = {"signal": "entropy", "above": 4.5}
    config = {"methods": [entry("pai"), entry("ocr_sink")], "decoder": {"decore": {"heads": 3}}, "when": when}
    looking = _answer(config)
    monkeypatch.setattr(Host, "unseen", True)
    torch.testing.assert_close(_answer(config), looking, atol=1e-4, rtol=1e-4)


def test_what_is_no_number_is_said_when_the_answer_has_come(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn from it meanwhile."""
    case, layers = shared(FAMILY), []
    real = Host.staged

    def staged(self: Host, plan: Any, start: int, prompt: int) -> Any:
        layers.append(start)
        return real(self, plan, start, prompt)

    monkeypatch.setattr(Host, "staged", staged)

    def poison(module: Any, args: Any, output: Any) -> Any:
        return output * float("nan") if len(layers) > 2 else output

    with sightline.attach(case.model, {"methods": [entry("pai")]}, calibration=calibration(case)):
        handle = case.model.get_output_embeddings().register_forward_hook(poison)
        try:
            with pytest.raises(ScoresError, match="row 0 has no finite scores under pai"):
                generate(case.model, prompts(case, "padded"), do_sample=True)
        finally:
            handle.remove()
    assert len(steps) == 3
