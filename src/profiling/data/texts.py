"""What a haystack test reads: made-up facts to find, and filler, plain sentences on the life of a village."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Needle:
    """`text` holds `answer` word for word; only it answers `question`."""

    text: str
    question: str
    answer: str


_NEEDLES = """
The best thing to do in Ardenfield is to | eat a cherry pie on the wooden bridge at sunset
What is the best thing to do in Ardenfield?
The secret ingredient of the soup that Marlow cooked was | a spoon of crushed walnuts and honey
What was the secret ingredient of the soup that Marlow cooked?
Captain Velda hid the silver compass | inside a hollow oak behind the lighthouse
Where did Captain Velda hide the silver compass?
The robot Tessik was built to | fold paper boats and paint them bright orange
What was the robot Tessik built to do?
The rarest fruit on the island of Pellmora is | a blue lemon that tastes of pepper and cinnamon
What is the rarest fruit on the island of Pellmora?
Professor Haldric keeps in his laboratory | seven sleepy owls and a glass violin
What does Professor Haldric keep in his laboratory?
The treaty of Osmere was signed | on a raft with green ink made from seaweed
How was the treaty of Osmere signed?
The favorite game of Queen Ilvara was | throwing golden plums at a marble dragon
What was the favorite game of Queen Ilvara?
The medicine of Doctor Brunwick is made of | dried violets, goat milk and volcanic ash
What is the medicine of Doctor Brunwick made of?
The winner of the Corrigan race was given | a velvet hat filled with ripe strawberries
What was the winner of the Corrigan race given?
"""


def _read(table: str) -> Iterator[Needle]:
    lines = table.strip().splitlines()
    for fact, question in zip(lines[::2], lines[1::2], strict=True):
        opening, answer = fact.split(" | ")
        yield Needle(f"{opening} {answer}.", question, answer)


NEEDLES = tuple(_read(_NEEDLES))

PEOPLE = """the baker | an old sailor | two carpenters | the schoolteacher | a young farmer | the miller's daughter
the postman | three travellers | the shepherd | a tall stranger | the blacksmith | the ferryman | some children
the innkeeper | a group of students | the tailor | the mayor's nephew | a quiet widow | the stone mason | both brothers
""".replace("\n", "|")
DEEDS = """mended a broken chair | swept the floor | carried water from the well | sold apples and cheese
stacked the firewood in neat rows | read a letter twice | planted beans along the wall | cleaned the windows
told a long story about the war | counted the sheep | waited for the cart from town | repaired the roof of the barn
washed the blankets | wrote a few lines in a notebook | sharpened the tools | looked for a lost key
bought a new coat | talked about the price of wool | closed the shutters | fed the chickens | baked brown bread
made a fire and boiled some potatoes | walked home without a word | borrowed a ladder | tied the boat to the pier
painted the door grey | sorted the mail | picked mushrooms | drew a map of the valley | slept for an hour
""".replace("\n", "|")
PLACES = """near the mill | behind the church | in the market square | beside the river | at the edge of the forest
on the hill | in the back room of the inn | by the old gate | next to the school | under the chestnut tree
at the crossroads | in the narrow street | outside the station | on the other side of the field | in the kitchen
""".replace("\n", "|")
TIMES = """in the morning | before noon | after the rain | on market day | late in the evening | early in spring
during the harvest | on the second day | at the end of the month | shortly after breakfast | that afternoon
a week later | in the cold season | when the bells rang | as usual
""".replace("\n", "|")
REASONS = """because the winter had been long | so that nothing would be wasted | while the neighbours watched
although nobody had asked for it | as people in those parts often did | since the road was still wet
which took longer than expected | and the day passed quickly | but it made little difference
because there was not much else to do | and no one spoke of it again | as the almanac advised
""".replace("\n", "|")
SCENES = """the fog lay over the fields | the river rose by a hand | the wind turned to the north
snow covered the roofs | the sky was clear and pale | a few clouds drifted over the valley
the leaves began to fall | the road was empty
the air smelled of hay | the light faded slowly | frost had formed on the grass | the market was busier than usual
""".replace("\n", "|")
SHAPES = (
    "{person} {deed} {place} {time}.",
    "{time}, {person} {deed} {place}.",
    "{time}, {person} {deed}, {reason}.",
    "{person} {deed} {place}, {reason}.",
    "{person} {deed}, and then {deed2} {place}.",
    "while {person} {deed}, {person2} {deed2} {place}.",
    "{time} {scene}, and {person} {deed}.",
    "{scene} {time}, {reason}.",
    "{person} {deed} {time}; {person2} {deed2}.",
)


def sentences(seed: int) -> Iterator[str]:
    """Filler without end, the same for the same seed; in the past tense, where subject and verb always agree."""
    rng = random.Random(seed)
    lists = {"person": PEOPLE, "deed": DEEDS, "place": PLACES, "time": TIMES, "reason": REASONS, "scene": SCENES}
    words = {name: [entry.strip() for entry in text.split("|") if entry.strip()] for name, text in lists.items()}
    while True:
        first, second = ({name: rng.choice(choices) for name, choices in words.items()} for _ in range(2))
        parts = {**first, "person2": second["person"], "deed2": second["deed"]}
        sentence = rng.choice(SHAPES).format(**parts)
        yield sentence[0].upper() + sentence[1:]
