"""The `naive:` runs of the bench say what the plugin says."""

from __future__ import annotations

import pytest
import sightline
import torch
from sightline.benchmarks.speed import naive
from sightline.common.errors import ConfigError
from sightline.plugin.config import Config

from tests.helpers import tiny
from tests.helpers.engine import calibration, entry, generate, prompts, shared


@pytest.mark.parametrize("family", ["llava_gqa", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["var", "gift"])
def test_eager_attention_gives_the_same_answer(family: str, name: str) -> None:
    case = shared(family)
    inputs = prompts(case, "one")
    plain = generate(case.model, inputs)
    with sightline.attach(case.model, {"methods": [entry(name)]}, calibration=calibration(case)) as plug:
        expected, method = generate(case.model, inputs), plug.methods[name]
    how = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = naive.answer(case.model, inputs, method, **how)
    found = torch.stack(out.logits, dim=1)
    torch.testing.assert_close(found, expected.logits, atol=1e-4, rtol=1e-4)
    assert float((found - plain.logits).abs().max()) > 0.1
    assert generate(case.model, inputs).same_bits(plain)  # the model is as it was


def test_the_loop_of_two_passes_gives_the_same_answer() -> None:
    case = shared("llama")
    inputs = prompts(case, "one")
    config = {"decoder": {"decore": {"head_list": [[0, 1], [1, 4], [2, 6], [3, 3]], "span": "last"}}}
    with tiny.one_thread(), sightline.attach(case.model, config) as plug:
        expected = generate(case.model, inputs, max_new_tokens=5)
        heads = plug.decoder.heads  # type: ignore[union-attr]
    ticks: list[int] = []
    ids = naive.decode(
        case.model, inputs, heads, Config.load(config).decoder[1], 5, lambda ids: ticks.append(ids.shape[1])
    )
    assert ids[:, inputs["input_ids"].shape[1] :].tolist() == expected.tokens.tolist()
    assert len(ticks) == 5


def test_what_is_not_written_is_refused() -> None:
    for config in ({"methods": ["vhr"]}, {"methods": ["var", "gift"]}, {"decoder": "vcd"}):
        with pytest.raises(ConfigError, match="naive: runs var, gift, or decore"):
            naive.check(Config.load(config))
    for config in ({"methods": ["var"]}, {"methods": ["gift"]}, {"decoder": "decore"}):
        naive.check(Config.load(config))
