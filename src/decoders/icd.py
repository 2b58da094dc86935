"""ICD, instruction contrastive decoding: contrast with the same prompt under an instruction that misleads.

Source: arXiv 2403.18715 (Findings of ACL 2024) and its release. The copy is told, for instance, that it sees badly:

    score = (1 + a) z - a z'   where p >= beta * max p, else -inf

What paper and release say apart from that, and what is ours: docs/methods/icd.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..common.errors import ConfigError, LayoutError
from ..plugin.branches import prompts
from ..plugin.branches.branch import Branch
from ..plugin.branches.decoder import Contrast, Decoder, register_decoder
from ..plugin.core.layout import Layout
from ..plugin.core.method import ModelFacts
from .contrast import ContrastSettings, LogitContrast

MISLEADING = "You see badly and often take one thing for another. Be vague."


class ICDSettings(ContrastSettings):
    instruction: str = Field(MISLEADING, min_length=1, description="what misleads the copy")
    instruction_ids: list[int] | None = Field(
        None, min_length=1, description="the same as token ids, needs no processor"
    )
    place: Literal["question", "start", "qformer"] = Field(
        "question",
        description="in front of the question, at the start, or in the Q-Former's copy of the question alone",
    )
    qformer_ids: list[int] | None = Field(
        None, min_length=1, description="the instruction as the Q-Former's token ids, needs no processor"
    )


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
        self.heard = self._heard(settings, facts)
        self.tokens: list[int] = []
        if settings.place == "qformer":
            return
        if settings.instruction_ids is not None:
            self.tokens = list(settings.instruction_ids)
            unknown = [token for token in self.tokens if not 0 <= token < facts.vocabulary]
            if unknown:
                raise ConfigError(
                    f"icd.instruction_ids names token {unknown[0]}, but '{facts.name}' knows 0..{facts.vocabulary - 1}"
                )
        elif facts.text.tokenizer is None:
            raise ConfigError(
                "icd turns its instruction into tokens: pass processor=... to attach, or 'instruction_ids'"
            )
        else:
            self.tokens = facts.text.tokenizer(settings.instruction + "\n", add_special_tokens=False)["input_ids"]

    def _heard(self, settings: ICDSettings, facts: ModelFacts) -> list[int]:
        """What a Q-Former that reads the question hears of the instruction; empty without one."""
        if "qformer_input_ids" not in facts.pictures:
            if settings.place == "qformer":
                raise ConfigError(
                    f"icd: 'place: qformer' misleads a Q-Former that reads the question, which '{facts.name}' does not have:"
                    " use 'question' or 'start'"
                )
            return []
        if settings.qformer_ids is not None:
            return settings.qformer_ids
        if facts.text.qformer is None:
            raise ConfigError(
                f"icd misleads the Q-Former of '{facts.name}', which reads the question too: pass processor=... to attach, or"
                " 'qformer_ids'"
            )
        return list(facts.text.qformer(settings.instruction, add_special_tokens=False)["input_ids"])

    def start(self, layout: Layout, scoring: bool = False) -> Contrast:
        return ICDContrast(self, layout)


class ICDContrast(LogitContrast):
    def __init__(self, decoder: ICD, layout: Layout):
        super().__init__(decoder, layout)
        self.branch = Branch(self._prompt)

    def _prompt(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        layout, decoder = self.layout, self.decoder
        if decoder.heard and bool(layout.image.any()):
            kwargs = {**kwargs, **misled(kwargs, decoder.heard)}
        if decoder.settings.place == "qformer":
            return prompts.same(kwargs, layout)
        places = (layout.valid.int().argmax(-1) + 1).tolist()
        if decoder.settings.place == "question":
            for row, query in enumerate(layout.query):
                if not bool(query.any()):
                    raise LayoutError(
                        f"icd: row {row} of the prompt has no question to stand before: use 'place: start'"
                    )
                places[row] = int(query.int().argmax())
        return prompts.inserted(kwargs, layout, places, decoder.tokens)


def misled(kwargs: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Tensor]:
    """What the Q-Former reads [pictures, m], with `tokens` behind the first token of each row."""
    ids, mask = kwargs.get("qformer_input_ids"), kwargs.get("qformer_attention_mask")
    if ids is None:
        raise LayoutError("icd misleads the Q-Former, but the pictures came encoded: pass pixel_values instead")
    mask = torch.ones_like(ids) if mask is None else mask
    changed = []
    for values, new in ((ids, ids.new_tensor(tokens)), (mask, mask.new_ones(len(tokens)))):
        pairs = zip(values, (mask.argmax(-1) + 1).tolist(), strict=True)
        changed.append(torch.stack([torch.cat([row[:place], new, row[place:]]) for row, place in pairs]))
    return {"qformer_input_ids": changed[0], "qformer_attention_mask": changed[1]}
