"""ICD, instruction contrastive decoding: contrast with the same prompt under an instruction that misleads.

Source: arXiv 2403.18715 (Findings of ACL 2024) and its release. The copy is told, for instance, that it sees badly:

    score = (1 + a) z - a z'   where p >= beta * max p, else -inf

Raw logits; a = 1, beta = 0.1, sampling. The release tries five roles per model and keeps the results of each; in LLaVA
the role replaces the system prompt, in InstructBLIP it goes to the Q-Former. Ours: the instruction is put in front of the
user's question, which every chat template allows, or (`place: start`) behind the first token of the prompt.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..plugin.errors import ConfigError, LayoutError
from ..plugin.layout import Layout
from ..plugin.method import ModelFacts, Settings
from ..plugin.registry import register_decoder
from . import prompts, rules
from .branch import Branch
from .decoder import Contrast, Decoder

MISLEADING = "You see badly and often take one thing for another. Be vague."


class ICDSettings(Settings):
    alpha: float = Field(1.0, description="strength of the contrast")
    beta: float = Field(0.1, ge=0, le=1, description="plausibility cutoff, relative to the likeliest token; 0: none")
    instruction: str = Field(MISLEADING, min_length=1, description="what misleads the copy")
    instruction_ids: list[int] | None = Field(
        None, min_length=1, description="the same as token ids, needs no processor"
    )
    place: Literal["question", "start"] = Field("question", description="in front of the question, or at the start")


@register_decoder("icd")
class ICD(Decoder):
    summary = "contrast with the same prompt under a misleading instruction"
    source = "arXiv 2403.18715"
    cost = "the prompt once more; twice the rows per token"
    needs_image = False
    config = ICDSettings
    own_prompt = True

    def __init__(self, settings: ICDSettings, facts: ModelFacts):
        super().__init__(settings, facts)
        if settings.instruction_ids is not None:
            self.tokens = list(settings.instruction_ids)
            unknown = [token for token in self.tokens if not 0 <= token < facts.vocabulary]
            if unknown:
                raise ConfigError(
                    f"icd.instruction_ids names token {unknown[0]}, but '{facts.name}' knows 0..{facts.vocabulary - 1}"
                )
        elif facts.tokenizer is None:
            raise ConfigError(
                "icd turns its instruction into tokens: pass processor=... to attach, or 'instruction_ids'"
            )
        else:
            self.tokens = facts.tokenizer(settings.instruction + "\n", add_special_tokens=False)["input_ids"]

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return ICDContrast(self, layout)


class ICDContrast(Contrast):
    def __init__(self, decoder: ICD, layout: Layout):
        self.decoder, self.layout = decoder, layout
        self.branch = Branch(self._prompt)

    def _prompt(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        layout = self.layout
        places = (layout.valid.int().argmax(-1) + 1).tolist()
        if self.decoder.settings.place == "question":
            for row, query in enumerate(layout.query):
                if not bool(query.any()):
                    raise LayoutError(
                        f"icd: row {row} of the prompt has no question to stand before: use 'place: start'"
                    )
                places[row] = int(query.int().argmax())
        return prompts.inserted(kwargs, layout, places, self.decoder.tokens)

    def combine(self, base: Tensor, weak: Tensor | None) -> Tensor:
        assert weak is not None
        settings = self.decoder.settings
        return rules.plausible(rules.contrast(base, weak, settings.alpha), base, settings.beta)
