"""Text-only decoders: methods that need an image refuse them, the others run."""

from __future__ import annotations

from .base import Family, register_family

register_family(Family(model_types=("llama", "qwen2", "qwen3", "mistral", "gemma3_text"), vision_inputs=()))
register_family(
    Family(
        model_types=("doge",),
        vision_inputs=(),
        no_forks="each of its layers masks keys by what they hold, which is not known of a copy's",
    )
)
register_family(
    Family(
        model_types=("gpt2", "gpt-sw3", "gpt_bigcode"),
        vision_inputs=(),
        no_forks="behind its last block it lays its hidden states out as the prompt was given",
    )
)
