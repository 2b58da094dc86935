"""The two tasks of the embedded testbed: describe a scene (CHAIR), answer questions about it (POPE)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..public.chair import Chair, Vocabulary, chair
from ..public.pope import Question, build, pope
from ..public.yesno import YesNo
from .run import Request

CAPTION_TOKENS = 60
PAIRS = 2


@dataclass
class CaptionTask:
    """Captions, scored by CHAIR. `images` and `truths` go together; `prompt` is the ready prompt of every row."""

    images: Sequence[Any]
    truths: Sequence[Collection[str]]
    prompt: str
    vocabulary: Vocabulary
    new_tokens: int = CAPTION_TOKENS
    batch: int = 20
    name: str = "chair"

    def requests(self) -> list[Request]:
        """One request per image."""
        return [Request(image, self.prompt) for image in self.images]

    def score(self, replies: Sequence[str]) -> Chair:
        """CHAIR of one caption per image."""
        return chair(replies, self.truths, self.vocabulary)


@dataclass
class QuestionTask:
    """Yes/no questions, scored by POPE; a question that several splits share is asked once.

    `prompts` maps an object name to the ready prompt that asks for it.
    """

    images: Sequence[Any]
    questions: Mapping[str, Sequence[Question]]
    prompts: Mapping[str, str]
    new_tokens: int = 3
    batch: int = 60
    name: str = "pope"
    unique: list[Question] = field(init=False)

    def __post_init__(self) -> None:
        self.unique = list(dict.fromkeys(one for split in self.questions.values() for one in split))

    def requests(self) -> list[Request]:
        """One request per distinct question."""
        return [Request(self.images[one.image], self.prompts[one.name]) for one in self.unique]

    def score(self, replies: Sequence[str]) -> dict[str, YesNo]:
        """POPE of each split, from the replies to the distinct questions."""
        said = dict(zip(self.unique, replies, strict=True))
        return {
            split: pope(asked, [said[one] for one in asked], len(self.images))
            for split, asked in self.questions.items()
        }


def scene_vocabulary() -> Vocabulary:
    """The object names of the embedded testbed's scenes, with their synonyms and plurals."""
    from ... import testbed

    return Vocabulary(testbed.CATEGORIES, testbed.SYNONYMS)


def scene_tasks(
    processor: Any, scenes: Sequence[Any], *, seed: int = 0, pairs: int = PAIRS
) -> tuple[CaptionTask, QuestionTask]:
    """The caption task and the question task of generated scenes, for the embedded model's processor."""
    from ... import testbed

    images = [scene.image for scene in scenes]
    truths = [scene.names for scene in scenes]
    questions = build(truths, testbed.frequency(), testbed.cooccurrence(), pairs=pairs, seed=seed)
    captions = CaptionTask(images, truths, testbed.prompt(processor, testbed.CAPTION_PROMPT), scene_vocabulary())
    prompts = {name: testbed.prompt(processor, testbed.QUESTION.format(name)) for name in testbed.frequency()}
    return captions, QuestionTask(images, questions, prompts)
