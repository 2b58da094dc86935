"""Every kind of plan, on random models of each proven type, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.serving.served.models import HEADS, LAYERS, answers, apart, asked, greedy, sampled, started, tokens

PROMPTS = [
    torch.randint(10, 380, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (5, 23, 60)
]
GAINS = (1 + 0.5 * torch.randn(LAYERS, HEADS, generator=torch.Generator().manual_seed(0))).tolist()
HEAD_LIST = [[1, 0], [2, 3], [3, 1]]
CONFIGS: dict[str, dict[str, Any]] = {
    "gains": {"methods": [{"head_gain": {"gains": GAINS}}]},
    "silent": {"methods": [{"faith": {"rows": "all", "head_list": HEAD_LIST}}]},
    "decore": {"decoder": {"decore": {"head_list": HEAD_LIST}}},
    "decore-output": {
        "methods": [{"head_gain": {"gains": GAINS}}],
        "decoder": {"decore": {"head_list": HEAD_LIST, "mask": "output", "alpha": 0.7, "span": "prompt"}},
    },
    "decore-gain": {
        "decoder": {"decore": {"head_list": HEAD_LIST, "alpha": "entropy_gain", "scale": True, "cap": 0.4}}
    },
    "hicd": {"decoder": {"hicd": {"head_list": HEAD_LIST, "beta": 0.1}}},
    "hicd-prompt": {"decoder": {"hicd": {"head_list": HEAD_LIST, "span": "prompt"}}},
    "zerotuning": {"methods": [{"zerotuning": {"gain": 6.0, "head_list": HEAD_LIST}}]},
    "zerotuning-decore": {
        "methods": [{"zerotuning": {"gain": 3.0}}, {"head_gain": {"gains": GAINS}}],
        "decoder": {"decore": {"head_list": HEAD_LIST}},
    },
    "juice": {
        "methods": [{"head_gain": {"gains": GAINS}}],
        "decoder": {"juice": {"enhance": [[1, 2], [2, 0]], "suppress": [[3, 3]], "alpha_enhance": 1.5}},
    },
}
CASES = [(kind, name, "auto") for name in CONFIGS for kind in ["llama"]]
CASES += [("llama", "juice", "transformers"), ("llama", "decore", "transformers"), ("llama", "gains", "transformers")]
CASES += [("llama", "zerotuning", "transformers")]
CASES += [(kind, name, "auto") for kind in ("mistral", "qwen2", "qwen3") for name in ("decore-output", "zerotuning")]
COUNT = 24


@pytest.mark.parametrize(("kind", "name", "code"), CASES, ids=["-".join(case) for case in CASES])
def test_a_served_model_answers_as_transformers_does(tiny: Any, kind: str, name: str, code: str) -> None:
    """With the plan and, in the same batch, without it; again over a warm cache; a longer conversation; seeds."""
    folder, config = tiny(kind), CONFIGS[name]
    plain, mitigated = (apart(answers, folder, PROMPTS, attached, COUNT) for attached in (None, config))
    assert plain != mitigated
    longer = [prompt + said + prompt[:9] for prompt, said in zip(PROMPTS, mitigated, strict=True)]
    later = apart(answers, folder, longer, config, COUNT)
    with started(folder, config, model_impl=code, skip_tokenizer_init=True, block_size=32) as llm:
        both = [greedy(COUNT, choice, detokenize=False) for choice in ("on", "off") for _ in PROMPTS]
        for _ in range(2):
            found = tokens(llm.generate(asked(PROMPTS * 2), both, use_tqdm=False))
            assert found[: len(PROMPTS)] == mitigated
            assert found[len(PROMPTS) :] == plain
        outputs = llm.generate(asked(longer), greedy(COUNT, detokenize=False), use_tqdm=False)
        assert tokens(outputs) == later
        assert any(one.num_cached_tokens for one in outputs)  # the cache was shared, and exact
        drawn = sampled(COUNT)
        first, second = (
            [
                [list(one.token_ids) for one in output.outputs]
                for output in llm.generate(asked(PROMPTS), drawn, use_tqdm=False)
            ]
            for _ in range(2)
        )
        assert first == second
        assert any(one != other for one, other in first)
