"""SmolLM2 served, through everything that vLLM does with requests: chunks, preemption, shared blocks, sampling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sightline import ConfigError
from sightline.cli.main import main

from tests.serving.served.models import answers, apart, asked, calibration, greedy, logprobs, started, tokens

STORY = "The Eiffel Tower was finished in 1889. It stands in Paris and is 330 metres tall. "
TEXTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Q: What is 12+30?\nA:",
    "Water boils at a temperature of",
    "The president of the United States in 1999 was",
    STORY * 6 + "Question: When was the tower finished?\nAnswer:",
]
COUNT = 24
GAINS = {"methods": [{"head_gain": {"head_list": [[3, 1], [10, 4], [20, 2], [29, 8]], "gain": -1.0}}]}
DECORE = {"decoder": {"decore": {"heads": 20}}}


class Served:
    """A running engine, and what transformers says to the same prompts."""

    def __init__(self, llm: Any, folder: Path, config: Any, prompts: list[list[int]]):
        self.llm, self.folder, self.prompts, self.known = llm, folder, prompts, calibration()
        self.mitigated, self.plain = (self.expected(prompts, attached) for attached in (config, None))

    def expected(self, prompts: list[list[int]], config: Any) -> list[list[int]]:
        return apart(answers, self.folder, prompts, config, COUNT, known=self.known)

    def say(self, prompts: list[list[int]], parameters: Any) -> list[Any]:
        return self.llm.generate(asked(prompts), parameters, use_tqdm=False)

    def counter(self, name: str) -> int:
        found = [metric for metric in self.llm.get_metrics() if metric.name == f"vllm:{name}"]
        return sum(metric.value for metric in found)


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def gains(smollm2: Path, prompts: list[list[int]]) -> Iterator[Served]:
    with started(smollm2, GAINS) as llm:
        yield Served(llm, smollm2, GAINS, prompts)


def test_gains_by_request(gains: Served) -> None:
    """One engine answers plain and mitigated, in one batch, in turn with a warm cache."""
    parameters = [greedy(COUNT, choice) for choice in ("on", "off") for _ in gains.prompts]
    for _ in range(2):
        found = tokens(gains.say(gains.prompts * 2, parameters))
        assert found[: len(gains.prompts)] == gains.mitigated
        assert found[len(gains.prompts) :] == gains.plain
    assert gains.mitigated != gains.plain


def test_another_choice_is_refused(gains: Served) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="'sightline' must be 'on' or 'off', not 'maybe'"):
        gains.say(gains.prompts[:1], greedy(4, "maybe"))
    assert tokens(gains.say(gains.prompts[:1], greedy(COUNT))) == gains.mitigated[:1]  # the engine lives on


def test_a_folded_checkpoint_in_plain_vllm(smollm2: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    """`sightline export --fold` for an engine that knows nothing of Sightline."""
    file, out = tmp_path / "gains.yaml", tmp_path / "folded"
    file.write_text(yaml.safe_dump(GAINS))
    assert apart(main, ["export", str(smollm2), "--config", str(file), "--fold", "--out", str(out)]) == 0
    with started(out, None) as llm:
        found = tokens(llm.generate(asked(prompts), greedy(COUNT), use_tqdm=False))
    assert found == apart(answers, smollm2, prompts, GAINS, COUNT)
    assert found != apart(answers, smollm2, prompts, None, COUNT)
    with pytest.raises(ConfigError, match="already has a configuration folded"), started(out, GAINS):
        pass


@pytest.fixture(scope="module")
def decore(smollm2: Path, prompts: list[list[int]]) -> Iterator[Served]:
    """With chunks of 48 tokens, and too few blocks for ten requests at once."""
    narrow = {"max_num_batched_tokens": 48, "max_num_seqs": 10, "num_gpu_blocks_override": 24, "block_size": 32}
    with started(smollm2, DECORE, calibration(), disable_log_stats=False, **narrow) as llm:
        yield Served(llm, smollm2, DECORE, prompts)


def test_decore_in_chunks_and_preempted(decore: Served) -> None:
    """24 requests, a third of them plain: prompts in chunks, keys and values thrown away and read anew."""
    parameters = [greedy(COUNT, "off" if number % 3 == 2 else "on") for number in range(24)]
    found = tokens(decore.say((decore.prompts * 4)[:24], parameters))
    for number, said in enumerate(found):
        expected = decore.plain if number % 3 == 2 else decore.mitigated
        assert said == expected[number % len(decore.prompts)], number
    assert decore.mitigated != decore.plain


def test_requests_were_preempted(decore: Served) -> None:
    """Ten of 60 tokens that share nothing: two blocks each, of 23, and three before they end."""
    ids = decore.prompts[-1][:60]
    before = decore.counter("num_preemptions")
    alone = [{"prompt_token_ids": ids, "cache_salt": str(number)} for number in range(10)]
    found = tokens(decore.llm.generate(alone, greedy(COUNT), use_tqdm=False))
    assert found == decore.expected([ids], DECORE) * 10
    assert decore.counter("num_preemptions") > before


def test_a_conversation_goes_on_over_shared_blocks(decore: Served) -> None:
    """The answer's tokens were masked rows of the copy; as a prompt they are not, and must not be shared."""
    first = decore.prompts[-1]
    for choice, config, said in (("on", DECORE, decore.mitigated), ("off", None, decore.plain)):
        assert tokens(decore.say([first], greedy(COUNT, choice))) == said[-1:]
        longer = [*first, *said[-1], *decore.prompts[0]]
        (output,) = decore.say([longer], greedy(COUNT, choice))
        assert tokens([output]) == decore.expected([longer], config)
        # Of a mitigated turn the prompt's blocks, of a plain one those of the answer too.
        shared = len(first) - 1 if choice == "on" else len(first) + COUNT - 1
        assert output.num_cached_tokens == shared // 32 * 32


def test_logprobs_are_of_the_contrasted_scores(decore: Served) -> None:
    from vllm import SamplingParams

    ids = decore.prompts[0]
    (output,) = decore.say([ids], SamplingParams(temperature=0, max_tokens=4, logprobs=5))
    expected = apart(logprobs, decore.folder, ids, DECORE, 4, decore.known)
    for scores, found in zip(expected, output.outputs[0].logprobs, strict=True):
        for token, one in found.items():
            assert one.logprob == pytest.approx(scores[token], abs=2e-3)


def test_stop_strings_and_streams_end_an_answer(decore: Served) -> None:
    from vllm import SamplingParams

    (whole,) = decore.llm.generate([TEXTS[1]], SamplingParams(temperature=0, max_tokens=COUNT), use_tqdm=False)
    text = whole.outputs[0].text
    stop = text.split()[4]
    (short,) = decore.llm.generate(
        [TEXTS[1]], SamplingParams(temperature=0, max_tokens=COUNT, stop=[stop]), use_tqdm=False
    )
    assert short.outputs[0].text == text[: text.index(stop)]
    assert short.outputs[0].finish_reason == "stop"
