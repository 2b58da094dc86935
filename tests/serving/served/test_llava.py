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
# A copy of other pictures or of none runs without the methods' factors, so that each goes with one.
GAIN = {"head_gain": {"head_list": [[1, 2], [4, 7]], "gain": 1.7}}
RAISED = {"zerotuning": {"gain": 3.0, "head_list": [[0, 3], [2, 5]]}}
COPIES = {
    "vcd": {"methods": [GAIN], "decoder": {"vcd": {"noise_step": 600}}},
    "pai_guidance": {"methods": [GAIN, RAISED], "decoder": {"pai_guidance": {"gamma": 1.8}}},
    "m3id": {"methods": [RAISED], "decoder": {"m3id": {"lam": 0.1}}},
}
LONG = (
    f"You are a helpful assistant, who looks at each picture before you answer. {PICTURE}\n" + "Say what you see. " * 9
)


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


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_other_pictures_in_chunks_and_preempted(llava: Path, name: str) -> None:
    """Prompts in chunks that cut pictures, too few blocks for all requests, and again over a warm cache."""
    config = COPIES[name]
    pairs = [*zip(SHOWN, DRAWN, strict=True), (LONG, DRAWN[0])]
    left = {"methods": config["methods"]}
    said = {
        choice: apart(replies, llava, pairs, attached, COUNT, KNOWN)
        for choice, attached in (("on", config), ("off", None), ("without its copy", left))
    }
    assert said["on"] != said["off"]
    assert said["on"] != said["without its copy"]
    (blind,) = apart(replies, llava, [(BLIND, None)], left, COUNT, KNOWN)  # where the copy would be the model
    narrow = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 12, "block_size": 32, "max_model_len": 192}
    with started(llava, config, KNOWN, limit_mm_per_prompt={"image": 1}, disable_log_stats=False, **narrow) as llm:
        shown = [{"prompt": text, "multi_modal_data": {"image": picture}} for text, picture in pairs]
        for _ in range(2):
            outputs = llm.generate(
                [*shown, *shown, {"prompt": BLIND}, *shown],
                [greedy(COUNT, "on")] * 7 + [greedy(COUNT, "off")] * 3,
                use_tqdm=False,
            )
            found = tokens(outputs)
            assert found[:6] == said["on"] * 2
            assert found[6] == blind
            assert found[7:] == said["off"]
        assert any(output.num_cached_tokens for output in outputs)
        assert sum(one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions") > 0
