"""A second turn on the cache of the first: as if the whole conversation were read at once, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sightline
import torch
from sightline import LayoutError
from torch import Tensor

from tests.helpers import naive, tiny
from tests.helpers.engine import ALPHA, METHODS, NEW, Answer, calibration, entry, fits, generate, prompts, shared

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
FAMILIES = ["llava_gqa", "gemma3", "idefics3", "qwen2_vl"]
TYPES = ("mm_token_type_ids", "token_type_ids")
NEXT = torch.tensor([[30, 41, 52, 33, 64]])  # a question without a picture
HELD = entry("gift", saliency_layers=[2], enhanced_layers=[1, 2, 3])

#: Not SID, whose copy keeps what it was blind to in earlier turns: test_conformance.py holds its turns against the reference.
BASIC = [name for name, one in naive.SETUPS.items() if name == one.name and name != "sid"]

#: Methods whose edits are the same in every row, so that it does not matter when a row was read.
STEADY = ("head_gain", "focus", "zerotuning", "ocr_sink")


class Talk:
    """A conversation of two turns, the second with a picture of its own or without."""

    def __init__(self, family: str, picture: bool, length: int = NEW):
        """length: tokens of the first answer."""
        self.case, self.picture, self.length = shared(family), picture, length
        self.first = self.case.inputs(1, lengths=(5,), seed=3)
        self.second = self.case.inputs(1, lengths=(4,), seed=5) if picture else {"input_ids": NEXT}
        self.dim = 1 if family in ("idefics3", "smolvlm") else 0

    @property
    def start(self) -> int:
        """Tokens in the cache behind the first answer."""
        return int(self.first["input_ids"].shape[1]) + self.length - 1

    def say(self) -> Any:
        """The first turn's answer, with its cache."""
        how = {"max_new_tokens": self.length, "do_sample": False, "return_dict_in_generate": True}
        return self.case.model.generate(**self.first, **how)

    def conversation(self, answered: Tensor) -> dict[str, Any]:
        """Ids, mask and types of both turns, given the first with its answer [1, n]."""
        new = self.second["input_ids"]
        ids = torch.cat([answered, new], dim=1)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in TYPES:
            if name in self.first:
                types = torch.zeros_like(ids)
                types[:, : self.first[name].shape[1]] = self.first[name]
                if self.picture:
                    types[:, -new.shape[1] :] = self.second[name]
                given[name] = types
        return given

    def whole(self, answered: Tensor) -> dict[str, Any]:
        """What reads both turns at once."""
        pictures = _pictures(self.first)
        if self.picture:
            new = _pictures(self.second)
            pictures = {name: torch.cat([value, new[name]], dim=self.dim) for name, value in pictures.items()}
        return {**self.conversation(answered), **pictures}

    def turn(self, said: Any) -> dict[str, Any]:
        """What goes on from the first turn's cache."""
        pictures = _pictures(self.second) if self.picture else {}
        return {**self.conversation(said.sequences), **pictures, "past_key_values": said.past_key_values}


def _pictures(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask", *TYPES)}


def answer(talk: Talk, given: dict[str, Any]) -> Answer:
    return generate(talk.case.model, given)


def assert_alike(mine: Answer, theirs: Answer) -> None:
    assert torch.equal(mine.tokens, theirs.tokens)
    torch.testing.assert_close(mine.logits, theirs.logits, **TOLERANCE)


@contextmanager
def attached(talk: Talk, config: dict[str, Any], **options: Any) -> Iterator[sightline.Plug]:
    known = calibration(talk.case, **naive.SECTIONS)
    with sightline.attach(talk.case.model, config, calibration=known, **options) as plug:
        yield plug


def turns(family: str) -> tuple[bool, ...]:
    """Qwen lays out the positions of all pictures together, so that it takes no new one behind a cache."""
    return (False,) if family == "qwen2_vl" else (False, True)


TALKS = [(family, picture) for family in FAMILIES for picture in turns(family)]


@pytest.mark.parametrize("name", BASIC)
@pytest.mark.parametrize(("family", "picture"), TALKS)
def test_decoders_continue_as_if_all_were_read_at_once(family: str, picture: bool, name: str) -> None:
    setup, talk = naive.SETUPS[name], Talk(family, picture)
    with attached(talk, {"decoder": {setup.name: setup.settings}}, **setup.options):
        try:
            said = talk.say()
        except sightline.UnsupportedModelError:
            pytest.skip("not for this family")
        expected = answer(talk, talk.whole(said.sequences))
        assert_alike(answer(talk, talk.turn(talk.say())), expected)


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize(("family", "picture"), TALKS)
def test_steady_methods_continue_as_if_all_were_read_at_once(family: str, picture: bool, name: str) -> None:
    talk = Talk(family, picture)
    with attached(talk, {"methods": [entry(name)]}):
        expected = answer(talk, talk.whole(talk.say().sequences))
        assert_alike(answer(talk, talk.turn(talk.say())), expected)


GATED = {"signal": "interaction", "above": 1.5, "picture": "random"}
MOVING: list[dict[str, Any]] = [
    *({"methods": [entry(name)]} for name in METHODS if name not in STEADY),
    {"methods": [HELD]},
    {"methods": [entry("vhr"), HELD]},
    {"methods": [entry("cgvlm", when=GATED)]},
    {"methods": [entry("pai", when={"signal": "entropy", "above": 1.0, "by": "now"})]},
]


@pytest.mark.parametrize("config", MOVING, ids=str)
@pytest.mark.parametrize(("family", "picture"), [talk for talk in TALKS if talk[0] != "gemma3"])
def test_a_turn_sees_the_whole_conversation(family: str, picture: bool, config: dict[str, Any]) -> None:
    """On the keys of a conversation that was read at once, everything continues as it did there.

    On those of its own first turn it does not, because other rows were edited then.
    """
    names = [name for one in config.get("methods", ()) for name in one]
    if not all(fits(name, family) for name in names):
        pytest.skip("not for this family")
    if picture and "var" in names:
        pytest.skip("other rows are behind the last picture, and their states say what is a sink")
    if "cai" in names:
        pytest.skip("it compares the image with the words of the turn alone, and with all of a prompt read at once")
    talk = Talk(family, picture, 1 if "var" in names else NEW)  # VAR does not look for sinks in answers
    with attached(talk, config, query=last_question) as plug:
        given = talk.whole(talk.say().sequences)
        whole = talk.case.model.generate(**given, max_new_tokens=1, return_dict_in_generate=True).past_key_values
        expected = answer(talk, given)
        said = talk.say()
        for layer, other in zip(said.past_key_values.layers, whole.layers, strict=True):
            layer.keys, layer.values = (part[:, :, : talk.start].clone() for part in (other.keys, other.values))
        assert_alike(answer(talk, talk.turn(said)), expected)
        assert plug.reading is not None
        layout = plug.reading.layout
        assert (layout.turn, layout.length) == (talk.start, given["input_ids"].shape[1])
        assert torch.equal(layout.image, given["input_ids"] == tiny.IMAGE)


def last_question(ids: Tensor) -> Tensor:
    """Marks the last tokens but one, as a template's closing would end the question."""
    places = torch.arange(ids.shape[1])
    return ((places >= ids.shape[1] - 4) & (places < ids.shape[1] - 1)).expand_as(ids)


@pytest.mark.parametrize("picture", [False, True])
def test_the_question_of_a_turn_is_found(picture: bool) -> None:
    """Without a query finder it is what the turn says behind its last picture."""
    talk = Talk("llava_gqa", picture)
    with attached(talk, {"methods": [entry("gift")]}) as plug:
        answer(talk, talk.turn(talk.say()))
        assert plug.reading is not None
        ids = plug.reading.layout.ids[0]
        begin = 1 + int((ids == tiny.IMAGE).nonzero().max()) if picture else talk.start
        assert plug.reading.layout.query[0].nonzero().flatten().tolist() == list(range(begin, len(ids) - 1))


@pytest.mark.parametrize("config", [{"methods": [entry("gift")]}, {"decoder": "vcd"}, {"decoder": "dola"}], ids=str)
def test_an_answer_can_go_on_in_a_further_call(config: dict[str, Any]) -> None:
    """A call that brings nothing but the answer so far goes on with that answer."""
    talk = Talk("llava_gqa", False)
    with attached(talk, config):
        expected = talk.case.model.generate(**talk.first, max_new_tokens=2 * NEW, do_sample=False)
        said = talk.say()
        ids = said.sequences
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": said.past_key_values}
        assert torch.equal(talk.case.model.generate(**more, max_new_tokens=NEW, do_sample=False), expected)


def test_three_turns_in_a_batch_with_padding_between_them() -> None:
    case = shared("llava_gqa")
    first = prompts(case, "pair")
    context = int(first["input_ids"].shape[1]) - 2  # a word of the first question
    config = {"decoder": "cad", "methods": [entry("zerotuning")]}
    options = {"context": lambda ids: (torch.arange(ids.shape[1]) == context).expand_as(ids)}
    new = torch.tensor([[0, 0, 40, 41, 42], [50, 51, 52, 53, 54]])
    with sightline.attach(case.model, config, calibration=calibration(case), **options):
        ids, mask, steps = first["input_ids"], first["attention_mask"], []
        for _ in range(3):
            expected = generate(case.model, {"input_ids": ids, "attention_mask": mask, **_pictures(first)})
            said = _say(case, first, steps)
            assert torch.equal(said.sequences[:, ids.shape[1] :], expected.tokens)
            mask = torch.cat([mask, mask.new_ones(len(ids), NEW), (new > 0).long()], dim=1)
            ids = torch.cat([said.sequences, new], dim=1)
            steps.append({"input_ids": ids, "attention_mask": mask})


def _say(case: tiny.TinyCase, first: Any, steps: list[Any]) -> Any:
    """The answer to the last of some turns, each on the cache of the one before."""
    how = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    said = case.model.generate(**first, **how)
    for given in steps:
        said = case.model.generate(**given, past_key_values=said.past_key_values, **how)
    return said


def test_a_second_turn_is_traced() -> None:
    talk = Talk("llava_gqa", True)
    with attached(talk, {"methods": [entry("zerotuning")]}, trace={"maps": True}) as plug:
        answer(talk, talk.whole(talk.say().sequences))
        expected, maps = plug.trace, plug.image_maps
        answer(talk, talk.turn(talk.say()))
        for mine, theirs in zip(plug.trace, expected, strict=True):
            assert mine["token"] == theirs["token"]
            assert [mine[name] for name in ("image", "query", "output", "entropy")] == pytest.approx(
                [theirs[name] for name in ("image", "query", "output", "entropy")], abs=1e-4
            )
        torch.testing.assert_close(plug.image_maps[0], maps[0], **TOLERANCE)


def test_answers_are_scored_behind_a_conversation() -> None:
    talk = Talk("llava_gqa", False)
    with attached(talk, {"decoder": "vcd"}):
        given = talk.whole(talk.say().sequences)
        first = sightline.score(talk.case.model, given, [[[5, 6, 7]]])
        answer(talk, talk.turn(talk.say()))
        assert sightline.score(talk.case.model, given, [[[5, 6, 7]]]) == first


@pytest.mark.parametrize("config", [{"methods": [entry("gift")]}, {"decoder": "vcd"}], ids=str)
def test_a_turn_may_come_without_the_tokens_before(config: dict[str, Any]) -> None:
    """With the mask of the whole conversation, as `generate` allows."""
    talk = Talk("llava_gqa", True)
    with attached(talk, config):
        expected = answer(talk, talk.turn(talk.say()))
        given = talk.turn(talk.say())
        assert_alike(answer(talk, {**given, "input_ids": given["input_ids"][:, talk.start :]}), expected)


def test_a_conversation_is_freed_with_its_cache() -> None:
    talk = Talk("llava_gqa", True)
    with attached(talk, {"decoder": "vcd"}) as plug:
        said = talk.case.model.generate(**talk.turn(talk.say()), max_new_tokens=2, return_dict_in_generate=True)
        assert plug.reading is not None
        kept = vars(plug.reading.conversation)
        assert len(kept["_pictures"]) == 2
        del said
        assert not any(kept[name] for name in ("_ids", "_types", "_pictures"))


# --- what cannot be continued ----------------------------------------------------------------------------------------


def refuse(talk: Talk, given: dict[str, Any], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        generate(talk.case.model, given)


def test_another_conversation_than_the_cache_holds_is_refused() -> None:
    talk = Talk("llava_gqa", False)
    with attached(talk, {"methods": [entry("gift")]}):
        given = talk.turn(talk.say())
        given["input_ids"] = given["input_ids"].clone()
        given["input_ids"][0, talk.start - 1] += 1
        refuse(talk, given, f"first at token {talk.start - 1}.* without past_key_values")


def test_a_cropped_cache_is_refused() -> None:
    talk = Talk("llava_gqa", False)
    with attached(talk, {"methods": [entry("gift")]}):
        given = talk.turn(talk.say())
        given["past_key_values"].crop(-2)
        refuse(talk, given, "without past_key_values")


def test_pictures_of_earlier_turns_are_refused() -> None:
    talk = Talk("llava_gqa", False)
    with attached(talk, {"methods": [entry("gift")]}):
        refuse(talk, {**talk.turn(talk.say()), **_pictures(talk.first)}, "only the pictures of this turn|do not match")


def test_a_new_picture_of_qwen_is_refused() -> None:
    talk = Talk("qwen2_vl", True)
    with attached(talk, {"methods": [entry("gift")]}):
        refuse(talk, talk.turn(talk.say()), "positions of all pictures together.* without past_key_values")


@pytest.mark.parametrize("family", ["paligemma", "mllama"])
def test_families_whose_prompt_is_read_once_are_refused(family: str) -> None:
    talk = Talk(family, False)
    with sightline.attach(talk.case.model, {"methods": [entry("zerotuning")]}):
        refuse(talk, talk.turn(talk.say()), "without past_key_values")


def test_the_cache_of_a_beam_search_is_refused() -> None:
    talk = Talk("llava_gqa", False)
    with attached(talk, {"methods": [entry("gift")]}):
        said = talk.case.model.generate(**talk.first, max_new_tokens=NEW, num_beams=2, return_dict_in_generate=True)
        refuse(talk, talk.turn(said), "without past_key_values")


def test_the_strength_of_these_tests() -> None:
    """The second answer shows what a method does of it: under GIFT it differs from the plain one."""
    talk = Talk("llava_gqa", False)
    bare = answer(talk, talk.turn(talk.say()))
    with attached(talk, {"methods": [entry("gift", alpha=ALPHA)]}):
        assert not torch.allclose(answer(talk, talk.turn(talk.say())).logits, bare.logits, atol=1e-3)
