"""The lm-eval model `sightline`: any text model of transformers, under a configuration or plain.

    python -m sightline.benchmarks.harness.lm run --model sightline --model_args pretrained=smollm2,config=decore --tasks ...

is lm-eval's own command with the model registered: lm-eval has no entry point for models. Generation is `generate`
with the configuration attached. Answers are scored by `sightline.score`, since the logits that a forward pass gives for
prompt tokens are the model's own: a decoder contrasts what it decodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM

from ...common.chat import text_tokenizer
from ...plugin.config import Config
from .adapter import adapted

Request = tuple[Any, list[int], list[int]]
"""What lm-eval asks to score: the texts, the context's token ids and the answer's."""


class SightlineLM(HFLM):
    """lm-eval's Hugging Face model, loaded by this package, with a configuration attached."""

    def __init__(
        self,
        pretrained: Any,
        config: Config | Mapping[str, Any] | str | None = None,
        calibration: Path | str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 1,
        processor: Any = None,
        **others: Any,
    ):
        """Take what `adapted` takes.

        others: arguments of lm-eval's `hf` that do not load a model (`max_length`, `add_bos_token`, ...).
        """
        made = adapted(
            pretrained,
            processor,
            config=config,
            calibration=calibration,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
        )
        tokenizer = text_tokenizer(made.processor)
        super().__init__(made.model, tokenizer=tokenizer, batch_size=batch_size, backend="causal", **others)
        # lm-eval takes a loaded model for a single process's: say which one of how many this is.
        self.accelerator, self.plan = made.accelerator, made.plan
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def _attached(self) -> Any:
        return self.plan.attached(self.model, self.tokenizer)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One reply for each request, in the order of the requests."""
        with self._attached():
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability of each answer, and whether it was the likeliest text; a context is read once.

        Contexts that are too long for the model lose their beginning, as in lm-eval.
        """
        from tqdm import tqdm

        from ...plugin.reading.score import score

        asked: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, answer) in enumerate(requests):
            kept = context[-max(1, self.max_length + 1 - len(answer)) :]
            asked.setdefault(tuple(kept), []).append(number)
        contexts = sorted(asked, key=len, reverse=True)  # like lengths together; no memory runs out at the end
        size = override_bs or self.batch_size
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="sightline") as bar:
            for start in range(0, len(contexts), size):
                rows = contexts[start : start + size]
                width = max(map(len, rows))
                ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=self.model.device)
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=ids.device)
                answers = [[requests[number][2] for number in asked[row]] for row in rows]
                with self._attached():
                    scores = score(self.model, {"input_ids": ids, "attention_mask": mask}, answers)
                for row, given in zip(rows, scores, strict=True):
                    found.update(
                        (number, (one.logprob, one.greedy)) for number, one in zip(asked[row], given, strict=True)
                    )
                    bar.update(len(given))
        for number, (texts, _, _) in enumerate(requests):
            if texts is not None:  # a window of a longer text has none
                self.cache_hook.add_partial("loglikelihood", texts, found[number])
        return [found[number] for number in range(len(requests))]


def register() -> None:
    """Make `--model sightline` known to lm-eval in this process."""
    if "sightline" not in model_registry:
        model_registry.register("sightline", target=SightlineLM)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()
