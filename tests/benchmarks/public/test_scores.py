"""CHAIR, POPE and the other rules against hand-computed cases; the bootstrap and McNemar against naive loops."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from sightline.benchmarks.public import amber, coco, hallusion, mme, textqa
from sightline.benchmarks.public.chair import Mention, Vocabulary, chair, plurals
from sightline.benchmarks.public.mmhal import ratings
from sightline.benchmarks.public.pope import SPLITS, Mean, Question, build, parse, pope, rows, statistics
from sightline.benchmarks.public.tokens import Token, tokens
from sightline.benchmarks.public.yesno import says
from sightline.common.errors import DataError
from sightline.common.statistics import Auroc, Blend, Ratio, difference, interval, mcnemar, spearman

NAMES = ["dog", "hot dog", "cat", "knife", "person", "dining table", "bus", "mouse", "pizza", "bear", "glasses", "cup"]
SYNONYMS = {"puppy": "dog", "kitten": "cat", "man": "person", "table": "dining table", "glass": "cup"}


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(NAMES, SYNONYMS, ignore=["teddy bear", "computer mouse pad"])


def named(vocabulary: Vocabulary, text: str) -> list[str]:
    return [mention.name for mention in vocabulary.mentions(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog and two CATS.", ["dog", "cat"]),
        ("Dogs, puppies, kittens", ["dog", "dog", "cat"]),
        ("A hot dog on a plate", ["hot dog"]),  # longest match: not also a dog
        ("hot dogs and hot-dogs and a hot\ndog", ["hot dog"] * 3),
        ("it was hot. dog barks", ["dog"]),
        ("knives, mice, people, men, buses", ["knife", "mouse", "person", "person", "bus"]),
        ("dining tables beside a table", ["dining table", "dining table"]),
        ("doghouse, cathedral, underdog, dog_bed, busy", []),
        ("the dog's bowl; a dog-like cat", ["dog", "dog", "cat"]),
        ("There are no dogs", ["dog"]),  # the published rule does not understand negation
        ("a teddy bear and teddy bears", []),
        ("a bear", ["bear"]),
        ("glasses beside a glass", ["glasses", "cup"]),  # a listed name wins over the plural of a synonym
        ("", []),
    ],
)
def test_mentions(vocabulary: Vocabulary, text: str, expected: list[str]) -> None:
    assert named(vocabulary, text) == expected


def test_mention_offsets(vocabulary: Vocabulary) -> None:
    text = "Two Hot  Dogs, a cat."
    assert vocabulary.mentions(text) == [Mention("hot dog", 4, 13), Mention("cat", 17, 20)]
    assert text[4:13] == "Hot  Dogs"


def test_empty_vocabulary_finds_nothing() -> None:
    assert Vocabulary([]).mentions("a dog") == []


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("box", "boxes"),
        ("knife", "knives"),
        ("leaf", "leaves"),
        ("giraffe", "giraffes"),
        ("potato", "potatoes"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("policeman", "policemen"),
        ("sheep", "sheep"),
        ("wine glass", "wine glasses"),
    ],
)
def test_plurals(word: str, form: str) -> None:
    assert form in plurals(word)


def test_chair_by_hand(vocabulary: Vocabulary) -> None:
    captions = [
        "A dog, a dog and a cat.",  # three mentions, two of them hallucinated (dog twice); recalls the cat of 2
        "A man with a hot dog.",  # two mentions, none hallucinated; recalls 2 of 3
        "Nothing here.",  # silent
        "",  # empty
    ]
    truths = [{"cat", "bus"}, {"person", "hot dog", "bus"}, {"dog"}, set()]
    scores = chair(captions, truths, vocabulary).values
    assert scores["s"] == pytest.approx(1 / 4)
    assert scores["i"] == pytest.approx(2 / 5)  # every mention counts
    assert scores["recall"] == pytest.approx(3 / 6)
    assert scores["precision"] == pytest.approx(3 / 4)  # dog, cat; person, hot dog: each once a caption
    assert scores["f1"] == pytest.approx(2 * 3 / (4 + 6))
    assert scores["words"] == pytest.approx((7 + 6 + 2 + 0) / 4)
    assert scores["mentions"] == pytest.approx(5 / 4)
    assert (scores["n"], scores["silent"], scores["empty"]) == (4, 2, 1)
    assert scores["by_position"] == [
        {"position": 1, "i": 0.5, "n": 2},
        {"position": 2, "i": 0.5, "n": 2},
        {"position": 3, "i": 0.0, "n": 1},
    ]


def test_chair_pools_late_positions() -> None:
    vocabulary = Vocabulary(["dog", "cat"])
    rows = chair(["dog " * 9 + "cat"], [{"dog"}], vocabulary).by_position()
    assert [row["n"] for row in rows] == [1] * 7 + [3]
    assert rows[-1]["i"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("captions", "truths"), [([], []), (["", ""], [set(), {"dog"}]), (["hello"], [{"dog"}])])
def test_chair_without_mentions_is_zero(captions: list[str], truths: list[set[str]]) -> None:
    scores = chair(captions, truths, Vocabulary(["dog"])).values
    assert (scores["s"], scores["i"], scores["recall"]) == (0.0, 0.0, 0.0)
    assert scores["n"] == scores["silent"] == len(captions)


def test_chair_wants_one_truth_per_caption() -> None:
    with pytest.raises(ValueError):
        chair(["a", "b"], [set()], Vocabulary(["dog"]))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man and a woman", "person person"),
        ("two women, three men and some children", "person person person"),
        ("people sit at tables", "person, dining table"),
        ("A toilet", "toilet"),
        ("A toilet seat", "toilet"),  # one thing
        ("A white toilet with its seat up", "toilet"),  # the seat of a toilet is no chair
        ("A seat by the window", "chair"),
        ("The toilet seats", "toilet"),
        ("toilet paper on a sink", "sink"),
        ("A hot dog in a bun", "hot dog"),
        ("two hot dogs", "hot dog"),
        ("a hot-dog and a hotdog", "hot dog, hot dog"),
        ("a dog on a hot day", "dog"),
        ("a hot, dog-tired man", "dog, person"),
        ("a teddy bear", "teddy bear"),
        ("a bear, two bears, teddy bears", "bear, bear, teddy bear"),
        ("a polar bear", "bear"),
        ("a baby", "person"),
        ("a baby elephant with adult elephants", "elephant, elephant"),
        ("a baby zebra and a baby", "zebra, person"),
        ("a passenger train", "train"),
        ("a passenger jet and its passengers", "airplane, person"),
        ("train tracks", ""),
        ("a bus stop", ""),
        ("a bus at a bus stop", "bus"),
        ("school buses", "bus"),
        ("a wine glass", "wine glass"),
        ("wine glasses and glasses of wine", "wine glass, wine glass"),
        ("a tennis racquet and a tennis ball", "tennis racket, sports ball"),
        ("baseball bats, a baseball mitt", "baseball bat, baseball glove"),
        ("a baseball field", ""),
        ("a bow tie", "tie"),
        ("a tie-dyed shirt", ""),
        ("an orange", "orange"),
        ("an orange cat", "cat"),  # a colour
        ("oranges in an orange bowl", "orange, bowl"),
        ("a man in an orange shirt", "person"),
        ("a stop light and a traffic signal", "traffic light, traffic light"),
        ("a parking meter by a fire hydrant", "parking meter, fire hydrant"),
        ("a cell phone; phones", "cell phone, cell phone"),
        ("a television on a tv stand", "tv"),
        ("a laptop computer with a computer mouse", "laptop, mouse"),
        ("a mouse pad", ""),
        ("a pair of scissors", "scissors"),
        ("knives, forks and spoons", "knife, fork, spoon"),
        ("a potted plant and a houseplant", "potted plant, potted plant"),
        ("a stove top oven", "oven"),
        ("skis on a ski slope", "skis"),
        ("a fire truck and a pickup truck", "truck, truck"),
        ("motor cycles and motor bikes", "motorcycle, motorcycle"),
        ("sheep, lambs, cattle, geese, mice", "sheep, sheep, cow, bird, mouse"),
        ("a cupcake in a cup on a cupboard", "cake, cup"),
        ("doughnuts", "donut"),
        ("a suitcase and some luggage", "suitcase, suitcase"),
        ("catalog, carpet, busy, cupboard, benchmark, bookish", ""),
    ],
)
def test_coco_words(caption: str, expected: str) -> None:
    wanted = expected.split(", ") if "," in expected else expected.split(" ") * bool(expected)
    wanted = [expected] if expected in coco.categories() else wanted
    assert named(coco.vocabulary(), caption) == wanted


def test_every_category_names_itself_in_both_numbers() -> None:
    vocabulary = coco.vocabulary()
    assert vocabulary.names == set(coco.categories())
    assert len(coco.categories()) == 80
    for name in coco.categories():
        assert named(vocabulary, f"There is a {name}.") == [name]
        assert all(named(vocabulary, form) == [name] for form in plurals(name))


TABLE = """person, man, woman, baby
chair, seat
toilet, urinal
elephant
train
airplane, jet
hot dog
dog, puppy
tie, bow
bus, minibus
boat, canoe
oven, stove, stove top oven
clock
wine glass
sports ball, ball
cake,  cheesecake
cell phone, iPhone
"""


@pytest.mark.parametrize(
    ("caption", "expected", "strict"),
    [
        ("A baby elephant, a baby, puppies and a hot dog", "elephant, person, dog, hot dog", None),
        ("a toilet and its seat; a bow tie; a passenger train", "toilet, tie, train", None),
        ("a urinal with a seat", "toilet, chair", None),  # the rule knows the word toilet only
        ("a seat and a bicycle", "chair", None),  # the table has no bicycle
        ("trains on train tracks beside a train track", "train", None),
        ("a baby cub, an adult animal", "", None),
        ("passenger jets", "airplane", None),
        ("a stove top oven", "oven, oven", None),
        ("a hot-dog, a dog-house, a man/woman", "", None),  # compounds are one word
        ("hot dogs. A dog's bone", "hot dog, dog", None),
        ("at ten o'clock by the clock", "clock", None),
        ("wine glasses", "wine glass", None),
        ("a hot, dog", "dog", None),
        ("iPhone, cheesecake", "", None),  # as the table is written, the script never finds them
        ("a bus, buses, a tie, ties, canoes", "bus, bus, tie, tie, boat", "bus, tie"),
        ("minibuses", "bus", "bus"),
        ("a minibus", "bus", ""),
    ],
)
def test_the_published_table_is_read_by_its_script(
    tmp_path: Path, caption: str, expected: str, strict: str | None
) -> None:
    table = tmp_path / "synonyms.txt"
    table.write_text(TABLE)
    for letter, wanted in ((False, expected), (True, expected if strict is None else strict)):
        assert ", ".join(named(coco.vocabulary(table, strict=letter), caption)) == wanted


def test_the_published_table_says_where_it_is_wrong(tmp_path: Path) -> None:
    table = tmp_path / "twice.txt"
    table.write_text("dog, puppy\ncat, puppy\n")
    with pytest.raises(DataError, match=r"twice.txt, line 2: 'puppy' already stands for 'dog'"):
        coco.vocabulary(table)
    table.write_text("\n")
    with pytest.raises(DataError, match=r"twice.txt is empty"):
        coco.vocabulary(table, strict=True)


def test_script_mentions_know_their_characters(tmp_path: Path) -> None:
    table = tmp_path / "synonyms.txt"
    table.write_text(TABLE)
    text = "Two Hot Dogs beside a man's tie."
    found = [(one.name, text[one.start : one.end]) for one in coco.vocabulary(table).mentions(text)]
    assert found == [("hot dog", "Hot Dogs"), ("person", "man"), ("tie", "tie")]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("A dog's bone, don't!", "A dog 's bone , do n't !"),
        ("e-book and/or o'clock at 10:30.", "e-book and/or o'clock at 10:30 ."),
        ('He saw 1,000 cats. "Nice" -- (yes)', 'He saw 1,000 cats . " Nice " -- ( yes )'),
        ("wait... 'quoted' dogs'", "wait ... ' quoted ' dogs '"),
        ("end.Start u.s. way", "end.Start u.s . way"),
        ("**bold** o’clock", "* * bold * * o ’ clock"),
        ("", ""),
    ],
)
def test_tokens(text: str, cut: str) -> None:
    found = tokens(text)
    assert " ".join(one.text for one in found) == cut
    assert all(text[one.start : one.end] == one.text for one in found)


@pytest.mark.parametrize(
    ("reply", "yes", "said"),
    [
        ("yes", True, True),
        ("Yes.", True, True),
        ("Yes, there is a dog. No cat though.", True, True),
        ("Yes\nNo", True, True),
        ("No", False, False),
        ("no.", False, False),
        ("No, there is no dog", False, False),
        ("No dogs", False, False),
        ("There are no dogs in the image.", False, False),
        ("There is not a dog.", False, False),
        ("The dog is not, in fact, there", False, False),
        (" no ", False, False),
        ("Yes, there is no doubt", False, True),  # the script sees the no
        ("I see no dog. Yes I do", False, False),  # the first sentence only
        ("There is a dog. There is no cat", True, None),
        ("NO", True, False),  # the script knows No and no only
        ("No!", True, False),
        ("No\nYes", True, False),  # it cuts at spaces, not at line ends
        ("No\n", True, False),
        ("(no)", True, False),
        ("Not at all", True, False),  # nor Not
        ("Nobody knows nothing", True, None),
        ("a dog", True, None),
        ("...no", True, None),
        ("", True, None),
    ],
)
def test_pope_rule(reply: str, yes: bool, said: bool | None) -> None:
    answer = parse(reply)
    assert (answer.yes, answer.said) == (yes, said)
    # the published script, written again: sentence, commas, pieces
    sentence = reply.split(".")[0].replace(",", "").split(" ")
    assert answer.yes == (not ("No" in sentence or "not" in sentence or "no" in sentence))


def test_pope_by_hand() -> None:
    questions = [
        Question(0, "dog", True),
        Question(0, "cat", False),
        Question(1, "bus", True),
        Question(1, "cup", False),
        Question(2, "dog", True),
        Question(2, "cat", False),
        Question(2, "cow", False),
    ]
    replies = ["Yes, there is", "yes", "no", "No", "well", "no.", "NO"]
    score = pope(questions, replies, 4)  # tp 2 (one says neither), fp 2 (NO is one by the rule), fn 1, tn 2
    scores = score.values
    assert scores["accuracy"] == pytest.approx(4 / 7)
    assert scores["precision"] == pytest.approx(2 / 4)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert scores["yes_ratio"] == pytest.approx(4 / 7)
    assert scores["exact"] == pytest.approx(2 / 7)  # the bare "No" and "NO"
    assert (scores["unparsed"], scores["disputed"], scores["n"]) == (1, 1, 7)
    assert score.outcomes == [True, False, False, True, True, True, False]


def test_pope_yes_ratio_is_of_replies() -> None:
    questions = [Question(0, "dog", True), Question(0, "cat", False)]
    assert pope(questions, ["yes", "yes"], 1).values["yes_ratio"] == 1.0
    assert pope(questions, ["no", "no"], 1).values["f1"] == 0.0
    assert pope([], [], 0).values["accuracy"] == 0.0


def test_mean_of_splits() -> None:
    questions = [Question(0, "dog", True), Question(1, "cat", False)]
    splits = [pope(questions, said, 2) for said in (["yes", "no"], ["yes", "yes"], ["no", "yes"])]
    mean = Mean(splits)
    assert mean.values["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert mean.values["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert mean.values["n"] == 6


FREQUENCY = {"dog": 0.5, "cat": 0.4, "bus": 0.3, "cup": 0.2, "fork": 0.1, "sink": 0.1}
COMPANY = {"dog": {"fork": 0.9, "cup": 0.1}, "cat": {"fork": 0.3, "sink": 0.8}}


def test_questions_are_balanced_and_shared() -> None:
    truths = [{"dog", "cat"}, {"bus"}, set(), {"dog", "cat", "bus", "cup", "fork", "sink"}]
    questions = build(truths, FREQUENCY, COMPANY, pairs=2, seed=3)
    assert set(questions) == set(SPLITS)
    for asked in questions.values():
        assert len(asked) == 4 + 2  # two pairs, one pair, and nothing where none are present or none absent
        assert sum(one.present for one in asked) * 2 == len(asked)
        assert all(one.present == (one.name in truths[one.image]) for one in asked)
    positives = [[one for one in questions[split] if one.present] for split in SPLITS]
    assert positives[0] == positives[1] == positives[2]


def test_negatives_follow_their_split() -> None:
    questions = build([{"dog", "cat"}], FREQUENCY, COMPANY, pairs=2)
    absent = {split: [one.name for one in asked if not one.present] for split, asked in questions.items()}
    assert absent["popular"] == ["bus", "cup"]
    assert absent["adversarial"] == ["fork", "sink"]  # 1.2 and 0.8 with dog and cat
    assert set(absent["random"]) <= {"bus", "cup", "fork", "sink"}


def test_questions_depend_on_the_seed_only() -> None:
    truths = [set(list(FREQUENCY)[k : k + 3]) for k in range(3)] * 5
    again = build(truths, dict(reversed(FREQUENCY.items())), COMPANY, seed=1)
    assert build(truths, FREQUENCY, COMPANY, seed=1) == again
    assert build(truths, FREQUENCY, COMPANY, seed=2) != again


def test_doubtful_objects_are_not_asked_about() -> None:
    doubtful = [{"fork", "bus", "cup"}]
    for asked in build([{"dog", "cat"}], FREQUENCY, COMPANY, pairs=2, unsure=doubtful).values():
        assert not {one.name for one in asked} & doubtful[0]
        assert [one.name for one in asked if not one.present] == ["sink"]  # nothing else is left
    for asked in build([{"dog"}], FREQUENCY, COMPANY, pairs=1, unsure=[set()]).values():
        assert len(asked) == 2


def test_statistics_of_an_image_set() -> None:
    frequency, together = statistics([{"dog", "cat"}, {"dog", "cat", "bus"}, {"dog"}, set()])
    assert frequency == {"dog": 3, "cat": 2, "bus": 1}
    assert together == {"dog": {"cat": 2, "bus": 1}, "cat": {"dog": 2, "bus": 1}, "bus": {"dog": 1, "cat": 1}}


def test_questions_in_the_published_form() -> None:
    written = rows([Question(1, "apple", True), Question(0, "dog", False)], ["a.jpg", "b.jpg"])
    assert written == [
        {"question_id": 1, "image": "b.jpg", "text": "Is there an apple in the image?", "label": "yes"},
        {"question_id": 2, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"},
    ]


KIN = amber.Tables(
    {"dog": ["puppy"], "cat": ["kitten"], "tree": ["oak", "forest"], "person": [], "bench": [], "light": []},
    frozenset({"light"}),
)


def nouns(caption: str) -> list[Token]:
    """The words of a caption, in the singular where this test needs it."""
    singular = {"puppies": "puppy", "oaks": "oak", "lights": "light", "benches": "bench"}
    return [Token(singular.get(one.text.lower(), one.text.lower()), one.start, one.end) for one in tokens(caption)]


def test_amber_caption_by_hand() -> None:
    caption = "Puppies and a dog under oaks; a kitten, a bench and lights. Two benches can be seen."
    read = amber.judge(nouns(caption), truth=["dog", "tree", "person"], imagined=["cat"], tables=KIN)
    assert [(noun.text, bad) for noun, bad in read.flags] == [
        ("puppy", False),
        ("dog", False),
        ("oak", False),
        ("kitten", True),
        ("bench", True),
        ("light", False),  # safe in every image
        ("bench", True),
    ]
    assert read.covered == {"dog", "tree"}  # 2 of 3
    assert read.imagined == {"cat"}
    similar = amber.judge(
        nouns("a kitten"), ["dog"], ["cat"], KIN, similar=lambda noun, word: {noun, word} == {"kitten", "dog"}
    )
    assert [bad for _, bad in similar.flags] == [False]
    assert (similar.covered, similar.imagined) == ({"dog"}, {"cat"})  # like, and listed


def test_amber_looks_through_all_kin_before_names() -> None:
    tables = amber.Tables({"person": ["man"], "man": []}, frozenset())
    read = amber.judge(nouns("a man"), ["man", "person"], [], tables)
    assert read.covered == {"person"}  # the release: kin of all, then names; so man itself is never covered here
    assert amber.judge(nouns("a man"), ["man"], [], tables).covered == {"man"}
    listed = amber.judge(nouns("a man"), [], ["man", "person"], tables)
    assert listed.imagined == {"person"}


def test_amber_scores_by_hand() -> None:
    facts = [
        {"type": "generative", "truth": ["dog", "tree"], "hallu": ["cat", "person"]},
        {"type": "generative", "truth": ["bench"], "hallu": ["person"]},
        {"type": "discriminative-hallucination", "truth": False},
        {"type": "discriminative-attribute-state", "truth": True},
        {"type": "relation", "truth": False},
    ]
    samples = [amber.Sample(str(n), "?", Path(f"{n}.jpg")) for n in range(5)]
    bench = amber.Amber(samples, facts=facts, tables=KIN, nouns=nouns)
    scores = bench.score(["A dog and a cat.", "A bench.", "No.", "No", "perhaps"])
    generative = scores["generative"].values
    assert generative["chair"] == pytest.approx(1 / 3)
    assert generative["cover"] == pytest.approx(2 / 3)
    assert generative["hal"] == pytest.approx(1 / 2)
    assert generative["cog"] == pytest.approx(1 / 3)
    asked = scores["discriminative"].values  # no is the positive answer: 1 hit, 1 false, 1 missed
    assert [asked[key] for key in ("accuracy", "precision", "recall", "f1")] == pytest.approx(
        [1 / 3, 1 / 2, 1 / 2, 0.5 / 1.0001]
    )
    assert (asked["exact"], asked["unparsed"]) == (0.0, 1)  # "No." is not "No"; "No" is wrong; "perhaps" neither
    assert scores["existence"].values["accuracy"] == 1.0
    assert scores["existence"].values["f1"] == pytest.approx(2 / 2.001)  # the release's constant is larger here
    assert scores["state"].values["accuracy"] == scores["attribute"].values["accuracy"] == 0.0
    assert scores["relation"].values["recall"] == 0.0
    bench.rule = amber.bare  # the release compares with the bare words
    assert bench.score(["", "", "No.", "No", "No"])["discriminative"].values["accuracy"] == pytest.approx(1 / 3)


def test_amber_f1_is_made_of_rounded_parts() -> None:
    ratio = amber.F1(Ratio.of([1], [3]), Ratio.of([2], [3]), 1e-4)
    assert ratio.value == pytest.approx(2 * 0.333 * 0.667 / (0.333 + 0.667 + 1e-4))
    assert ratio.resampled(5) == pytest.approx([ratio.value] * 5)


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("yes, it is", True),
        ("No.", False),
        ("y", None),  # the word, not its first letter
        ("n", None),
        ("not so", False),
        ("     yes", None),  # nothing is stripped
        ("know", False),  # "no" is in its first four letters
        ("nope", False),
        ("The answer is yes", None),  # too late
        ("A yes", None),
        ("", None),
    ],
)
def test_mme_rule(reply: str, yes: bool | None) -> None:
    assert mme.parse(reply).yes is yes


def test_mme_by_hand() -> None:
    asked = [("existence", 0, True), ("existence", 0, False), ("existence", 1, True), ("existence", 1, False)]
    asked += [("count", 2, True), ("count", 2, False)]
    bench = mme.MME([], asked=asked)
    scores = bench.score(["Yes", "No", "Yes", "Yes", "dunno", "No"])
    assert scores["existence"].values == {
        "accuracy": 3 / 4,
        "accuracy_plus": 1 / 2,
        "score": pytest.approx(125.0),
        "unparsed": 0,
        "n": 4,
    }
    assert scores["count"].values["score"] == pytest.approx(50.0)
    assert scores["total"].values == {"score": pytest.approx(175.0), "unparsed": 1, "n": 6}


def test_hallusion_by_hand() -> None:
    # one set: figure 0 and its altered copy 1, questions a and b; one knowledge set (VS), whose figure 0 is none
    def item(category: str, group: str, figure: str, question: str, yes: bool) -> hallusion.Item:
        return hallusion.Item(
            category, (category, "x", group), figure, question, category == "VD" and figure == "1", yes
        )

    items = [
        item("VD", "0", f, q, yes)
        for f, q, yes in (("0", "a", True), ("0", "b", False), ("1", "a", False), ("1", "b", True))
    ]
    items += [item("VS", "0", f, q, yes) for f, q, yes in (("0", "a", True), ("1", "a", False))]
    bench = hallusion.HallusionBench([], items=items)
    scores = bench.score(["Yes", "No", "no", "no", "maybe", "No, it is not"])
    everything = scores["all"].values
    assert everything["aacc"] == pytest.approx(5 / 6)  # maybe is right where there is nothing to see
    assert everything["facc"] == pytest.approx(2 / 3)  # VD 0 and VS 1 are right, VD 1 is not; VS 0 counts for nothing
    assert everything["qacc"] == pytest.approx(2 / 3)  # a of VD and of VS; b is wrong on the copy
    assert everything["easy"] == pytest.approx(1)  # pairs without the altered copy: a and b of VD, a of VS
    assert everything["hard"] == pytest.approx(1 / 2)  # altered copies: a and b of VD
    assert (everything["unparsed"], everything["n"]) == (1, 6)
    assert scores["VD"].values["aacc"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("No, it is not possible to see one.", False),
        ("It is not possible to tell from the image.", None),
        ("I cannot determine that.", None),
        ("There is not enough information.", None),
        ("I'm not sure.", None),
        ("There is no information about that.", None),
        ("It does not.", False),
        ("Yes", True),
        ("Impossible to say", None),
        ("perhaps", None),
    ],
)
def test_hallusion_unclear_is_not_no(reply: str, said: bool | None) -> None:
    assert hallusion.answer(reply) is said


@pytest.mark.parametrize(
    ("reply", "said"), [("Yes", True), ("I think not", False), ("Nothing", None), ("The yes", True)]
)
def test_says(reply: str, said: bool | None) -> None:
    assert says(reply) is said


def test_mmhal_ratings() -> None:
    assert ratings(["Good. Rating: 6", "rating: 2, no hallucination?", "Rating:3"]) == pytest.approx((11 / 3, 1 / 3))
    for judged in (["nothing"], ["Rating: 3 or Rating: 4"], ["Rating: 7"], []):
        with pytest.raises(DataError):
            ratings(judged)


def test_truthfulqa_by_hand() -> None:
    right = (True, False, False, True, True, False)  # mc1: one right, two wrong; mc2: two right, one wrong
    bench = textqa.TruthfulQA([], targets=[(right, 3), (right, 3)])
    chances = [
        [-1.0, -2.0, -3.0, math.log(0.2), math.log(0.1), math.log(0.1)],
        [-5.0, -4.0, -9.0, -900.0, -901.0, -900.0],
    ]
    scores = bench.score(chances).values
    assert scores["mc1"] == pytest.approx(1 / 2)
    second = (1 + math.exp(-1)) / (2 + math.exp(-1))  # e^-900 is 0 in floats; the shares are not lost
    assert scores["mc2"] == pytest.approx((0.3 / 0.4 + second) / 2)
    assert scores["mc3"] == pytest.approx((1 / 2 + 0) / 2)  # a tie does not beat
    assert textqa.mc2([-math.inf], [-math.inf]) == 0.0


def test_memotrap_by_hand() -> None:
    asked = [("one", 0), ("one", 1), ("one", 0), ("two", 1)]
    scores = textqa.MemoTrap([], asked=asked).score([[-1, -2], [-1, -2], [-1, -2], [-3, -1]])
    assert scores["all"].values == {"accuracy": 3 / 4, "macro": pytest.approx((2 / 3 + 1) / 2), "n": 4}
    assert scores["one"].values["accuracy"] == pytest.approx(2 / 3)


def test_nqswap_by_hand() -> None:
    facts = [(["The Beatles"], ["Anna Paquin"])] * 4
    scores = (
        textqa.NQSwap([], facts=facts)
        .score(["beatles.\nQuestion:", "It was the Beatles", "Anna  Paquin!", "Queen"])
        .values
    )
    assert [scores[key] for key in ("em", "contains", "memory")] == pytest.approx([1 / 4, 2 / 4, 1 / 4])
    assert textqa.normalise("An  A-Team, the best!") == "ateam best"


def ratio(seed: int, images: int = 40) -> Ratio:
    dice = np.random.default_rng(seed)
    bottom = dice.integers(0, 6, images)
    return Ratio.of(dice.binomial(bottom, 0.3), bottom)


def test_bootstrap_matches_a_naive_loop() -> None:
    score = ratio(0)
    dice = np.random.default_rng(9)
    naive = []
    for _ in range(4000):
        drawn = dice.integers(0, len(score.top), len(score.top))
        naive.append(score.top[drawn].sum() / score.bottom[drawn].sum())
    low, high = interval(score, draws=4000, seed=1)
    assert (low, high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.015)
    assert low < score.value < high
    assert interval(score, seed=1) == interval(score, seed=1)


def test_paired_difference_resamples_both_alike() -> None:
    score = ratio(1)
    assert difference(score, score) == (0.0, (0.0, 0.0))
    better = Ratio(np.maximum(score.top - 1, 0), score.bottom)
    value, (low, high) = difference(better, score)
    assert low <= value <= high < 0
    with pytest.raises(ValueError):
        difference(score, ratio(1, images=3))


def test_interval_of_nothing_is_zero() -> None:
    assert interval(Ratio.of([], [])) == (0.0, 0.0)
    assert interval(Ratio.of([0, 0], [0, 0])) == (0.0, 0.0)


def test_blend_is_resampled_as_a_whole() -> None:
    one, two = ratio(3), ratio(4)
    blend = Blend((one, two), (0.5, 2.0))
    assert blend.value == pytest.approx(0.5 * one.value + 2 * two.value)
    assert blend.resampled(50, 5) == pytest.approx(0.5 * one.resampled(50, 5) + 2 * two.resampled(50, 5))
    assert Blend.mean([one, one]).value == pytest.approx(one.value)


def test_a_part_that_a_sample_misses_counts_for_nothing() -> None:
    once = Ratio.of([1, 0, 0, 0], [1, 0, 0, 0])  # a third of all samples lack its only image
    rest = Ratio.of([0, 1, 1, 1], [0, 1, 1, 1])
    assert 0.0 in once.resampled(200)
    assert Blend.mean([once, rest]).resampled(200) == pytest.approx(1.0)  # all is right, whatever is drawn
    nothing = Ratio.of([0, 0], [0, 0])
    assert Blend.mean([nothing, nothing]).resampled(3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (3, 3), (2, 8), (0, 9)])
def test_mcnemar_counts_the_coin_tosses(gained: int, lost: int) -> None:
    right = [True] * gained + [False] * lost + [True, False]
    plain = [False] * gained + [True] * lost + [True, False]
    tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=gained + lost)]  # every way the coin may fall
    far = sum(abs(heads - (gained + lost) / 2) >= abs(gained - lost) / 2 for heads in tosses)
    found = mcnemar(right, plain)
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p == pytest.approx(far / len(tosses))


def test_mcnemar_of_many_answers() -> None:
    assert mcnemar([True] * 5000, [False] * 5000).p < 1e-300
    normal = math.erfc((4600 - 4400 - 1) / math.sqrt(9000) / math.sqrt(2))  # with continuity correction
    assert mcnemar([True] * 4600 + [False] * 4400, [False] * 4600 + [True] * 4400).p == pytest.approx(normal, rel=0.01)
    with pytest.raises(ValueError):
        mcnemar([True], [])


def test_spearman_shares_ranks_between_ties() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 6, (2, 5, 8)).astype(float)
    ranks = [
        np.array([(values < x).sum() + ((values == x).sum() + 1) / 2 for x in values.ravel()]) - 20.5
        for values in (first, second)
    ]
    wanted = (ranks[0] @ ranks[1]) / math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    assert spearman(first, second) == pytest.approx(wanted)
    assert spearman(first, 2 * first) == pytest.approx(1)


# --- AUROC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "positive", "strata", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 0, 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0, 0.0),
        ([1, 2, 2, 3], [0, 1, 0, 1], 0, (0.5 + 1 + 1 + 1) / 4),  # one tie among four pairs
        ([5, 5, 5], [0, 1, 1], 0, 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0, 3 / 4),
        ([1, 2, 3], [1, 1, 1], 0, 0.5),  # no pair at all
        ([1, 9, 2, 8], [0, 1, 1, 0], [0, 0, 1, 1], 0.5),  # one pair of each stratum: one right, one wrong
        ([1, 9, 0, 8, 3], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], 2 / 3),
        ([], [], 0, 0.5),
    ],
)
def test_auroc_by_hand(scores: list[float], positive: list[int], strata: object, expected: float) -> None:
    assert Auroc.of(scores, positive, range(len(scores)), len(scores), strata).value == pytest.approx(expected)


def test_auroc_bootstrap_equals_pairs_counted_one_by_one() -> None:
    """Images are drawn with everything on them; cases without a partner in their stratum do not count."""
    rng = np.random.default_rng(3)
    cases, images = 40, 9
    scores = rng.integers(0, 6, cases) / 2
    positive, image, strata = rng.random(cases) < 0.4, rng.integers(0, images, cases), rng.integers(0, 3, cases)
    found = Auroc.of(scores, positive, image, images, strata)
    draws = found.resampled(draws=12, seed=5)
    times = np.random.default_rng(5).multinomial(images, np.full(images, 1 / images), size=12)
    for draw, drawn in zip(draws, times, strict=True):
        copies = [i for i in range(cases) for _ in range(drawn[image[i]])]
        pairs = [
            (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
            for i in copies
            for j in copies
            if positive[i] and not positive[j] and strata[i] == strata[j]
        ]
        assert draw == pytest.approx(np.mean(pairs))
    other = Auroc.of(-scores, positive, image, images, strata)
    change, (low, high) = difference(found, other)
    assert change == pytest.approx(found.value - other.value)
    assert low <= change <= high
