"""A copy that reads the prompt without its picture, on types that are told more of each token than its id."""

from __future__ import annotations

import pytest
import sightline
import torch

from tests.zoo import pictures
from tests.zoo.prove import Subject, differ

GAMMA = 1.5


@torch.no_grad()
@pytest.mark.parametrize("name", ["ernie4_5_vl_moe", "gemma3"])
def test_a_copy_without_the_picture_is_told_of_its_own_tokens(name: str) -> None:
    """PAI's guidance against two plain passes: the first token's scores."""
    subject = Subject("image", name)
    inputs = pictures.prompt(subject.model, name)
    with sightline.attach(
        subject.model, {"decoder": {"pai_guidance": {"gamma": GAMMA, "beta": 0.0}}}, check=False
    ) as plug:
        ours = subject.answer(inputs, subject.model)[:, :1]
        assert plug.report()["pai_guidance"]["acted"]
    text = inputs["input_ids"][inputs["input_ids"] != pictures.IMAGE][None]
    base = subject.model(**inputs).logits[:, -1:].log_softmax(-1)
    weak = subject.model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -1:].log_softmax(-1)
    wrong = differ(ours.log_softmax(-1), (GAMMA * (base - weak) + weak).log_softmax(-1))
    assert wrong is None, wrong


def test_what_a_model_calls_impossible_stays_so() -> None:
    """Chameleon gives its picture codes the least number there is, of which no multiple can be taken."""
    subject = Subject("image", "chameleon")
    subject.take_host()
    inputs = pictures.prompt(subject.model, "chameleon")
    never = subject.answer(inputs, subject.model)[:, 0] < -1e30
    with sightline.attach(subject.model, {"decoder": {"decore": {"head_list": [[subject.layers[-1], 1]]}}}):
        scores = subject.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        ).scores[0]
    assert never.any()
    assert torch.equal(scores == -torch.inf, never)
