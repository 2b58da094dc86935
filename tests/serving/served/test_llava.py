"""A tiny LLaVA, by transformers' code inside vLLM: what holds for pictures holds for rows of prompts with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.served.models import PICTURE, apart, greedy, replies, started, tokens

COUNT, LAYERS, HEADS = 20, 6, 9
DRAWN = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (96, 96, 3), dtype=np.uint8)) for seed in (0, 1)]
SHOWN = [f"{PICTURE}\nQuestion: What is in the picture?\nAnswer:", f"Look at {PICTURE} and count:"]
BLIND = "Question: What is in the picture?\nAnswer:"
KNOWN = {
    "model": "mine",
    "architecture": "llava",
    "layers": LAYERS,
    "heads": HEADS,
    "visual_heads": {
        "scores": [[float((3 * layer + 5 * head) % 9) for head in range(HEADS)] for layer in range(LAYERS)]
    },
}
VHR = {"methods": [{"vhr": {"static": True, "alpha": 3.0, "layers": [1, 3, 5]}}]}
BOTH = {**VHR, "decoder": {"decore": {"head_list": [[2, 1], [3, 4], [4, 0]]}}}


@pytest.mark.parametrize("config", [VHR, BOTH], ids=["vhr", "vhr-decore"])
def test_pictures_and_none_in_one_batch(llava: Path, config: Any) -> None:
    pairs = list(zip(SHOWN, DRAWN, strict=True))
    seeing, plain = (apart(replies, llava, pairs, attached, COUNT, KNOWN) for attached in (config, None))
    # Without a picture static vhr leaves all heads alone, which is what it says of such a row of a batch.
    left = {"decoder": config["decoder"]} if "decoder" in config else None
    (blind,) = apart(replies, llava, [(BLIND, None)], left, COUNT, KNOWN)
    assert seeing != plain
    with started(llava, config, KNOWN, limit_mm_per_prompt={"image": 1}, max_num_batched_tokens=512) as llm:
        shown = [{"prompt": text, "multi_modal_data": {"image": picture}} for text, picture in pairs]
        requests = [*shown, {"prompt": BLIND}, *shown]
        parameters = [greedy(COUNT, "on")] * 3 + [greedy(COUNT, "off")] * 2
        for _ in range(2):
            found = tokens(llm.generate(requests, parameters, use_tqdm=False))
            assert found[:2] == seeing
            assert found[2] == blind
            assert found[3:] == plain
