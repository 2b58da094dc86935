"""The attach check: what it costs, what it finds, and that it finds it out by looking."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest
import sightline
import torch
from sightline import UnsupportedModelError
from sightline.plugin.core import check
from sightline.plugin.core import host as hosts
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from tests.helpers import tiny
from tests.helpers.engine import Snapshot, assert_message

NOTHING: dict[str, Any] = {"methods": []}


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test pays for its own check."""
    monkeypatch.setattr(check, "_KNOWN", {})


class Calls:
    """Counts the passes of every module of some kinds."""

    def __init__(self, modules: list[nn.Module]):
        self.rows = {id(module): 0 for module in modules}
        self.hooks = [module.register_forward_hook(self._seen) for module in modules]

    def _seen(self, module: nn.Module, args: Any, output: Any) -> None:
        self.rows[id(module)] += 1

    def counts(self) -> set[int]:
        """How often each ran, and no longer counted."""
        for hook in self.hooks:
            hook.remove()
        return set(self.rows.values())


def attention(model: Any, layer: int = 0) -> Any:
    return tiny.decoder(model).layers[layer].self_attn


def replaced(module: nn.Module, forward: Any) -> None:
    """Another library's forward on one module."""
    module.forward = types.MethodType(forward, module)


def refusal(model: Any) -> UnsupportedModelError:
    """The error of attaching, behind which the model is as it was."""
    snapshot = Snapshot(model)
    with pytest.raises(UnsupportedModelError) as caught:
        sightline.attach(model, NOTHING)
    snapshot.assert_same(model)
    return caught.value


@pytest.mark.parametrize("name", ["llava_gqa", "gemma3", "qwen3_vl", "mllama"])
def test_it_costs_two_passes_of_eight_tokens_and_one_more_of_attention(name: str) -> None:
    """Blocks run twice; their attention, once more by its forward alone, is not seen by the hook."""
    model = tiny.fresh(name).model
    blocks = [layer for layer in tiny.decoder(model).layers if hasattr(layer, "self_attn")]
    linear = [layer.mlp for layer in blocks]
    seen: list[int] = []
    hook = blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].shape[:2].numel()), with_kwargs=True
    )
    counted = Calls(linear)
    sightline.attach(model, NOTHING).detach()
    hook.remove()
    assert counted.counts() == {2}
    assert seen == [check.TOKENS] * 2


def test_it_is_paid_once_for_a_class_and_configuration() -> None:
    first, second = tiny.fresh("llama").model, tiny.fresh("llama").model
    sightline.attach(first, NOTHING).detach()
    counted = Calls([layer.mlp for layer in tiny.decoder(second).layers])
    sightline.attach(second, NOTHING).detach()
    assert counted.counts() == {0}


def test_it_can_be_left_out() -> None:
    model = tiny.fresh("llama").model
    counted = Calls([layer.mlp for layer in tiny.decoder(model).layers])
    with sightline.attach(model, NOTHING, check=False):
        assert counted.counts() == {0}


def test_leaving_it_out_is_a_matter_of_one_attachment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy beside a type that nobody has proven: who leaves the check out gets it, who does not, inside, is refused."""
    case = tiny.fresh("llama")
    decore = {"decoder": {"decore": {"head_list": [[1, 0]]}}}
    monkeypatch.setattr(hosts, "doubt", lambda kind, check: "never tried")

    def generate() -> None:
        case.model.generate(**case.inputs(1), max_new_tokens=2)

    with sightline.attach(case.model, decore, check=False):
        host = case.model.__dict__[hosts.HOST]
        host.family = dataclasses.replace(host.family, inferred=True)
        generate()
        with sightline.attach(case.model, decore), pytest.raises(UnsupportedModelError, match="never tried"):
            generate()
        generate()


def test_an_attention_that_another_library_has_replaced() -> None:
    """It computes something of its own, and the function that edits is never asked."""
    model = tiny.fresh("llama").model

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        return self.o_proj(self.q_proj(hidden_states)), None

    replaced(attention(model, 2), forward)
    assert_message(refusal(model), "layer 2", "never reached", "LlamaAttention", "from_pretrained")


def test_an_attention_whose_output_is_not_used() -> None:
    model = tiny.fresh("llama").model
    usual = attention(model, 1).forward

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        usual(hidden_states=hidden_states, **kwargs)
        return hidden_states, None

    replaced(attention(model, 1), forward)
    assert_message(refusal(model), "silencing a head changed nothing", "layer 1")


def test_a_configuration_that_lies_about_heads() -> None:
    model = tiny.fresh("llama").model
    model.config.num_attention_heads = 4
    assert_message(refusal(model), "8 query heads", "configuration says 4", "num_attention_heads")


def test_an_attention_that_goes_by_the_name_of_the_implementation() -> None:
    """A patched forward that treats sdpa otherwise than every other name."""
    model = tiny.fresh("llama").model
    usual = attention(model).forward

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        out, weights = usual(hidden_states=hidden_states, **kwargs)
        return (2 * out if self.config._attn_implementation == "sdpa" else out), weights

    replaced(attention(model), forward)
    assert_message(refusal(model), "changes the logits", "our function does not")


def test_fused_blocks_without_the_interface() -> None:
    """Quantisers that fuse q, k and v put modules of their own in the place of each attention."""

    class Fused(nn.Module):
        def __init__(self, usual: Any):
            super().__init__()
            self.qkv, self.out = usual.q_proj, usual.o_proj

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return self.out(self.qkv(hidden_states)), None

    model = tiny.fresh("llama").model
    for layer in tiny.decoder(model).layers:
        layer.self_attn = Fused(layer.self_attn)
    assert_message(refusal(model), "none of the 4 blocks", "attention interface", "nothing can be edited")


def test_a_model_that_runs_its_attention_on_eager_is_held_to_rounding() -> None:
    model = tiny.fresh("llama").model
    model.set_attn_implementation("eager")
    sightline.attach(model, NOTHING).detach()


def test_what_a_pass_leaves_on_the_model_is_taken_back() -> None:
    """Qwen notes the rope offsets of the last prompt: the check's own are none of the user's."""
    case = tiny.fresh("qwen2_vl")
    case.model(**case.inputs(1))
    noted = case.model.model.rope_deltas.clone()
    sightline.attach(case.model, NOTHING).detach()
    assert torch.equal(case.model.model.rope_deltas, noted)


def test_the_random_state_is_the_callers() -> None:
    model = tiny.fresh("llama").model
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    sightline.attach(model, NOTHING).detach()
    assert torch.equal(torch.random.get_rng_state(), before)


class Mixer(nn.Module):
    """Attends over two versions of a hidden state, in place of an MLP: an attention of the decoder that is no layer's own."""

    def __init__(self, config: Any):
        super().__init__()
        self.config, self.is_causal, self.num_key_value_groups = config, False, 1

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        versions = torch.stack([hidden, hidden.roll(1, -1)], dim=-2)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, _ = interface(self, hidden[:, :, None], versions, versions, None, scaling=0.5)
        return output[:, 0]


@pytest.mark.parametrize("eager", [False, True])
def test_an_attention_that_is_no_layers_own_runs_plain(eager: bool) -> None:
    model = tiny.fresh("llama").model
    if eager:  # a decoder that sdpa cannot compute
        tiny.decoder(model)._supports_sdpa = False
        model.set_attn_implementation("eager")
    for layer in tiny.decoder(model).layers:
        layer.mlp = Mixer(layer.self_attn.config)
    ids = torch.arange(20, 32)[None]
    plain = model(input_ids=ids).logits
    with sightline.attach(model, NOTHING):
        assert torch.equal(model(input_ids=ids).logits, plain)
