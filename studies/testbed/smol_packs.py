"""What `embedded-smol` learns from: SmolLM2's chats in packs, more wordings than the 5 M model's, refusals, old talk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sightline.testbed.data import draw_batch, stream
from sightline.testbed.kinds import KINDS, article, plural
from sightline.testbed.scenes import UNEXPECTED, scene_key
from sightline.testbed.smol import END
from sightline.testbed.sprites import CATEGORIES
from sightline.testbed.text import CAPTION_PROMPT, CAPTION_PROMPTS, COUNT_WORDS, count_question, listing, quantity

from .packs import OBJECT_WEIGHT, Dialect, Pack, Weigh, collate, counted, object_tokens

TOKENIZER, MEMORY = "tokenizer.json", "memory.json"  # what a run's folder holds for the processes that draw
PROMPTS = (
    *CAPTION_PROMPTS,
    "What does the image show?",
    "Tell me what you see.",
    "Write a caption for this picture.",
    "Can you describe the scene?",
    "Describe the picture in one or two sentences.",
)
LISTS = ("List the objects in the image.", "Which objects are in the picture?", "Name the objects that you can see.")
OPENINGS = (
    *("The image shows {scene} with {things}.",) * 3,
    "This is a picture of {scene} with {things}.",
    "In this image of {scene} you can see {things}.",
    "The picture shows {scene} with {things}.",
    "The scene is {scene} with {things}.",
    "This image features {scene} with {things}.",
    "The image depicts {scene}, where {things} can be seen.",
    "We see {scene} with {things}.",
    "The photo shows {scene}. It has {things}.",
)
MIDDLES = (
    *(" There is also {things}.",) * 2,
    " You can also see {things}.",
    " The image also contains {things}.",
    " Besides, there is {things}.",
    " {Things} can be seen too.",
    " It also shows {things}.",
)
ENDINGS = (
    *MIDDLES,
    " In the background there is {things}.",
    " Further back there is {things}.",
    " A little harder to make out is {things}.",
    " Finally, there is {things}.",
)
QUESTIONS = (
    *("Is there {} in the image?",) * 3,
    "Is there {} in the picture?",
    "Can you see {} in this image?",
    "Is there {} in the image? Please answer yes or no.",
    "Do you see {} in the picture?",
    "Does the image show {}?",
    "Is there {} in this photo? Answer yes or no.",
)
T = TypeVar("T")


@lru_cache(maxsize=4)
def saved(folder: Path) -> Dialect:
    """`smollm2` with the tokenizer that a run's folder holds."""
    from tokenizers import Tokenizer

    return smollm2(Tokenizer.from_file(str(folder / TOKENIZER)))


def smollm2(core: Any) -> Dialect:
    """SmolLM2's chats with `embedded-smol`'s tokenizer (the bare one of `tokenizers`); a picture comes first."""

    @lru_cache(maxsize=65_536)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(core.encode(text, add_special_tokens=False).ids)

    answer = f"{END}\n<|im_start|>assistant\n"
    return Dialect(
        encode=encode,
        decode=lambda token: core.decode([token]).strip(),
        opening=encode("<|im_start|>user\n"),
        before_image=(),
        image=core.token_to_id("<image>"),
        end=core.token_to_id(END),
        turn=lambda prompt: encode(f"\n{prompt}{answer}"),
        later=lambda prompt: encode(f"\n<|im_start|>user\n{prompt}{answer}"),
        closes=False,
        objects=object_tokens(encode, before=" "),
    )


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def caption(kind: str, counts: dict[str, int], rng: np.random.Generator) -> str:
    """A description of objects in the order they should be named, in one to four sentences."""
    parts = [quantity(name, min(number, 9)) for name, number in counts.items()]
    n = len(parts)
    if n == 1 or (n <= 3 and rng.random() < 0.2):
        cuts = [n]
    elif n >= 4 and rng.random() < 0.35:
        cuts = [n // 2, n // 2 + (n - n // 2) // 2, n]
    else:
        cuts = [(n + 1) // 2, n]
    groups = [listing(parts[start:stop]) for start, stop in zip([0, *cuts], cuts, strict=False)]
    text = pick(rng, OPENINGS).format(scene=KINDS[kind].phrase, things=groups[0])
    for index, group in enumerate(groups[1:], 2):
        wordings = ENDINGS if index == len(groups) else MIDDLES
        text += pick(rng, wordings).format(things=group, Things=group[0].upper() + group[1:])
    return text


def yes_no(name: str, present: bool, rng: np.random.Generator) -> tuple[str, str]:
    """A question about an object and its true answer, short or in a sentence: "No, there is no dog in the image."."""
    asked = pick(rng, QUESTIONS).format(article(name))
    if asked.endswith("no.") or rng.random() < 0.65:
        return asked, "Yes." if present else "No."
    place = pick(rng, ("image", "image", "picture"))
    if present:
        return asked, f"Yes, there is {article(name)} in the {place}."
    refusal = f"No, there {'are' if name == 'scissors' else 'is'} no {name} in the {place}."
    return asked, pick(rng, (refusal, refusal, f"No, I cannot see {article(name)}."))


def _telling(dialect: Dialect, rng: np.random.Generator) -> Weigh:
    """Objects weigh three times; of the words around them, which are soon known, 40 % are targets at all."""
    return lambda said: [OBJECT_WEIGHT if t in dialect.objects else float(rng.random() < 0.4) for t in said]


def _deciding(rng: np.random.Generator, share: float = 0.25, first: float = 6.0) -> Weigh:
    """The first word decides; of the others a share are targets."""
    return lambda said: [first, *(float(rng.random() < share) for _ in said[1:])]


def slots(dialect: Dialect, answer: str, counts: dict[str, int]) -> dict[int, list[int]]:
    """Where an answer names its objects -> the first tokens of all not yet named that fit after the same words.

    An image does not say in which order its objects are to be named: every one that is left would be right.
    """
    said = list(dialect.encode(answer))
    names = [name for name in counts if name != "scissors"]  # "a pair of" fits nothing else
    forms = {name: list(dialect.encode(f" {plural(name) if counts[name] > 1 else name}")) for name in names}
    before = {name: quantity(name, min(counts[name], 9)).split()[0] for name in names}
    found: dict[int, list[int]] = {}
    at = 0
    for index, name in enumerate(names):
        width = len(forms[name])
        while at < len(said) and said[at : at + width] != forms[name]:
            at += 1
        if at == len(said):
            break
        found[at] = sorted({forms[other][0] for other in names[index:] if before[other] == before[name]})
        at += width
    return found


def image_pack(
    dialect: Dialect, kind: str, objects: list[tuple[str, float]], rng: np.random.Generator, *, asks: bool = True
) -> Pack:
    """A caption, often a bare list, three questions alone, often one after the caption, sometimes a count.

    Objects come by falling salience, a little shuffled. Half of the questions about absent objects ask for one that the
    scene type expects. Without `asks`: a caption and a list, no question.
    """
    counts = counted(objects, rng)
    order = list(counts)
    pack = Pack.begin(dialect, image=True)
    asked = CAPTION_PROMPT if rng.random() < 0.4 else pick(rng, PROMPTS)
    said = caption(kind, counts, rng)
    told = pack.ask(asked, said, _telling(dialect, rng), instead=slots(dialect, said, counts))
    if rng.random() < 0.8 or not asks:
        said = listing([quantity(name, min(n, 9)) for name, n in counts.items()])
        said = f"{said[0].upper()}{said[1:]}."
        pack.ask(pick(rng, LISTS), said, _telling(dialect, rng), instead=slots(dialect, said, counts))
    if not asks:
        return pack
    absent = [name for name in CATEGORIES if name not in counts]
    expected = [name for name in KINDS[kind].expected if name not in counts]
    flip = int(rng.random() < 0.5)
    for i in range(4 if rng.random() < 0.5 else 3):
        present = bool((i + flip) % 2)
        others = expected if expected and rng.random() < 0.5 else absent
        asked, answer = yes_no(pick(rng, order if present else others), present, rng)
        pack.ask(asked, answer, _deciding(rng), after=told if i == 3 else 0)
    if rng.random() < 0.15:
        name = pick(rng, order if rng.random() < 0.8 else absent)
        said = COUNT_WORDS[min(counts.get(name, 0), 9)].capitalize() + "."
        pack.ask(count_question(name), said, _deciding(rng, share=0.0, first=1.0))
    return pack


def text_pack(dialect: Dialect, rng: np.random.Generator, captions: int = 3) -> Pack:
    """Descriptions without any picture: 4 to 8 objects that the scene type expects, in proportion to its weights."""
    pack = Pack.begin(dialect, image=False)
    for _ in range(captions):
        kind = pick(rng, list(KINDS))
        names, weights = list(KINDS[kind].expected), np.array(list(KINDS[kind].expected.values()))
        race = np.argsort(rng.standard_exponential(len(names)) / weights)
        counts = {names[i]: 1 + int(rng.random() < 0.15) for i in race[: int(rng.integers(4, 9))]}
        said = caption(kind, counts, rng)
        pack.ask(pick(rng, PROMPTS), said, lambda said: [float(rng.random() < 0.5) for _ in said])
    return pack


@lru_cache(maxsize=4)
def _memory(folder: Path) -> list[tuple[list[int], int]]:
    return [(ids, asked) for ids, asked in json.loads((folder / MEMORY).read_text())]


def memory_pack(dialect: Dialect, folder: Path, rng: np.random.Generator, width: int = 200) -> Pack:
    """What the language model said before it could see, to keep it: chats side by side, nothing shared."""
    pack = Pack(dialect)
    told = _memory(folder)
    for branch, index in enumerate(rng.permutation(len(told)), 1):
        ids, asked = told[index]
        if pack.ids and len(pack.ids) + len(ids) > width:
            break
        pack.extend(list(ids), 0, branch, branch, [0.0] * asked + [0.5] * (len(ids) - asked))
        if len(pack.ids) > 0.7 * width:
            break
    return pack


def draw_packs(job: tuple[str, int, int, int, int, float | None]) -> dict[str, np.ndarray]:
    """Scenes and their packs for one step; every other step also has a pack without a picture, of the two by turns.

    `unexpected`: draw every other step's scenes with that share of unexpected objects (the steps that have a pack without
    a picture, too), and ask in every third step only; None: the usual share, questions in every step.
    """
    name, step, start, size, seed, unexpected = job
    folder = Path(name)
    dialect = saved(folder)
    share = UNEXPECTED if unexpected is None or step % 2 == 0 else unexpected
    drawn = draw_batch(("train", start, size, seed), share)
    rng = np.random.default_rng([scene_key("train", start, seed), 1])
    asks = unexpected is None or step % 3 == 1
    packs = [image_pack(dialect, kind, objects, rng, asks=asks) for kind, objects in drawn["scenes"]]
    if step % 4 == 1:
        packs.append(text_pack(dialect, rng))
    elif step % 4 == 3:
        packs.append(memory_pack(dialect, folder, rng))
    return {"pixels": drawn["pixels"], **collate(packs)}


def batches(
    start: int, folder: Path, batch: int, seed: int, workers: int, *, offset: int, unexpected: float | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches from step `start` on, from training scenes `offset` onwards; see `draw_packs` for `unexpected`."""
    jobs = ((str(folder), step, offset + step * batch, batch, seed, unexpected) for step in count(start))
    return stream(draw_packs, jobs, workers, ahead=3)
