"""False-premise questions: what they take for granted, and what a reply to them is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tokenizers
import torch
import transformers as tf
from sightline.profiling.data.conflicts import SPLITS, facts, normalise, says
from sightline.profiling.data.premises import SKIPPED, Premise, cloze_verdict, of, open_verdict, premises

from studies import language

EVERY = [premise for split in SPLITS for premise in premises(split)]


def named(name: str) -> Premise:
    return next(premise for premise in EVERY if premise.fact.name == name)


def test_the_sets_are_as_large_as_promised_and_follow_the_facts_splits() -> None:
    assert len(premises("test")) >= 200
    assert len(EVERY) >= 300
    for split in SPLITS:
        wanted = [fact.name for fact in facts(split) if fact.relation not in SKIPPED]
        assert [premise.fact.name for premise in premises(split)] == wanted
    assert all((of(fact) is None) == (fact.relation in SKIPPED) for split in SPLITS for fact in facts(split))


def test_a_question_ends_with_the_false_object_and_never_tells_the_true_one() -> None:
    assert len({premise.question for premise in EVERY}) == len(EVERY)
    assert len({premise.question.split()[0] for premise in EVERY}) == 4
    for premise in EVERY:
        assert premise.question.endswith(f" {premise.span}?"), premise
        assert premise.question.count("?") == 1
        shown = f" {normalise(premise.question)} ".replace(f" {normalise(premise.fact.subject)} ", " ")
        assert not any(f" {normalise(spelling)} " in shown for spelling in premise.true), premise
        assert not any(says(spelling, premise.true) for spelling in premise.false)
        assert premise.cloze.opening.endswith(premise.fact.opening[1:])
        assert premise.cloze.emphasised == premise.open.emphasised == (premise.span,)


def test_the_draws_are_the_same_everywhere() -> None:
    """Spelled out, so that neither the hash seed of a process nor a change of the draws goes unnoticed."""
    france = named("capital/France")
    assert france.question == "Who was the first to notice that the capital of France is Moscow?"
    assert france.cloze.opening == "According to my knowledge, the capital of France is"


@pytest.mark.parametrize(
    ("reply", "says_it"),
    [(" Paris.", "true"), (" the City of Paris", "neither"), (" {}, of course", "false"), ("", "neither")],
)
def test_the_completed_sentence_says_exactly_one_thing(reply: str, says_it: str) -> None:
    france = named("capital/France")
    verdict = cloze_verdict(reply.format(france.span), france)
    assert [name for name, flag in verdict.items() if flag] == [says_it]


@pytest.mark.parametrize(
    ("reply", "stands", "true"),
    [
        ("The capital of France is Paris, not {}.", "corrects", True),
        ("Because the kings lived in Paris.", "corrects", True),
        ("{} is not the capital of France.", "corrects", False),
        ("That isn't so.", "corrects", False),
        ("This is a common misconception about {}.", "corrects", False),
        ("Actually, I have to disagree.", "corrects", False),
        ("The capital of France is {} because of its history.", "affirms", False),
        ("Since the year 1200.", "neither", False),
        ("I know little of that; nobody noticed.", "neither", False),
        ("", "neither", False),
    ],
)
def test_a_free_reply_corrects_or_affirms_or_neither(reply: str, stands: str, true: bool) -> None:
    france = named("capital/France")
    verdict = open_verdict(reply.format(france.span), france)
    assert verdict.pop("true") is true
    assert [name for name, flag in verdict.items() if flag] == [stands]


def test_the_subject_is_no_answer() -> None:
    mexico = named("capital/Mexico")
    assert mexico.true[0] == "Mexico City"
    other = Premise(replace(mexico.fact, true=("Mexico",)), mexico.question)
    assert not open_verdict(f"The capital of Mexico is {mexico.span}.", other)["true"]
    assert open_verdict("The capital of Mexico is Mexico City.", mexico)["true"]


def test_the_emphasised_tokens_are_those_of_the_false_object() -> None:
    """In a left-padded batch, with the tokenizer's own offsets as the reference."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>"], initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator([premise.question for premise in EVERY], trainer)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", padding_side="left")
    chosen = [named("capital/France"), named("capital/Mexico"), EVERY[40]]
    texts = [f"You: {premise.question} Me: {premise.cloze.opening}" for premise in chosen]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    marked = language._emphasis(tokenizer, [premise.cloze for premise in chosen])(inputs["input_ids"])
    for row, (premise, text) in enumerate(zip(chosen, texts, strict=True)):
        stop = text.index("?")
        start = stop - len(premise.span)
        pieces = inputs["offset_mapping"][row].tolist()
        wanted = [first < stop and last > start and last > first for first, last in pieces]
        assert marked[row].tolist() == wanted
        assert torch.count_nonzero(marked[row]) > 0
