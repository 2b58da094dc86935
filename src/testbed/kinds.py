"""Scene types: which objects each one expects, how often, and what its background looks like.

The weights are the language prior of the testbed. They are strong (four fifths of a scene's objects come from its
own list) and often wrong for one picture: a scene shows three to seven of the ten or so objects it expects.
"""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """A scene type: its words in a caption, the colours above and below the horizon, its objects and weights."""

    phrase: str
    above: RGB
    below: RGB
    expected: dict[str, float]


KINDS: dict[str, Kind] = {
    "kitchen": Kind(
        "a kitchen",
        (235, 225, 200),
        (170, 135, 100),
        {
            "bowl": 5,
            "knife": 5,
            "spoon": 4,
            "bottle": 4,
            "cup": 4,
            "apple": 3,
            "banana": 3,
            "carrot": 3,
            "broccoli": 2,
            "orange": 2,
        },
    ),
    "cafe": Kind(
        "a cafe",
        (215, 180, 150),
        (120, 80, 60),
        {
            "cup": 6,
            "cake": 5,
            "chair": 4,
            "donut": 4,
            "person": 3,
            "wine glass": 3,
            "sandwich": 3,
            "pizza": 2,
            "hot dog": 2,
        },
    ),
    "street": Kind(
        "a street",
        (150, 175, 205),
        (105, 105, 110),
        {
            "car": 7,
            "traffic light": 5,
            "person": 5,
            "bus": 4,
            "truck": 3,
            "bicycle": 3,
            "motorcycle": 3,
            "stop sign": 2,
            "train": 1,
        },
    ),
    "farm": Kind(
        "a farm",
        (165, 205, 235),
        (150, 160, 80),
        {"cow": 6, "horse": 5, "sheep": 5, "dog": 3, "bird": 3, "truck": 3, "cat": 2, "apple": 1.5, "person": 1.5},
    ),
    "office": Kind(
        "an office",
        (205, 210, 215),
        (150, 120, 95),
        {
            "laptop": 6,
            "keyboard": 6,
            "mouse": 5,
            "cell phone": 4,
            "book": 4,
            "cup": 3,
            "scissors": 2,
            "tie": 2,
            "clock": 2,
        },
    ),
    "living room": Kind(
        "a living room",
        (225, 205, 185),
        (145, 95, 70),
        {"couch": 7, "tv": 6, "potted plant": 4, "vase": 4, "book": 3, "chair": 3, "cat": 3, "clock": 2, "dog": 1.5},
    ),
    "bedroom": Kind(
        "a bedroom",
        (200, 190, 220),
        (165, 145, 150),
        {"bed": 8, "teddy bear": 5, "clock": 5, "book": 4, "cell phone": 3, "cat": 3, "laptop": 2, "potted plant": 1.5},
    ),
    "bathroom": Kind(
        "a bathroom",
        (195, 225, 230),
        (150, 180, 185),
        {"toilet": 8, "toothbrush": 7, "cup": 4, "bottle": 3, "scissors": 3, "potted plant": 2.5, "vase": 2},
    ),
    "beach": Kind(
        "a beach",
        (120, 195, 235),
        (235, 210, 150),
        {
            "umbrella": 6,
            "boat": 6,
            "person": 5,
            "kite": 4,
            "sports ball": 3,
            "bird": 3,
            "dog": 2,
            "frisbee": 2,
            "handbag": 1.5,
        },
    ),
    "park": Kind(
        "a park",
        (170, 215, 240),
        (95, 160, 80),
        {
            "dog": 6,
            "person": 5,
            "frisbee": 4,
            "bicycle": 4,
            "skateboard": 3,
            "kite": 3,
            "tennis racket": 3,
            "sports ball": 3,
            "bird": 2,
        },
    ),
    "airport": Kind(
        "an airport",
        (190, 200, 215),
        (130, 135, 145),
        {"airplane": 8, "suitcase": 6, "backpack": 5, "person": 5, "handbag": 4, "bus": 2.5, "cell phone": 2, "tie": 2},
    ),
    "savanna": Kind(
        "a savanna",
        (240, 215, 160),
        (205, 170, 90),
        {"elephant": 6, "giraffe": 6, "zebra": 6, "bird": 4, "bear": 3, "truck": 2, "horse": 2},
    ),
}

SYNONYMS_EXTRA: dict[str, tuple[str, ...]] = {
    "person": ("people", "man", "men", "woman", "women", "boy", "girl", "pedestrian"),
    "bicycle": ("bike",),
    "car": ("automobile", "sedan"),
    "motorcycle": ("motorbike",),
    "airplane": ("plane", "aeroplane", "jet", "aircraft"),
    "boat": ("sailboat", "ship"),
    "cat": ("kitten",),
    "dog": ("puppy", "puppies"),
    "horse": ("pony", "ponies"),
    "sheep": ("lamb",),
    "cow": ("cattle",),
    "backpack": ("rucksack",),
    "handbag": ("purse",),
    "tie": ("necktie",),
    "suitcase": ("luggage",),
    "sports ball": ("soccer ball", "football", "ball"),
    "cup": ("mug",),
    "wine glass": ("wineglass",),
    "knife": ("knives",),
    "hot dog": ("hotdog",),
    "donut": ("doughnut",),
    "couch": ("sofa",),
    "potted plant": ("houseplant", "plant"),
    "tv": ("television", "television set"),
    "laptop": ("notebook computer", "laptop computer"),
    "cell phone": ("phone", "mobile phone", "smartphone", "cellphone"),
    "clock": ("alarm clock",),
    "teddy bear": ("teddy",),
}

_IRREGULAR = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "mouse": "mice",
    "broccoli": "broccoli",
    "scissors": "scissors",
    "bus": "buses",
    "sandwich": "sandwiches",
    "toothbrush": "toothbrushes",
    "couch": "couches",
    "wine glass": "wine glasses",
    "tv": "tvs",
}


def plural(name: str) -> str:
    """The plural of an object name ("knife" -> "knives")."""
    return _IRREGULAR.get(name, name + "s")


def article(name: str) -> str:
    """The name with its indefinite article ("an apple"); scissors come in pairs."""
    if name == "scissors":
        return "a pair of scissors"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
