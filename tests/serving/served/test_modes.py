"""The engine compiled, and its heads dealt to two processes: the same tokens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.served.models import answers, apart, asked, greedy, started, tokens
from tests.serving.served.test_tiny import CONFIGS, COUNT, PROMPTS

MODES = {
    "compiled": {"enforce_eager": False},
    "two-processes": {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
}


@pytest.mark.parametrize("name", ["zerotuning-decore", "juice"])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_tokens(tiny: Any, mode: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "two-processes":
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder, config = tiny("llama"), CONFIGS[name]
    plain, mitigated = (apart(answers, folder, PROMPTS, attached, COUNT) for attached in (None, config))
    with started(folder, config, skip_tokenizer_init=True, **MODES[mode]) as llm:
        both = [greedy(COUNT, choice, detokenize=False) for choice in ("on", "off") for _ in PROMPTS]
        assert tokens(llm.generate(asked(PROMPTS * 2), both, use_tqdm=False)) == mitigated + plain
