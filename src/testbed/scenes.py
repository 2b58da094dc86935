"""Generated scenes with exact ground truth: which objects, where, and how much of each can be seen.

A scene is a function of (split, index, seed) alone. Each split has its own range of generator keys, so that no two
splits can share one. Half of a scene's objects are *clear* (large, solid); the others are *hard* (small, faint or
partly covered): that is where a language prior has something to win or lose.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .kinds import KINDS, SYNONYMS_EXTRA, plural
from .sprites import CATEGORIES, sprite

SIZE = 96  # pixels a side
SPLITS = {"train": 0, "calibration": 1, "test": 2}
_INDEX_BITS = 40

_OBJECT_COUNTS = np.array([3, 4, 5, 6, 7])
_OBJECT_COUNT_CDF = np.cumsum([0.12, 0.25, 0.30, 0.21, 0.12])
UNEXPECTED = 0.2  # share of a scene's objects that its type does not expect
_MIN_VISIBLE = 0.35  # an object is never covered beyond this
_OPAQUE = 0.35  # sprite alpha from which a pixel counts as the object's


def _synonyms() -> dict[str, str]:
    forms: dict[str, str] = {}
    for name in CATEGORIES:
        for form in (name, *SYNONYMS_EXTRA.get(name, ())):
            forms.setdefault(form, name)
            forms.setdefault(plural(form), name)
    return forms


#: Every surface form (singular, plural, synonym) -> canonical object name.
SYNONYMS: dict[str, str] = _synonyms()

_INDEX = {name: index for index, name in enumerate(CATEGORIES)}
_KIND_NAMES = tuple(KINDS)
_KIND_OBJECTS = {
    kind: (
        np.array([_INDEX[name] for name in spec.expected]),
        np.array(list(spec.expected.values()), dtype=np.float64),
        np.array([i for i, name in enumerate(CATEGORIES) if name not in spec.expected]),
    )
    for kind, spec in KINDS.items()
}


@dataclass(frozen=True)
class SceneObject:
    """One object in the picture: its box in pixels, the share of it that can be seen, and how clear it is.

    `salience` is visible pixels times opacity; captions name objects by falling salience.
    """

    name: str
    box: tuple[int, int, int, int]
    visible: float
    opacity: float
    salience: float


@dataclass(frozen=True)
class Scene:
    """A generated picture and its ground truth; objects are sorted by falling salience."""

    image: Image.Image = field(compare=False, repr=False)
    objects: tuple[SceneObject, ...]
    kind: str
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    index: int
    split: str
    seed: int = 0

    @property
    def names(self) -> frozenset[str]:
        """Canonical names of the objects in the picture."""
        return frozenset(item.name for item in self.objects)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each object, in order of falling salience."""
        return dict(Counter(item.name for item in self.objects))


@dataclass(frozen=True)
class Rendered:
    """Arrays behind a `Scene`: pixels (96, 96, 3) uint8 and owner (96, 96) int8, the category of each pixel or -1."""

    pixels: np.ndarray
    owner: np.ndarray
    objects: tuple[SceneObject, ...]
    kind: str
    background: tuple[tuple[int, int, int], tuple[int, int, int]]


def scene_key(split: str, index: int, seed: int = 0) -> int:
    """The generator key of a scene: one-to-one in (split, index, seed), hence disjoint between splits."""
    if not 0 <= index < 1 << _INDEX_BITS or seed < 0:
        raise ValueError(f"index must be in [0, 2**{_INDEX_BITS}) and seed must not be negative")
    return (seed * len(SPLITS) + SPLITS[split]) << _INDEX_BITS | index


def _contents(rng: np.random.Generator, unexpected: float = UNEXPECTED) -> tuple[str, list[tuple[int, int]]]:
    """Draw a scene type and its objects: [(category, how many)], without drawing pixels."""
    kind = _KIND_NAMES[int(rng.integers(len(_KIND_NAMES)))]
    expected, weights, others = _KIND_OBJECTS[kind]
    draws = rng.random(16)
    total = int(_OBJECT_COUNTS[np.searchsorted(_OBJECT_COUNT_CDF, draws[0] * 0.9999)])
    surprises = int((draws[1 : 1 + total] < unexpected).sum())
    # Exponential races draw without replacement in proportion to the weights, in one call.
    race = rng.standard_exponential(len(expected)) / weights
    chosen = [*expected[np.argsort(race)[: total - surprises]]]
    chosen += [others[i] for i in {int(rng.integers(len(others))) for _ in range(surprises)}]
    order = rng.permutation(len(chosen))
    return kind, [(int(chosen[i]), 1 + int(u > 0.82) + int(u > 0.95)) for i, u in zip(order, draws[8:], strict=False)]


def contents(split: str, index: int, seed: int = 0) -> tuple[str, tuple[str, ...]]:
    """Scene type and object names a scene is drawn from; cheap, and the drawn scene shows nearly all of them."""
    kind, items = _contents(np.random.default_rng(scene_key(split, index, seed)))
    return kind, tuple(CATEGORIES[category] for category, _ in items)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((256, 256, 3)).astype(np.float32)


def _background(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Two graded planes that meet at a horizon, strewn with shapes that are no object of the list."""
    spec = KINDS[kind]
    jitter = rng.integers(-28, 29, (2, 3))
    above, below = (tuple(int(v) for v in np.clip(c, 20, 245)) for c in np.array([spec.above, spec.below]) + jitter)
    image = Image.new("RGB", (SIZE, SIZE), above)
    draw = ImageDraw.Draw(image)
    horizon = int(rng.integers(30, 62))
    draw.rectangle((0, horizon, SIZE, SIZE), fill=below)
    for _ in range(int(rng.integers(3, 9))):
        x, y, w, h, shape, *tint = (int(v) for v in rng.integers(0, 96, 8))
        base = above if y < horizon else below
        colour = tuple(max(0, min(255, b + t - 48)) for b, t in zip(base, tint, strict=True))
        box = (x - 8, y - 8, x + w // 3, y + h // 3)
        if shape < 32:
            draw.ellipse(box, fill=colour)
        elif shape < 64:
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon(((box[0], box[3]), (box[2], box[3]), ((x + w // 5), box[1])), fill=colour)
    pixels = np.asarray(image, dtype=np.float32)
    shade = np.linspace(rng.uniform(-18, 18), rng.uniform(-18, 18), SIZE, dtype=np.float32)
    return pixels + shade[:, None, None], (above, below)


def render(split: str, index: int, seed: int = 0, unexpected: float = UNEXPECTED) -> Rendered:
    """Draw one scene; see `Rendered`. `unexpected`: the share of its objects that its type does not expect."""
    rng = np.random.default_rng(scene_key(split, index, seed))
    kind, items = _contents(rng, unexpected)
    canvas, background = _background(kind, rng)
    holder = np.full((SIZE, SIZE), -1, dtype=np.int16)  # which placed instance shows at each pixel
    placed: list[list] = []  # [category, box, own pixels, opacity]
    shown = np.zeros(32, dtype=np.int64)  # pixels of each placed instance that still show
    clear = (len(items) + 1) // 2
    jobs = [(category, rank < clear) for rank, (category, count) in enumerate(items) for _ in range(count)]
    # Mostly large things first and small ones on top; some draws swap, so that small things get covered too.
    jobs = [
        job for job, _ in sorted(zip(jobs, rng.random(len(jobs)), strict=True), key=lambda t: -t[0][1] - 1.6 * t[1])
    ]
    for category, is_clear in jobs:
        u = rng.random(8)
        size = 2 * (int(12 + u[0] * 8) if is_clear else int(5 + u[0] * 6))
        opacity = 0.85 + 0.15 * u[1] if is_clear else 0.38 + 0.55 * u[1]
        colour, alpha = sprite(category, size, 9 * (int(5 * u[2]) - 2), bool(u[3] < 0.5))
        height, width = alpha.shape[:2]
        solid = alpha[..., 0] > _OPAQUE
        own = int(solid.sum())
        spots = rng.random((6, 2))
        for v, w in spots:
            top, left = int(v * (SIZE - height + 1)), int(w * (SIZE - width + 1))
            view = holder[top : top + height, left : left + width]
            covered = np.bincount(view[solid] + 1, minlength=len(shown) + 1)[1:]
            left_over = shown - covered
            if all(left_over[k] >= _MIN_VISIBLE * placed[k][2] for k in np.nonzero(covered)[0]):
                break
        else:
            continue  # no room: the thing is not in the scene, and not in its ground truth
        shown = left_over
        patch = canvas[top : top + height, left : left + width]
        tone = (colour - 128) * (0.7 + 0.4 * u[4]) + 128 + 40 * (u[5] - 0.5)
        patch += (tone - patch) * (alpha * np.float32(opacity))
        view[solid] = len(placed)
        shown[len(placed)] = own
        placed.append([category, (left, top, left + width, top + height), own, opacity])
    noise = _noise()[int(rng.integers(160)) :, int(rng.integers(160)) :][:SIZE, :SIZE]
    gain, offset, grain = rng.uniform(0.75, 1.1), rng.uniform(-20, 20), rng.uniform(2, 9)
    pixels = np.clip((canvas - 128) * gain + 128 + offset + grain * noise, 0, 255).astype(np.uint8)
    objects = sorted(
        (
            SceneObject(CATEGORIES[c], box, float(shown[k] / own), float(opacity), float(shown[k] * opacity))
            for k, (c, box, own, opacity) in enumerate(placed)
        ),
        key=lambda item: -item.salience,
    )
    lookup = np.array([c for c, *_ in placed] + [-1], dtype=np.int8)
    return Rendered(pixels, lookup[holder], tuple(objects), kind, background)  # type: ignore[arg-type]


def scene(split: str, index: int, seed: int = 0) -> Scene:
    """One scene; the same arguments give the same pixels always."""
    drawn = render(split, index, seed)
    return Scene(Image.fromarray(drawn.pixels), drawn.objects, drawn.kind, drawn.background, index, split, seed)


def scenes(split: str, n: int, *, seed: int = 0, start: int = 0) -> list[Scene]:
    """Scenes `start` to `start + n` of a split ("train", "calibration" or "test")."""
    return [scene(split, index, seed) for index in range(start, start + n)]


@lru_cache(maxsize=1)
def _statistics() -> tuple[np.ndarray, np.ndarray]:
    """Presence counts from 8,000 training scenes: single (C,) as frequencies and joint (C, C) as p(column | row)."""
    present = np.zeros((8000, len(CATEGORIES)), dtype=np.float32)
    for index in range(len(present)):
        present[index, [_INDEX[name] for name in contents("train", index)[1]]] = 1
    joint = present.T @ present
    return present.mean(0), joint / np.maximum(np.diag(joint), 1)[:, None]


def frequency() -> dict[str, float]:
    """How often each object is present in a scene."""
    return {name: float(value) for name, value in zip(CATEGORIES, _statistics()[0], strict=True)}


def cooccurrence() -> dict[str, dict[str, float]]:
    """``cooccurrence()[a][b]``: how often `b` is present in a scene that has `a` (1 for a itself)."""
    return {
        a: {b: float(value) for b, value in zip(CATEGORIES, row, strict=True)}
        for a, row in zip(CATEGORIES, _statistics()[1], strict=True)
    }
