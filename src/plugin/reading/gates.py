"""Gates of one prompt batch: what each measures of a token, and how far it opens for each row (`core/when.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..branches import rules
from ..calibration.sections import GateThresholds, Grounding, Threshold
from ..core.edits import Edit, Rows, WeightProbe
from ..core.layout import Layout, Step
from ..core.method import ModelFacts
from ..core.when import LOOKING, When
from .scout import Scout

MASSES = ("image", "query", "prompt", "output")  # columns of the trace that are attention masses


def settled(when: When, facts: ModelFacts) -> When:
    """The gate with a threshold: the calibration's where its setting has none.

    Raises:
        CalibrationError: the calibration lacks it; how it is measured.
    """
    if when.signal == "grounding":
        known = facts.need("grounding", "grounding", "gate")
        return when.model_copy(update={"below": known.threshold}) if when.calibrated else when
    if not when.calibrated:
        return when
    measured: GateThresholds = facts.need("gate_thresholds", when.signal, "gate")
    found: Threshold = getattr(measured.now if when.now else measured.previous, when.signal)
    return when.model_copy(update={found.side: found.value})


class Gate:
    """One gate on one prompt batch; methods and a decoder that have the same gate share it.

    strength: share of the full strength at the token under way, [B], or [B, T] where a decoder alone is gated.
    memory: a row of each tensor per batch row, which follows the beams. tokens: how many it has decided about.
    again: passes that were run once more because it opened. methods: whether a method has it, not the decoder alone.
    """

    def __init__(self, when: When, layout: Layout, facts: ModelFacts, scout: Scout | None, methods: bool):
        self.when = when = settled(when, facts)
        self.layout, self.scout, self.methods = layout, scout, methods
        self.grounding: Grounding | None = (
            facts.need("grounding", "grounding", "gate") if when.signal == "grounding" else None
        )
        self._readout = facts.readout
        layers = facts.own(range(facts.layers)) if when.signal in LOOKING else []
        self._heads: dict[int, list[int]] = {layer: list(range(facts.heads)) for layer in layers}
        if self.grounding is not None:
            self._heads = {layer: [h for n, h in self.grounding.heads if n == layer] for layer in layers}
        self._weights: dict[int, Tensor] = {}  # mean attention of the chosen heads in the last row [B, K], by layer
        self._keys: dict[int, slice] = {}
        self.tokens = self.again = 0
        # Before the first token nothing is known: a uniform distribution, and no attention on the image.
        none, size = layout.ids.new_zeros(layout.batch).float(), max(facts.vocabulary, 2)
        unknown = torch.zeros(layout.batch, size, device=none.device)
        first = none if when.now or when.by == "layer" else self.opened_at(self.value(unknown))
        self.strength = first
        self.memory: Mapping[str, Tensor] = {"next": first, "opened": layout.ids.new_zeros(layout.batch)}

    # ---- the signal --------------------------------------------------------------------------------------------------

    def watch(self, step: Step) -> dict[int, list[Edit]]:
        """Probes of a pass, behind the edits; none where it ends before the prompt does."""
        self._weights.clear()
        if step.start + step.count < self.layout.length:
            return {}
        rows = Rows(step.count - 1, step.count, self.layout.valid[:, -1:])
        return {layer: [WeightProbe(partial(self._see, layer), rows)] for layer, heads in self._heads.items() if heads}

    def _see(self, layer: int, weights: Tensor, keys: slice, first: int) -> None:
        self._weights[layer], self._keys[layer] = weights[:, self._heads[layer], -1].detach().sum(1), keys

    def _masses(self) -> dict[str, Tensor]:
        """Mean attention of the chosen heads on the trace's groups of tokens [B]."""
        layout, count = self.layout, sum(map(len, self._heads.values()))
        groups = {"image": layout.image, "query": layout.query, "prompt": ~(layout.image | layout.query)}
        total = {name: torch.zeros(layout.batch, device=layout.ids.device) for name in MASSES}
        for layer, weights in self._weights.items():
            keys = self._keys[layer]
            prompt, rest = weights[:, : keys.stop - keys.start], weights[:, keys.stop - keys.start :]
            for name, group in groups.items():
                total[name] += (prompt * group[:, keys].to(prompt)).sum(-1).to(total[name])
            total["output"] += rest.sum(-1).to(total["output"])
        return {name: mass / max(count, 1) for name, mass in total.items()}

    def value(self, logits: Tensor) -> Tensor:
        """The signal [B] at the last row of the pass that has just run, from its logits [B, V]; [B, T] from [B, T, V]."""
        signal = self.when.signal
        if signal == "image_attention":
            return self._like(self._masses()["image"], logits)
        logs = logits.float().log_softmax(-1)
        entropy, probability = rules.entropy(logs)[..., 0], logs.amax(-1).exp()
        if self.grounding is None:
            return entropy if signal == "entropy" else probability
        columns = {name: self._like(mass, logits) for name, mass in self._masses().items()}
        columns |= {"entropy": entropy, "probability": probability}
        score = torch.zeros_like(entropy)
        for name, weight in self.grounding.weights.items():
            score = score + weight * columns[name]
        return score

    def _like(self, values: Tensor, logits: Tensor) -> Tensor:
        """Values [B] for each row of logits."""
        return values.to(logits.device).view(-1, *[1] * (logits.ndim - 2)).expand(logits.shape[:-1])

    def opened_at(self, values: Tensor) -> Tensor:
        return self.when.strength(values)

    def at_layer(self, hidden: Tensor) -> Tensor:
        """Its strength [B] in a layer, by what the state [B, q, hidden] that enters it would say of the last row."""
        strength = self.opened_at(self.value(self._readout(hidden[:, -1], True))).to(self.strength.device)
        self.strength = torch.maximum(self.strength, strength)  # of the token: that of its most open layer
        return strength

    # ---- the decision ------------------------------------------------------------------------------------------------

    def open(self, strength: Tensor) -> None:
        """Its strength at the token under way, from now on."""
        self.strength = strength.to(self.layout.ids.device)
        self.tokens += 1
        last = self.strength if self.strength.ndim == 1 else self.strength[:, -1]
        opened = self.memory["opened"]
        self.memory = {**self.memory, "opened": opened + (last.to(opened.device) > 0)}

    def begin(self, scored: bool) -> None:
        """A pass begins; `scored`: its last row says what token comes."""
        if self.when.by == "layer":
            self.strength = torch.zeros_like(self.memory["next"])
        elif not self.when.now and scored:
            self.open(self.memory["next"])
        elif not self.when.now:
            self.strength = self.memory["next"]

    def end(self, logits: Tensor) -> None:
        """The pass has ended with these logits [B, V] of its last row."""
        if self.when.by == "layer":
            self.open(self.strength)
        elif not self.when.now:
            self.memory = {**self.memory, "next": self.opened_at(self.value(logits)).to(self.layout.ids.device)}

    @property
    def rehearses(self) -> bool:
        """Whether it needs a plain pass of the token under way before the one with edits."""
        return self.when.now and self.scout is None and self.methods

    @property
    def opened(self) -> bool:
        """Whether it has opened for any row."""
        return bool(self.memory["opened"].any())

    def report(self) -> dict[str, Any]:
        """opened: at how many tokens of each row [B]; decided: of how many. again: passes run once more for it."""
        found = {"opened": self.memory["opened"].tolist(), "decided": self.tokens}
        return {"gate": {**found, "again": self.again} if self.rehearses else found}


class Gates:
    """All gates of a prompt batch. of: those of the methods, in their order; decoder: that of the decoder.

    unseen: how far they are open in this pass is not looked at.
    """

    unseen = False

    def __init__(self, of: Sequence[Gate | None] = (), decoder: Gate | None = None):
        self.of, self.decoder = of, decoder
        self.all: list[Gate] = list({id(gate): gate for gate in (*of, decoder) if gate is not None}.values())
        self.rehearsing = [gate for gate in self.all if gate.rehearses]
        self.scouts = [gate.scout for gate in self.all if gate.scout is not None]

    @classmethod
    def made(
        cls,
        methods: Iterable[When | None],
        decoder: When | None,
        layout: Layout,
        facts: ModelFacts,
        scout: Callable[[When], Scout | None],
    ) -> Gates:
        """Gates of these settings, the same one for the same setting."""
        methods = list(methods)
        gates = {
            when: Gate(when, layout, facts, scout(when), when in methods)
            for when in dict.fromkeys((*methods, decoder))
            if when is not None
        }
        return cls(
            [None if when is None else gates[when] for when in methods], None if decoder is None else gates[decoder]
        )

    def __bool__(self) -> bool:
        return bool(self.all)

    def watch(self, step: Step) -> list[Mapping[int, Sequence[Edit]]]:
        return [gate.watch(step) for gate in self.all]

    def decide(self, logits: Tensor, undo: Callable[[], None] | None = None) -> bool:
        """Let those that needed a plain pass decide by its last row's logits [B, V]; whether any opens, and it must run again.

        undo: takes the plain pass back in that case.
        """
        strengths = [gate.opened_at(gate.value(logits)) for gate in self.rehearsing]
        opens = [bool((strength > 0).any()) for strength in strengths]
        if undo is not None and any(opens):
            undo()
        for gate, strength, opened in zip(self.rehearsing, strengths, opens, strict=True):
            gate.open(strength)
            gate.again += opened and undo is not None
        return any(opens)

    def close(self) -> None:
        """Shut those that decide by a plain pass, for that pass."""
        for gate in self.rehearsing:
            gate.strength = torch.zeros_like(gate.memory["next"])

    def scaled(self, scores: Tensor, base: Tensor) -> Tensor:
        """The decoder's scores [B, T, V] by its gate's strength, drawn back to the model's own."""
        gate = self.decoder
        if gate is None:
            return scores
        if gate.when.now and gate.scout is None and not gate.methods:
            gate.open(gate.opened_at(gate.value(base)))
        share = gate.strength.to(scores.device)
        share = (share[:, None] if share.ndim == 1 else share)[..., None]
        if not self.unseen and bool((share == 1).all()):
            return scores
        mixed = torch.where(scores.isfinite(), base + share * (scores - base), scores)
        return torch.where(share == 1, scores, torch.where(share > 0, mixed, base))

    # ---- what follows the cache --------------------------------------------------------------------------------------

    def select(self, rows: Tensor) -> None:
        for gate in self.all:
            gate.memory = {name: held.index_select(0, rows.to(held.device)) for name, held in gate.memory.items()}
            if gate.scout is not None:
                gate.scout.select(rows)

    def saved(self) -> Callable[[], None]:
        """What takes back all that the passes from now on leave in them."""
        states = [(gate, gate.memory, gate.strength, gate.tokens, gate.again) for gate in self.all]
        scouts = [scout.saved() for scout in self.scouts]

        def restore() -> None:
            for gate, memory, strength, tokens, again in states:
                gate.memory, gate.strength, gate.tokens, gate.again = memory, strength, tokens, again
            for undo in scouts:
                undo()

        return restore
