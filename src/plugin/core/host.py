"""What a model carries while something is attached: our attention on its decoder, its `forward` and `generate` wrapped.

Everything is set on the instance and noted with the way back. No class is touched, and the config that carries the
attention's name is a private copy, so another model built from the same config object notices nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import SightlineError, UncompiledWarning, UnsupportedModelError
from ..calibration.files import Calibration, model_name
from . import compat
from .attention import EAGER, IMPLEMENTATION, SLOT, Plan, Stage, attention
from .calls import Attachment, Calls
from .check import Checked, check
from .compiled import Companion, MadeOf, graphs_of, uncompilable
from .edits import Edits, Input, InputProbe, placed
from .families import Family, find_family
from .families.known import doubt
from .graph import obstacle
from .kernels import sdpa_computes
from .method import NO_MARKS, NO_TEXT, Marks, ModelFacts, TextTools
from .queue import queue_of
from .refusals import check_carried, check_loading, refusing
from .shards import Fewer, find_shard
from .wrappers import inner_model

HOST = "_sightline_host"  # attribute of an attached model


class Host(Calls):
    """One per model. Attachments stack; the innermost, the last of `plugs`, is in force."""

    def __init__(self, model: nn.Module):
        self.family: Family = find_family(model)
        check_loading(model)
        compat.register_attention(IMPLEMENTATION, attention)
        compat.register_attention(EAGER, attention, eager=True)
        super().__init__(model)
        self.model = model
        self.decoder = self.family.decoder(model)
        self.layers = self.family.layers(model)
        compat.check_calls(self.family.generator(model), self.layers)
        self.across = self.family.across(model.config)
        found = {index: self.family.attention(layer) for index, layer in enumerate(self.layers)}
        self.attentions = {index: one for index, one in found.items() if one is not None}
        self.linear = frozenset(found) - frozenset(self.attentions)  # layers without softmax attention: they run plain
        self.text_config = text = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
        if not self.attentions:
            raise UnsupportedModelError(
                f"none of the {len(self.layers)} blocks ({type(self.layers[0]).__name__}) of model type"
                f" '{model.config.model_type}' computes softmax attention through transformers' attention interface"  # type: ignore[union-attr]
                " (remote code, fused kernels and state-space models do not): nothing can be edited"
            )
        key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        shard = find_shard(model, list(self.attentions.values()), text.num_attention_heads, key_heads)
        by_layer = {i: int(getattr(one, "num_heads", text.num_attention_heads)) for i, one in self.attentions.items()}
        self.heads = max(by_layer.values())
        self.latent = bool(getattr(text, "kv_lora_rank", None))  # MLA: the cache holds what keys are made of
        self.stage = Stage(
            shard=shard,
            fewer={i: Fewer(0, n, None, self.heads) for i, n in by_layer.items() if n < self.heads},
            # What sdpa cannot compute (sinks, capped logits) the model's own eager function does.
            eager=not sdpa_computes(self.decoder, self.attentions.values(), compat.attention_name(text)),
        )
        self.checked = Checked()
        #: What the compiled pass under way was made of; why there is none, or its plan and its graph.
        self._laid: tuple[MadeOf | None, str | None, Plan, Any] = (None, None, {}, None)
        self._uncompiled = False  # whether that has been said
        self._undo = ExitStack()

    def check_forks(self, first: int, unproven: bool = False) -> None:
        """Raises UnsupportedModelError where no copy of the model that differs from layer `first` on can ride along.

        unproven: also beside a type that nobody declared and whose tiny model was not shown to carry one.
        """
        if "chunked_attention" in (getattr(self.text_config, "layer_types", None) or ()):
            raise UnsupportedModelError(
                f"'{self.model.config.model_type}' attends in chunks, which a copy of it beside would see otherwise: use a method,"  # type: ignore[union-attr]
                " or a decoder that looks at the model alone (dola)"
            )
        if self.family.no_forks:
            raise UnsupportedModelError(
                f"no copy of '{self.model.config.model_type}' can ride along in its passes: {self.family.no_forks}; use a"  # type: ignore[union-attr]
                " method, or a decoder that looks at the model alone (dola)"
            )
        states = {number: kind for number, kind in compat.states(self.text_config).items() if number >= first}
        if states:
            number, kind = next(iter(states.items()))
            raise UnsupportedModelError(
                f"a copy of the model beside it needs states of its own, and layer {number} of"
                f" '{self.model.config.model_type}' keeps more than keys and values ({kind}), which cannot be"  # type: ignore[union-attr]
                f" forked: use a method, a decoder that looks at the model alone (dola), or one whose copy differs behind layer"
                f" {max(states)} only"
            )
        kind = str(self.model.config.model_type)  # type: ignore[union-attr]
        reason = doubt(kind, "decore") if self.family.inferred and not unproven else None
        if reason is not None:
            raise UnsupportedModelError(
                f"a copy beside a model of type '{kind}' has not been proven ({reason}): use a method, or a decoder that looks"
                " at the model alone (dola)"
            )

    def check(self) -> None:
        """Prove on a few tokens that edits reach what they should (`core/check.py`). Raises UnsupportedModelError."""
        if not self.plugs:
            self.checked = check(self)
            if self.checked.bidirectional:
                self.family = dataclasses.replace(self.family, bidirectional_prompt=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        raise SightlineError("an attached model cannot be copied, the copy would run the original: detach it first")

    def facts(self, calibration: Calibration | None, text: TextTools = NO_TEXT, marks: Marks = NO_MARKS) -> ModelFacts:
        """What methods and decoders may know of the model, of the text around it, and of the prompt's tokens."""
        config, shape = self.model.config, self.text_config
        if calibration is not None:
            calibration.check(config.model_type, len(self.layers), self.heads, shape.hidden_size)  # type: ignore[union-attr,arg-type]
        return ModelFacts(
            name=model_name(self.model),
            architecture=str(config.model_type),  # type: ignore[union-attr]
            layers=len(self.layers),
            heads=self.heads,
            hidden=shape.hidden_size,
            vocabulary=shape.vocab_size,
            calibration=calibration,
            tied=bool(getattr(config, "tie_word_embeddings", False) or getattr(shape, "tie_word_embeddings", False)),
            no_gradients=obstacle(self.model),
            across=self.across,
            readout=self.readout,
            pictures=(*self.family.vision_inputs, compat.ENCODED),
            linear=self.linear,
            head_size=getattr(next(iter(self.attentions.values())), "head_dim", None),
            tower=getattr(getattr(self.model, "model", None), "vision_tower", None),
            text=text,
            marks=marks,
        )

    def readout(self, hidden: Tensor, norm: bool) -> Tensor:
        """Logits of hidden states [.., hidden]; `norm`: after the decoder's final norm.

        Raises UnsupportedModelError where the model's logits are not read from its last hidden state that way.
        """
        if self.checked.readout is None:
            raise UnsupportedModelError(
                f"the logits of '{self.model.config.model_type}' are not its readout of the normed hidden state, so hidden"  # type: ignore[union-attr]
                " states of other layers cannot be read out: use a decoder that reads none"
            )
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        logits = head(self.family.norm(self.model)(hidden) if norm else hidden) * self.checked.readout  # type: ignore[misc]
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def add(self, plug: Attachment) -> None:
        """Put an attachment in force, inside `between_calls`."""
        if not self.plugs:
            try:
                self._install()
            except BaseException:
                self._undo.close()
                raise
        self.plugs.append(plug)

    def remove(self, plug: Attachment) -> None:
        """End an attachment, when the calls that came before are over."""
        if plug not in self.plugs:
            return
        with self.queue.between("detach"):
            self.drop(plug)

    def drop(self, plug: Attachment) -> None:
        """The same inside `between_calls`."""
        if plug in self.plugs:  # another thread may have been faster
            self.plugs.remove(plug)
            if not self.plugs:
                self._undo.close()

    def _install(self) -> None:
        """Switch the text decoder to our attention and wrap the instance, noting how to undo each thing."""
        self.override(self.model, HOST, self)
        originals: dict[int, Any] = {}
        private = copy.deepcopy(self.model.config, originals)
        self.text_config = private.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
        compat.set_attention_name(self.text_config, EAGER if self.stage.eager else IMPLEMENTATION)
        for module in self.model.modules():
            config = module.__dict__.get("config")
            if config is not None and id(config) in originals:
                self.override(module, "config", originals[id(config)])
        for one in self.attentions.values():
            self.override(one, SLOT, self.stage)
        generator: Any = self.family.generator(self.model)
        if generator is not self.model:
            for name in ("forward", "generate"):
                if hasattr(self.model, name):
                    self.override(self.model, name, self.telling(getattr(self.model, name)))
        # A compiled caller must not bake one prompt's plan into its graph.
        self.override(generator, "forward", torch.compiler.disable(self.wrapped_forward(generator.forward)))
        if hasattr(generator, "generate"):
            self.override(generator, "generate", self.wrapped_generate(generator))
        if hasattr(generator, compat.COMPILES):
            self.override(generator, compat.COMPILES, self.compiled_call(generator))
        if hasattr(generator, compat.GENERATE_BEGINS):
            begins = getattr(generator, compat.GENERATE_BEGINS)
            self.override(generator, compat.GENERATE_BEGINS, self.begun_here(begins))
        for module, name in [*compat.attention_switches(self.model, self.decoder)]:
            self.override(module, name, refusing(name))

    def decode(
        self, original: Callable[..., Any], kwargs: dict[str, Any], count: int, companion: Companion | None = None
    ) -> Any:
        """A staged pass of `count` tokens behind a prompt in a compiled graph; None where `generate` has none, or cannot.

        companion: whose rows are in the pass, too.
        """
        if self.compiling is None:
            return None
        stage, cache = self.stage, kwargs.get(compat.CACHE)
        made_of = MadeOf(stage, cache, count, companion, self.compiling)
        known = made_of.same(self._laid[0])
        if not known:
            plan, reason = stage.plan, None
            if companion is not None:
                reason, plan = companion.obstacle(kwargs), companion.plan(plan, stage, count)
            reason = reason or uncompilable(plan, stage, cache)
            self._laid = made_of, reason, plan, None
        _, reason, plan, function = self._laid
        if reason is not None:
            self.left_uncompiled(reason)
            return None
        if companion is not None:
            kwargs = companion.arguments(kwargs, stage.start)
        if not known:
            graphs = graphs_of(self.model)
            function = graphs.function(self.model, plan, companion is not None, self.compiling, original)
            plan = graphs.laid_out(plan, stage, kwargs[compat.CACHE], count)
            self._laid = made_of, None, plan, function
        stage.plan, stage.joint = plan, companion is not None
        stage.visited.update(plan)  # a graph has what it was made of
        try:
            return function(**kwargs)
        finally:
            stage.joint = False

    @property
    def unseen(self) -> bool:
        """Whether a decode step must not look at values: the host would wait for them, or a graph is to serve them all."""
        return self.compiling is not None or next(self.decoder.parameters()).device.type != "cpu"

    def placed(self, edits: Edits) -> Edits:
        """The edits with their tensors where their layers compute."""
        found = dict(edits)
        for layer, some in edits.items():
            weight = next(self.attentions[layer].parameters(), None) if layer in self.attentions else None
            if weight is not None and not weight.is_meta:  # accelerate brings those when they are needed
                found[layer] = [placed(edit, weight.device) for edit in some]
        return found

    def left_uncompiled(self, reason: str) -> None:
        """Say once that passes run without a compiled graph, though `generate` compiles."""
        if self.compiling is not None and not self._uncompiled:
            self._uncompiled = True
            warnings.warn(f"the attached model runs uncompiled: {reason}", UncompiledWarning, stacklevel=2)

    def override(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an instance attribute until the last attachment leaves; what was there is brought back."""
        attributes = module.__dict__
        if name in attributes:
            self._undo.callback(attributes.__setitem__, name, attributes[name])
        else:
            self._undo.callback(attributes.pop, name, None)
        attributes[name] = value

    @contextmanager
    def staged(self, plan: Plan, start: int, prompt: int) -> Iterator[None]:
        """Carry out `plan` in the forward pass inside; `start` and `prompt` as in `Stage`."""
        stage = self.stage
        reached = self.attentions.keys() - self.across
        stage.plan = {layer: edits.on(stage.part(layer)) for layer, edits in plan.items() if layer in reached}
        stage.start, stage.prompt, stage.visited = start, prompt, set()
        with ExitStack() as hooks:
            for index, layer in enumerate(self.layers):
                for edit in plan[index].inputs if index in plan else ():
                    handle = layer.register_forward_pre_hook(_input_hook(edit), with_kwargs=True)
                    hooks.callback(handle.remove)
            try:
                yield
                check_carried(stage.plan, stage.visited)
            finally:
                stage.plan = {}


def _input_hook(edit: Input | InputProbe) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        hidden = given if given.ndim == 3 else given[0]  # Gemma 3n carries several versions, the active one first
        if isinstance(edit, InputProbe):
            edit.see(hidden)
            return None
        hidden = edit.change(hidden)
        if given.ndim > 3:
            hidden = torch.cat([hidden[None], given[1:]])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    return hook


@contextmanager
def between_calls(model: Any) -> Iterator[Host]:
    """The model's host, when the calls that came before are over; nobody else calls or attaches until it is left."""
    model = inner_model(model)
    with queue_of(model).between("attach"):
        yield host_of(model)


def host_of(model: Any) -> Host:
    """The model's host, a new one if nothing is attached to it. A wrapper's is that of the model inside."""
    model = inner_model(model)
    return model.__dict__.get(HOST) or Host(model)
