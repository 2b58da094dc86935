"""Models that are spread over processes or devices say what the whole model says in one place.

Tensor parallel: the file is also the program of one process. Two are started once; they read tiny models with
transformers' plan, so that each holds half of the heads, and answer every case under every method and decoder. The tests
compare their answers with those of the whole model in this process.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
from safetensors.torch import load_file, save_file
from sightline import UnsupportedModelError
from sightline.benchmarks.runner.evaluate import Place, evaluate, fingerprint
from sightline.plugin.core.edits import Gain
from sightline.plugin.core.shards import Shard
from sightline.profiling.data.tokenised import AnswerPair
from sightline.profiling.probes.direct import Direct
from sightline.profiling.probes.importance import effects
from torch import nn
from torch.utils._pytree import tree_map

from tests.helpers import naive, tiny
from tests.helpers.devices import FAR, NEAR, TwoDevices, put
from tests.helpers.engine import METHODS, Answer, assert_message, calibration, entry, fits, generate, prompts, shared

PROCESSES = 2
ROOT = Path(__file__).parents[3]
PATIENCE = 600  # seconds that the processes may take on a busy machine; usually 20


@dataclass(frozen=True)
class Case:
    """A configuration on a family's model, and what is asked of it."""

    family: str
    config: dict[str, Any]
    kind: str = "padded"
    how: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def _decoder(name: str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A decoder's configuration and what `attach` needs beside it."""
    setup = naive.SETUPS[name]
    return {"decoder": {setup.name: {**setup.settings, **settings}}}, dict(setup.options)


def _cases() -> dict[str, Case]:
    cases = {f"{family}-plain": Case(family, {}) for family in ("llava", "llava_gqa", "llama", "qwen3")}
    for family in ("llava", "llava_gqa", "llama"):  # as many key heads as query heads; four times fewer; text
        sees = shared(family).has_images
        for name, method in METHODS.items():
            if fits(name, family) and (sees or not method.needs_image):
                cases[f"{family}-{name}"] = Case(family, {"methods": [entry(name)]})
        for name, setup in naive.SETUPS.items():
            if family != "llava" and (sees or not setup.image):
                config, options = _decoder(name)
                cases[f"{family}-{name}"] = Case(family, config, options=options)
    held = entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3])
    several = {"methods": [entry("vhr"), entry("var"), held]}
    silenced, _ = _decoder("decore", mask="output", span="prompt")
    more = {
        "several": Case("llava_gqa", several),
        "under a decoder": Case("llava_gqa", {**several, **_decoder("decore")[0]}),
        "silenced": Case("llava_gqa", silenced),
        "row means": Case("llava_gqa", {"methods": [entry("spotlight", scope="row")]}),
        "layer means": Case("llava_gqa", {"methods": [entry("spotlight", scope="layer", form="released")]}),
        "norms per head": Case("qwen3", {"methods": [entry("zerotuning")], **_decoder("juice")[0]}),
        "beams": Case("llava_gqa", {**several, **_decoder("hicd")[0]}, "pair", {"num_beams": 3}),
        "static cache": Case("llava_gqa", several, how={"cache_implementation": "static"}),
        "sampling": Case("llava_gqa", {"methods": [entry("vhr")], **_decoder("decore")[0]}, how={"do_sample": True}),
    }
    return {**cases, **more}


CASES = _cases()
TOGETHER = {name: case for name, case in CASES.items() if not name.endswith("sgrs")}  # it takes gradients
FAMILIES = sorted({case.family for case in CASES.values()})


@functools.cache
def facts_of(family: str) -> dict[str, Any]:
    """A calibration with every section."""
    return calibration(shared(family), **naive.SECTIONS)


def attach(model: Any, case: Case) -> sightline.Plug:
    """The case's configuration on a model of its family."""
    return sightline.attach(model, case.config, calibration=facts_of(case.family), **case.options)


def say(model: Any, case: Case) -> tuple[Answer, dict[str, Any]]:
    """The answer of a model, and what the methods report."""
    with attach(model, case) as plug:
        return generate(model, prompts(shared(case.family), case.kind), **case.how), plug.report()


@functools.cache
def whole(name: str) -> tuple[Answer, dict[str, Any]]:
    """What the whole model says in one process."""
    return say(shared(CASES[name].family).model, CASES[name])


def score(model: Any) -> list[list[list[float]]]:
    """Log-probabilities of some answers to a batch of prompts under DeCoRe, whose copy then masks every row."""
    with attach(model, CASES["llava_gqa-decore"]):
        scores = sightline.score(model, prompts(shared("llava_gqa"), "pair"), [[[30, 31], [40]], [[50, 51, 52]]])
    return [[one.tokens for one in row] for row in scores]


# --- one of the processes ----------------------------------------------------------------------------------------------


def load(folder: Path, family: str, **split: Any) -> Any:
    """This process's part of a model."""
    from transformers.distributed import DistributedConfig

    kind = type(shared(family).model)
    return kind.from_pretrained(folder / family, distributed_config=DistributedConfig(**split)).eval()


def refusal(act: Callable[[], Any]) -> str:
    """With which words something is refused."""
    try:
        act()
    except UnsupportedModelError as error:
        return str(error)
    return "not refused"


def refusals(folder: Path) -> dict[str, str]:
    """What is said of models that are spread in other ways."""
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    styles = {"q": "colwise", "k": "colwise_gather_output", "v": "colwise_gather_output"}
    some = {f"model.layers.*.self_attn.{part}_proj": style for part, style in styles.items()}

    def by_hand() -> Any:
        model = tiny.fresh("llama").model
        mesh = torch.distributed.init_device_mesh("cpu", (PROCESSES,))
        return parallelize_module(
            model, mesh, {f"model.layers.0.mlp.{part}_proj": ColwiseParallel() for part in ("up",)}
        )

    return {
        "one key head": refusal(lambda: sightline.attach(load(folder, "paligemma", tp_size=2), {})),
        "some projections": refusal(lambda: sightline.attach(load(folder, "llama", tp_size=2, tp_plan=some), {})),
        "fsdp": refusal(lambda: sightline.attach(load(folder, "llama", fsdp_size=2), {})),
        "by hand": refusal(lambda: sightline.attach(by_hand(), {})),
    }


def gradient(model: Any) -> None:
    """A pass under VHR that a gradient is wanted of."""
    weight = model.get_input_embeddings().weight
    weight.requires_grad_()
    try:
        with attach(model, CASES["llava_gqa-vhr"]), torch.enable_grad():
            model(**prompts(shared("llava_gqa"), "one"))
    finally:
        weight.requires_grad_(False)


def gradients(model: Any) -> None:
    """A profile that takes gradients of head outputs."""
    with Direct(model) as direct:
        effects(direct, [AnswerPair([3, 4], [5], [6])], "right")


def main(rank: int, folder: Path) -> None:
    """Answer all cases together with the other process; leaves the answers in the folder."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PATIENCE),
    )
    models = {family: load(folder, family, tp_size=PROCESSES) for family in FAMILIES}
    answers: dict[str, torch.Tensor] = {}
    notes: dict[str, Any] = {"reports": {}}
    for name, case in TOGETHER.items():
        print(name, flush=True)
        answer, notes["reports"][name] = say(models[case.family], case)
        answers |= {f"{name}/{part}": getattr(answer, part).contiguous() for part in ("tokens", "logits", "scores")}

    case, model = CASES["llava_gqa-plain"], models["llava_gqa"]
    bare = generate(model, prompts(shared("llava_gqa"), "padded"))
    notes["empty plan has the plain bits"] = say(model, case)[0].same_bits(bare)
    notes["scores"] = score(model)
    notes["refusals"] = refusals(folder) | {
        "a gradient": refusal(lambda: gradient(model)),
        "inducing heads": refusal(lambda: gradients(models["llama"])),
        "learned gates": refusal(lambda: Shard(0, 4, None).edit(Gain(torch.ones(1, 8, requires_grad=True)))),
        "sgrs": refusal(lambda: attach(model, CASES["llava_gqa-sgrs"])),
        "an evaluation": refusal(lambda: evaluate(None, model, None, {}, folder, place=Place(rank, PROCESSES))),
    }
    save_file(answers, folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(notes))
    torch.distributed.destroy_process_group()


# --- tensor parallel ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """The answers and notes of both processes."""
    folder = tmp_path_factory.mktemp("parallel")
    for family in (*FAMILIES, "paligemma"):
        shared(family).model.save_pretrained(folder / family)
    place = {"WORLD_SIZE": str(PROCESSES), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    logs = [folder / f"{rank}.log" for rank in range(PROCESSES)]
    running = []
    try:
        for rank, log in enumerate(logs):
            command = [sys.executable, "-m", "tests.plugin.core.test_shards", str(rank), str(folder)]
            where = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as out:
                running.append(subprocess.Popen(command, cwd=ROOT, env=where, stdout=out, stderr=subprocess.STDOUT))
        end = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in running) and time.monotonic() < end:
            if any(process.poll() for process in running):  # one has failed: the other waits for it in vain
                break
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
            process.wait()
    failed = [log.read_text()[-3000:] for process, log in zip(running, logs, strict=True) if process.returncode]
    assert not failed, "\n\n".join(failed)
    return [
        (load_file(folder / f"{rank}.safetensors"), json.loads((folder / f"{rank}.json").read_text()))
        for rank in range(PROCESSES)
    ]


def assert_alike(ours: Any, expected: Any) -> None:
    """The same, numbers but for rounding."""
    if isinstance(expected, dict | list):
        assert type(ours) is type(expected)
        assert len(ours) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_alike(ours[key], expected[key])
    else:
        assert ours == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_say_what_one_says(answered: Any, name: str) -> None:
    expected, report = whole(name)
    for answers, notes in answered:
        assert answers[f"{name}/tokens"].tolist() == expected.tokens.tolist()
        for part in ("logits", "scores"):
            torch.testing.assert_close(answers[f"{name}/{part}"], getattr(expected, part), atol=1e-4, rtol=1e-4)
        assert_alike(notes["reports"][name], json.loads(json.dumps(report)))
    assert torch.equal(answered[0][0][f"{name}/logits"], answered[1][0][f"{name}/logits"])


def test_two_processes_score_what_one_scores(answered: Any) -> None:
    expected = score(shared("llava_gqa").model)
    for _, notes in answered:
        assert_alike(notes["scores"], expected)


def test_an_empty_plan_has_the_plain_bits(answered: Any) -> None:
    assert [notes["empty plan has the plain bits"] for _, notes in answered] == [True, True]


REASONS = {
    "one key head": ("1 key head", "8 query heads", "2 processes", "device_map"),
    "some projections": ("q_proj", "colwise_gather_output", "tp_plan"),
    "fsdp": ("fsdp_size", "tp_size", "device_map"),
    "by hand": ("DTensor", "tp_size", "device_map"),
    "a gradient": ("gradient", "torch.no_grad()"),
    "inducing heads": ("inducing heads", "gradients", "device_map"),
    "sgrs": ("sgrs", "gradients", "device_map"),
    "learned gates": ("gradient", "torch.no_grad()"),
    "an evaluation": ("2 processes", "device 'auto'"),
}


@pytest.mark.parametrize("case", REASONS)
def test_refuses_what_it_cannot_follow(answered: Any, case: str) -> None:
    for _, notes in answered:
        assert_message(UnsupportedModelError(notes["refusals"][case]), *REASONS[case])


# --- devices -----------------------------------------------------------------------------------------------------------

SPREAD = {name: case for name, case in CASES.items() if case.family == "llava_gqa"}


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that accelerate has dispatched: its first and third layer lie on disk, and come when they are needed."""
    from accelerate import dispatch_model

    model = tiny.fresh("llava_gqa").model
    text = "model.language_model"
    whole_parts = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    places = dict.fromkeys(
        [*whole_parts, *(f"{text}.{part}" for part in ("embed_tokens", "norm", "rotary_emb"))], "cpu"
    )
    places |= {f"{text}.layers.{number}": place for number, place in enumerate(("disk", "cpu", "disk", "cpu"))}
    return dispatch_model(model, places, offload_dir=tmp_path_factory.mktemp("offload"), main_device="cpu")


@pytest.mark.parametrize("name", SPREAD)
def test_offloaded_layers(offloaded: Any, name: str) -> None:
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    answer, report = say(offloaded, SPREAD[name])
    expected, reported = whole(name)
    assert answer.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(answer.scores, expected.scores, atol=1e-4, rtol=1e-4)
    assert_alike(report, reported)


def test_a_model_without_a_device_map() -> None:
    """`cpu_offload` leaves hooks alone to say that the weights will come."""
    from accelerate import cpu_offload

    model = tiny.fresh("llava_gqa").model
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert say(model, CASES["llava_gqa-decore"])[0].tokens.tolist() == whole("llava_gqa-decore")[0].tokens.tolist()


def test_a_fingerprint_does_not_depend_on_the_place(offloaded: Any) -> None:
    assert fingerprint(offloaded) == fingerprint(shared("llava_gqa").model)
    assert fingerprint(offloaded) != fingerprint(shared("llava").model)


@pytest.fixture(scope="module")
def parted() -> Any:
    """A model whose second half is on another device, as accelerate leaves it: what enters a module follows it."""
    model = tiny.fresh("llava_gqa").model
    text = model.model.language_model
    for module in (*text.layers[2:], text.norm, model.lm_head):
        put(module)
        module.forward = _following(module.forward, FAR)
    model.forward = _following(model.forward, NEAR, back=True)
    return model


def _following(forward: Any, home: torch.device, back: bool = False) -> Any:
    def move(tree: Any) -> Any:
        return tree_map(lambda leaf: leaf.to(home) if isinstance(leaf, torch.Tensor) else leaf, tree)

    @functools.wraps(forward)
    def moved(*args: Any, **kwargs: Any) -> Any:
        output = forward(*move(args), **move(kwargs))
        if back:
            output.logits = move(output.logits)
        return output

    return moved


@pytest.mark.parametrize("name", SPREAD)
def test_two_devices(parted: Any, name: str) -> None:
    with TwoDevices():
        answer, report = say(parted, SPREAD[name])
    expected, reported = whole(name)
    assert answer.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(answer.scores, expected.scores, atol=1e-4, rtol=1e-4)
    assert_alike(report, reported)


# --- quantised weights -------------------------------------------------------------------------------------------------


class Eighth(torch.Tensor):
    """A weight in eight bits and a scale per row, the way quantisation libraries hold them: it is good for linear layers

    and nothing else.
    """

    bits: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def of(weight: torch.Tensor) -> Eighth:
        scale = weight.abs().amax(1, keepdim=True) / 127
        made = torch.Tensor._make_wrapper_subclass(Eighth, weight.shape, dtype=weight.dtype)
        made.bits, made.scale = (weight / scale).round().to(torch.int8), scale
        return made

    def whole(self) -> torch.Tensor:
        """As numbers."""
        return self.bits * self.scale

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return func(args[0], args[1].whole(), *args[2:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of quantised weights")


@pytest.fixture(scope="module")
def quantised() -> tuple[Any, Any]:
    """A model with quantised linear layers, and one whose weights are the same numbers."""
    model, same = tiny.fresh("llava_gqa").model, tiny.fresh("llava_gqa").model
    for layer, other in zip(model.get_decoder().layers, same.get_decoder().layers, strict=True):
        for (_, module), (_, twin) in zip(layer.named_modules(), other.named_modules(), strict=True):
            if isinstance(module, nn.Linear):
                weight = Eighth.of(module.weight.data)
                twin.weight.data.copy_(weight.whole())
                module._parameters["weight"] = weight
    return model, same


@pytest.mark.parametrize("name", ["several", "llava_gqa-decore", "llava_gqa-dola", "llava_gqa-zerotuning"])
def test_quantised_weights(quantised: Any, name: str) -> None:
    model, same = quantised
    answer, expected = say(model, CASES[name])[0], say(same, CASES[name])[0]
    assert answer.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(answer.scores, expected.scores, atol=1e-4, rtol=1e-4)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
