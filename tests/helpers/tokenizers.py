"""Small tokenizers, trained on the spot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import tokenizers
import transformers as tf
from sightline.profiling.data import facts, texts
from sightline.profiling.data.needles import NEEDLES


def _corpus() -> list[str]:
    return [*itertools.islice(texts.sentences(5), 60), *(n.text + " " + n.question for n in NEEDLES), *_statements()]


def _statements() -> Iterator[str]:
    for fact in facts.facts():
        yield f"Context: {fact.opening} {fact.true}. {fact.opening} {fact.other}. Question: {fact.question}"


def _pieces() -> Any:
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=420, initial_alphabet=letters, show_progress=False)
    core.train_from_iterator(_corpus(), trainer)
    return tf.PreTrainedTokenizerFast(tokenizer_object=core)
