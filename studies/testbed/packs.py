"""Many question-answer pairs about one picture in one sequence, at little more than the price of one.

A pack is the start of a chat, ``<s> USER: [image]``, and then branches. A branch sees the shared start and itself only, as if it had been
asked alone; a follow-up branch also sees the caption before it. Positions restart after what a branch can see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

import numpy as np
from sightline.testbed.data import TOKENS, draw_batch, stream
from sightline.testbed.kinds import KINDS, plural
from sightline.testbed.model import SPECIAL, build_tokenizer
from sightline.testbed.scenes import scene_key
from sightline.testbed.sprites import CATEGORIES
from sightline.testbed.text import CAPTION_PROMPT, CAPTION_PROMPTS, COUNT_WORDS, caption, count_question, question

OBJECT_WEIGHT = 3.0
Weigh = Callable[[list[int]], list[float]]  # the tokens of an answer -> how much each weighs as a target


@dataclass(frozen=True)
class Dialect:
    """How one model's chats are written in tokens.

    `encode` gives the tokens of a text that follows another, `decode` the text of one. `opening` comes before everything, `before_image`
    before the first `image` token; `end` closes an answer; `turn` writes a question up to its answer, `later` one that follows an answer.
    `closes`: a later turn does not see the `end` before it, but comes where it was.
    """

    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[int], str]
    opening: tuple[int, ...]
    before_image: tuple[int, ...]
    image: int
    end: int
    turn: Callable[[str], tuple[int, ...]]
    later: Callable[[str], tuple[int, ...]]
    closes: bool
    objects: frozenset[int]  # tokens that name objects


def object_tokens(encode: Callable[[str], tuple[int, ...]], before: str = "") -> frozenset[int]:
    """Tokens that name objects; in captions they carry what is seen, so they weigh more than the words around them."""
    names = (form for name in CATEGORIES for form in (name, plural(name)))
    return frozenset(token for form in names for token in encode(before + form))


@lru_cache(maxsize=1)
def testbed() -> Dialect:
    """The chats of the 5 M model: "<s> USER: <image> question ASSISTANT: answer</s>"."""
    core = build_tokenizer().backend_tokenizer
    bos, end, image = (SPECIAL.index(token) for token in ("<s>", "</s>", "<image>"))

    @lru_cache(maxsize=65_536)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(core.encode(text, add_special_tokens=False).ids)

    def turn(prompt: str) -> tuple[int, ...]:
        return (*encode(prompt), *encode("ASSISTANT:"))

    return Dialect(
        encode=encode,
        decode=lambda token: core.decode([token]).strip(),
        opening=(bos, *encode("USER:")),
        before_image=encode(" ")[-1:],
        image=image,
        end=end,
        turn=turn,
        later=lambda prompt: (*encode("USER:"), *turn(prompt)),
        closes=True,
        objects=object_tokens(encode),
    )


@dataclass
class Pack:
    """Flat arrays of one sequence: ids, positions, branch and parent of each token, and its weight as a target.

    `closing` marks tokens that a later turn does not see; the image begins at `image` (None: no image). `instead` has, for
    a token of an answer, others that were as right in its place.
    """

    dialect: Dialect
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    closing: list[bool] = field(default_factory=list)
    instead: dict[int, list[int]] = field(default_factory=dict)
    image: int | None = None
    _ends: dict[int, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, dialect: Dialect, image: bool) -> Pack:
        """The shared start, with or without the place for an image."""
        pack = cls(dialect)
        ids = list(dialect.opening)
        if image:
            ids += dialect.before_image
            pack.image = len(ids)
            ids += [dialect.image] * TOKENS
        pack.extend(ids, 0, 0, 0, [0.0] * len(ids))
        pack._ends[0] = len(ids)
        return pack

    def ask(
        self, prompt: str, answer: str, weigh: Weigh, *, after: int = 0, instead: Mapping[int, list[int]] | None = None
    ) -> int:
        """Add a branch; `after` names the caption it follows (0: asked alone), `instead` counts from the answer on."""
        own = max(self.branch) + 1
        asked = list((self.dialect.later if after else self.dialect.turn)(prompt))
        said = [*self.dialect.encode(answer), self.dialect.end]
        start = self._ends[after]
        self.instead |= {len(self.ids) + len(asked) + place: others for place, others in (instead or {}).items()}
        self.extend([*asked, *said], start, own, after, [0.0] * len(asked) + weigh(said))
        if self.dialect.closes:
            self.closing[-1] = True
        self._ends[own] = start + len(asked) + len(said) - self.dialect.closes
        return own

    def extend(self, ids: list[int], start: int, branch: int, parent: int, weight: list[float]) -> None:
        """Add tokens of a branch at positions from `start` on."""
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.branch += [branch] * len(ids)
        self.parent += [parent] * len(ids)
        self.weight += weight
        self.closing += [False] * len(ids)


def collate(packs: list[Pack], hidden: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Pad packs to one length and say who sees whom.

    Returns ids and positions (B, T), seen (B, 1, T, T) bool, targets: weight (B, T) of predicting the next token, and
    image: where it begins in every pack that has one. Packs with an image come first. Where tokens have others in their
    place, also instead (B, T, K), padded with -1. `hidden` (B, 64) marks image tokens that nobody may look
    at.
    """
    width = -(-max(len(pack.ids) for pack in packs) // 8) * 8
    ids, positions, branch, parent = (np.zeros((len(packs), width), dtype=np.int64) for _ in range(4))
    weight = np.zeros((len(packs), width), dtype=np.float32)
    closing = np.zeros((len(packs), width), dtype=bool)
    branch -= 1  # padding belongs to no branch
    for row, pack in enumerate(packs):
        n = len(pack.ids)
        ids[row, :n], positions[row, :n], closing[row, :n] = pack.ids, pack.positions, pack.closing
        branch[row, :n], parent[row, :n], weight[row, :n] = pack.branch, pack.parent, pack.weight
    same = branch[:, :, None] == branch[:, None, :]
    start = (branch == 0)[:, None, :]
    follows = (parent[:, :, None] == branch[:, None, :]) & ~closing[:, None, :]
    seen = (same | start | follows) & np.tri(width, dtype=bool)
    if hidden is not None:
        for row, pack in enumerate(packs):
            if pack.image is not None:
                after = pack.image + TOKENS
                seen[row, after:, pack.image : after] &= ~hidden[row]
    # Weights move one to the left: position t carries the weight of predicting token t + 1 of its own branch.
    batch = {"ids": ids, "positions": positions, "seen": seen[:, None], "weight": np.roll(weight, -1, axis=1)}
    if packs[0].image is not None:
        batch["image"] = np.array(packs[0].image)
    if any(pack.instead for pack in packs):
        most = max(len(others) for pack in packs for others in pack.instead.values())
        instead = np.full((*ids.shape, most), -1)
        for row, pack in enumerate(packs):
            for place, others in pack.instead.items():
                instead[row, place, : len(others)] = others
        batch["instead"] = np.roll(instead, -1, axis=1)
    return batch


def telling(word: float = 1.0, tail: float = 1.0) -> Weigh:
    """Weights of the 5 M model's answers: objects `OBJECT_WEIGHT`, other words `word`, the last two tokens `tail`."""

    def weigh(said: list[int]) -> list[float]:
        objects = testbed().objects
        return [OBJECT_WEIGHT if token in objects else word for token in said[:-2]] + [tail] * 2

    return weigh


def text_pack(rng: np.random.Generator, captions: int = 4) -> Pack:
    """Descriptions without any picture: 4 to 8 objects that the scene type expects, in proportion to its weights."""
    pack = Pack.begin(testbed(), image=False)
    kinds = list(KINDS)
    for _ in range(captions):
        kind = kinds[int(rng.integers(len(kinds)))]
        names, weights = list(KINDS[kind].expected), np.array(list(KINDS[kind].expected.values()))
        race = np.argsort(rng.standard_exponential(len(names)) / weights)
        number = int(rng.integers(4, 9))
        counts = {names[i]: 1 + int(rng.random() < 0.15) for i in race[:number]}
        prompt = CAPTION_PROMPTS[int(rng.integers(len(CAPTION_PROMPTS)))]
        pack.ask(prompt, caption(kind, counts, rng), telling())
    return pack


def counted(objects: list[tuple[str, float]], rng: np.random.Generator) -> dict[str, int]:
    """How many of each object there are, the objects by falling salience, a little shuffled."""
    salience: dict[str, float] = {}
    number: dict[str, int] = {}
    for name, value in objects:
        salience[name] = max(value, salience.get(name, 0.0))
        number[name] = number.get(name, 0) + 1
    noisy = {name: np.log(value + 1) + 0.2 * rng.standard_normal() for name, value in salience.items()}
    return {name: number[name] for name in sorted(noisy, key=lambda name: -noisy[name])}


def image_pack(
    kind: str,
    objects: list[tuple[str, float]],
    rng: np.random.Generator,
    questions: int = 6,
    tempting: float = 0.0,
) -> Pack:
    """A caption, four questions asked alone, two after the caption and a count, all about one scene.

    Objects come by falling salience, a little shuffled. A share `tempting` of the questions about absent objects asks
    for one that the scene type expects.
    """
    counts = counted(objects, rng)
    order = list(counts)
    pack = Pack.begin(testbed(), image=True)
    asked = CAPTION_PROMPT if rng.random() < 0.5 else CAPTION_PROMPTS[int(rng.integers(len(CAPTION_PROMPTS)))]
    told = pack.ask(asked, caption(kind, counts, rng), telling())
    absent = [name for name in CATEGORIES if name not in counts]
    expected = [name for name in KINDS[kind].expected if name not in counts]
    for i in range(questions):
        after = told if i >= questions - 2 else 0
        if i % 2:
            name, answer = order[int(rng.integers(len(order)))], "Yes."
        else:
            pool = expected if expected and rng.random() < tempting else absent
            name, answer = pool[int(rng.integers(len(pool)))], "No."
        pack.ask(question(name, rng), answer, telling(tail=0.1), after=after)
    name = order[int(rng.integers(len(order)))] if rng.random() < 0.8 else absent[int(rng.integers(len(absent)))]
    said = COUNT_WORDS[min(counts.get(name, 0), 9)].capitalize() + "."
    pack.ask(count_question(name), said, telling(word=0.5, tail=0.1))
    return pack


def draw_packs(job: tuple[str, int, int, int, float, float]) -> dict[str, np.ndarray]:
    """Scenes and their packs for one step; a share of up to `blind` of each picture's patches is hidden."""
    split, start, size, seed, blind, tempting = job
    drawn = draw_batch((split, start, size, seed))
    rng = np.random.default_rng([scene_key(split, start, seed), 1])
    packs = [image_pack(kind, objects, rng, tempting=tempting) for kind, objects in drawn["scenes"]]
    hidden = rng.random((size, TOKENS)) < blind * rng.random((size, 1))
    return {"pixels": drawn["pixels"], **collate(packs, hidden)}


def draw_text(job: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Text-only packs for one step."""
    step, size, seed = job
    rng = np.random.default_rng([seed, step, 2])
    return collate([text_pack(rng) for _ in range(size)])


def text_batches(start: int, batch: int, seed: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Text-only batches from step `start` on."""
    return stream(draw_text, ((step, batch, seed) for step in count(start)), workers)


def image_batches(
    start: int,
    batch: int,
    seed: int,
    workers: int,
    *,
    offset: int,
    blind: float,
    tempting: float = 0.0,
) -> Iterator[dict[str, np.ndarray]]:
    """Picture batches from step `start` on, from training scenes `offset` onwards (unseen by the tower)."""
    jobs = (("train", offset + step * batch, batch, seed, blind, tempting) for step in count(start))
    return stream(draw_packs, jobs, workers)
