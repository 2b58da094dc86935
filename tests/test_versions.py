"""What a release of transformers can break, in minutes: `make test-versions` runs it on the oldest and the newest.

Every method and every decoder on five families that differ in how they are called: greedy search over a padded batch,
and beams. That rows of a batch say what they say alone, and not what the plain model says, holds only where edits are
carried out, caches are followed and masks are kept. Decoders are held against their float64 reference, too.
"""

from __future__ import annotations

from typing import Any

import pytest
import sightline
import torch

from tests.helpers import naive
from tests.helpers.engine import METHODS, calibration, entry, fits, generate, prompts, shared
from tests.helpers.naive import SETUPS

pytestmark = pytest.mark.versions

#: Plain; three-part positions; both ways and sliding; a prompt handed on; an image read across.
FAMILIES = ["llava_gqa", "qwen2_vl", "gemma3", "instructblip", "mllama"]
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: ({"methods": [entry(name)]}, {}) for name in METHODS},
    **{name: ({"decoder": setup.config}, setup.options) for name, setup in SETUPS.items()},
    "gate": ({"methods": [entry("pai", when={"signal": "interaction", "above": 0.0})]}, {"query": naive.question}),
}
CASES = [
    (family, name)
    for family in FAMILIES
    for name in SETTINGS
    if (fits(name, family) if name in METHODS else SETUPS[name].fits(family) if name in SETUPS else family != "mllama")
]


def attach(family: str, name: str) -> sightline.Plug:
    config, options = SETTINGS[name]
    case = shared(family)
    return sightline.attach(case.model, config, calibration=calibration(case, **naive.sections(case)), **options)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_padded_batches_and_beams(family: str, name: str) -> None:
    case = shared(family)
    padded, pair = prompts(case, "padded"), prompts(case, "pair")
    plain = generate(case.model, padded)
    with attach(family, name):
        together, beams = generate(case.model, padded), generate(case.model, pair, num_beams=3)
        alone = [generate(case.model, case.row(padded, i)) for i in range(3)]
        alone_beams = [generate(case.model, case.row(pair, i), num_beams=3) for i in range(2)]
    assert together.tokens.tolist() == [answer.tokens[0].tolist() for answer in alone]
    assert beams.tokens.tolist() == [answer.tokens[0].tolist() for answer in alone_beams]
    torch.testing.assert_close(together.scores, torch.cat([a.scores for a in alone]), atol=2e-3, rtol=1e-3)
    difference = (together.scores.log_softmax(-1) - plain.scores.log_softmax(-1)).nan_to_num(0.0, 1e3, 1e3)
    assert (difference.abs().amax((1, 2)) > 1e-3).all()
    assert not hasattr(case.model, "_sightline_host")


@pytest.mark.parametrize("name", SETUPS)
def test_decoders_are_their_reference(name: str) -> None:
    case, model = shared("llava_gqa"), naive.of(shared("llava_gqa").model)
    inputs, setup = prompts(case, "padded"), SETUPS[name]
    facts = calibration(case, **naive.sections(case))
    with sightline.attach(case.model, {"decoder": setup.config}, calibration=facts, **setup.options):
        answer = generate(case.model, inputs)
    for i, tokens in enumerate(answer.tokens.tolist()):
        expected = setup.reference(model, case.row(inputs, i), tokens[:-1])
        torch.testing.assert_close(answer.scores[i].double(), expected, atol=2e-3, rtol=1e-3)


def test_a_trace_and_scores() -> None:
    case = shared("qwen2_vl")
    inputs = prompts(case, "padded")
    with sightline.attach(case.model, {"methods": [entry("pai")]}, trace=True) as plug:
        answer = generate(case.model, inputs, num_beams=2)
        rows = plug.trace
        scores = sightline.score(case.model, inputs, [[row] for row in answer.tokens.tolist()])
    chance = {(row["row"], row["position"]): row["probability"] for row in rows}
    for i, [score] in enumerate(scores):
        said = torch.tensor([chance[i, t] for t in range(len(score.tokens))]).log()
        torch.testing.assert_close(said, torch.tensor(score.tokens), atol=1e-3, rtol=1e-3)


def test_the_embedded_model() -> None:
    """Its processor and its files load, and an edit acts."""
    from PIL import Image
    from sightline import testbed
    from sightline.models.prompting import encoded, turn

    model, processor = testbed.load(torch.float32, torch.device("cpu"))
    picture = Image.new("RGB", (224, 224), (200, 30, 30))
    inputs = encoded(model, processor, [turn(processor, "Describe the image.", 1)], [[picture]])
    plain = model(**inputs).logits
    with sightline.attach(model, "gift", processor=processor):
        assert not torch.equal(model(**inputs).logits, plain)


def test_a_model_from_a_gguf_file() -> None:
    from sightline.models.loading import load_model
    from sightline.models.naming import SMOLLM2

    model, tokenizer = load_model(SMOLLM2)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with sightline.attach(model, "dola"):
        said = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0])


def test_the_tiny_models_are_called_as_the_release_calls() -> None:
    """The cache of a forward pass goes on under the release's own name, and under the older one."""
    from sightline.plugin.core.compat import CACHE

    case = shared("llava_gqa")
    inputs = prompts(case, "one")
    token, mask = torch.tensor([[50]]), torch.cat([inputs["attention_mask"], torch.ones(1, 1).long()], dim=1)
    answers = []
    for name in (CACHE, "past_key_values"):
        with attach("llava_gqa", "decore"):
            cache = getattr(case.model(**inputs, use_cache=True), CACHE)
            answers.append(case.model(input_ids=token, attention_mask=mask, **{name: cache}).logits)
    assert torch.equal(*answers)
