"""The language-model evaluation: its questions, its scoring, its runner and its report, on a tiny model and on stand-ins."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from sightline.profiling.data import conflicts
from sightline.profiling.data.conflicts import SPLITS, Fact, QuestionPrompt, choices, facts, mention, normalise, says
from typer.testing import CliRunner

from studies import copies, instructions, language, language_report
from studies.language_sets import ChoiceSet, ReplySet, best_option, closed_book_set, question_sets, some
from tests.helpers import tiny

EVERY_FACT = [fact for split in SPLITS for fact in facts(split)]
EVERY_INSTRUCTION = [item for split in SPLITS for item in instructions.instructions(split)]
EVERY_COPY = [copy for split in SPLITS for copy in copies.copies(split)]


# --- the questions -----------------------------------------------------------------------------------------------


def test_the_sets_are_as_large_as_promised() -> None:
    test = {"facts": facts("test"), "copies": copies.copies("test")}
    picks = [choices("test", context=context) for context in (False, True)]
    assert len(test["facts"]) >= 300
    assert len({fact.relation for fact in test["facts"]}) >= 15
    assert len(test["copies"]) >= 120
    assert sum(map(len, picks)) >= 150
    assert min(map(len, picks)) >= 50


def test_splits_share_nothing_and_a_fact_keeps_its_split_in_every_set() -> None:
    names = {split: {fact.name for fact in facts(split)} for split in SPLITS}
    assert names["calibration"].isdisjoint(names["test"])
    assert len(names["calibration"]) + len(names["test"]) == len(EVERY_FACT) == len({fact.name for fact in EVERY_FACT})
    for split, context in itertools.product(SPLITS, (False, True)):
        questions = {(fact.open_book if context else fact.closed_book).user for fact in facts(split)}
        assert {choice.prompt.user for choice in choices(split, context=context)} <= questions
    texts = {split: {copy.name for copy in copies.copies(split)} for split in SPLITS}
    assert texts["calibration"].isdisjoint(texts["test"])


def test_a_context_states_the_substituted_answer_and_never_the_true_one() -> None:
    for fact in EVERY_FACT:
        context = f" {normalise(fact.context)} "
        assert f" {normalise(fact.swapped[0])} " in context, fact
        shown = context.replace(f" {normalise(fact.subject)} ", " ")  # Mexico's capital is Mexico City
        assert not any(f" {normalise(spelling)} " in shown for spelling in fact.true), fact
        assert 1 <= len(re.findall(r"\w\w[.?!](?: |$)|\b\w\.$", fact.context)) <= 3, fact
        assert "{" not in fact.context + fact.question + fact.opening


def test_no_answer_of_a_question_passes_for_another() -> None:
    for fact in EVERY_FACT:
        answers = [fact.true, fact.swapped, *fact.others]
        assert len(answers) == 4
        for one, other in itertools.permutations(answers, 2):
            assert not any(says(spelling, other) for spelling in one), fact


def test_substitutes_come_from_the_same_relation_and_vary() -> None:
    by_relation: dict[str, list[Fact]] = {}
    for fact in EVERY_FACT:
        by_relation.setdefault(fact.relation, []).append(fact)
    for group in by_relation.values():
        known = {fact.true for fact in group}
        assert all({fact.swapped, *fact.others} <= known for fact in group)
        assert len({fact.swapped for fact in group}) >= min(4, len(known))
    assert len({fact.context.replace(fact.subject, "").split()[0] for fact in EVERY_FACT}) > 5  # several frames


def test_choices_hold_the_right_option_where_they_say() -> None:
    by_question = {fact.question: fact for fact in EVERY_FACT}
    places, asked = [], []
    for split, context in itertools.product(SPLITS, (False, True)):
        for choice in choices(split, context=context):
            fact = by_question[choice.prompt.user.split("Question: ")[1]]
            right, other = (fact.swapped, fact.true) if context else (fact.true, fact.swapped)
            assert choice.options[choice.right] == right[0]
            assert other[0] in choice.options
            assert choice.memory == (choice.options.index(fact.true[0]) if context else -1)
            assert len(set(choice.options)) == 4
            places.append(choice.right)
            asked.append(fact.name)
    assert len(asked) == len(set(asked))  # no fact is asked in both forms
    assert all(places.count(place) > len(places) / 8 for place in range(4))


def test_copies_show_what_they_ask_for_and_differ_from_the_usual() -> None:
    assert {copy.form for copy in EVERY_COPY} == set(copies.FORMS)
    assert len({copy.prompt.user for copy in EVERY_COPY}) == len(EVERY_COPY)
    for copy in EVERY_COPY:
        assert copy.wanted in copy.prompt.user.split("\nQuestion:")[0]
        if copy.usual is not None:
            assert not says(copy.wanted, (copy.usual,))
            assert not says(copy.usual, (copy.wanted,))
        if copy.form == "list":
            wanted, usual = copy.wanted.split(", "), str(copy.usual).split(", ")
            assert sorted(wanted) == sorted(usual)
            moved = [place for place in range(len(usual)) if wanted[place] != usual[place]]
            assert moved in ([1, 2], [2, 3])


def test_prompts_with_a_context_carry_the_marks_that_cad_looks_for() -> None:
    for prompt in [fact.open_book for fact in EVERY_FACT] + [copy.prompt for copy in EVERY_COPY]:
        assert prompt.user.startswith("Context: ")
        assert prompt.user.count("Context:") == prompt.user.count("\nQuestion:") == prompt.user.count("Question:") == 1


def test_the_draws_are_the_same_everywhere() -> None:
    """Spelled out, so that neither the hash seed of a process nor a change of the draws goes unnoticed."""
    fact = next(fact for fact in facts("calibration") if fact.name == "capital/France")
    assert fact.context == (
        "The following note comes from a travel diary. Moscow is the capital city of France. Nothing else was written on "
        "that page."
    )
    assert fact.closed_book == QuestionPrompt("Question: What is the capital of France?", "The capital of France is")
    record = next(copy for copy in copies.copies("calibration") if copy.name == "record/3")
    assert record.wanted == "Loryor Rovjul, room 115, born 1825, 22 points"


# --- what a reply says -------------------------------------------------------------------------------------------

GOLD = Fact("symbol", "gold", "?", "!", "Gold is Fe.", ("Au",), ("Fe", "Ferrum"), (("Pb",), ("Hg",)))


@pytest.mark.parametrize(
    ("reply", "context", "memory", "mentioned"),
    [
        (" Fe.", True, False, True),
        (" the FERRUM, as the text says", True, False, True),
        (" Au, not Fe.", False, True, False),
        (" said to be Fe rather than Au", False, False, True),
        (" unknown.\nFe", False, False, False),
        (" unknown. It may be Fe", False, False, False),
        (" Feldspar", False, False, False),
        ("", False, False, False),
    ],
)
def test_verdict(reply: str, context: bool, memory: bool, mentioned: bool) -> None:
    found = conflicts.verdict(reply, GOLD)
    assert found == {
        "context": context,
        "memory": memory,
        "neither": not (context or memory),
        "mentioned": mentioned,
    }


def test_normalise_drops_case_punctuation_and_articles() -> None:
    assert normalise("  The H.G. Wells-novel, a “classic”!\n") == "hg wells novel classic"
    assert says("An Anatolian cat", ("anatolian",))
    assert mention("Probably J. J. Thomson did. Later: Bohr", ("Bohr",)) is None


@pytest.mark.parametrize(("limit", "kept"), [(None, 10), (20, 10), (10, 10), (4, 4), (3, 3), (1, 1)])
def test_a_limit_spreads_over_the_items(limit: int | None, kept: int) -> None:
    items = list(range(10))
    chosen = some(items, limit)
    assert len(chosen) == kept
    assert chosen == sorted(set(chosen))
    assert kept == 1 or chosen[-1] >= 6


def test_copy_verdict_wants_every_word_in_order() -> None:
    copy = copies.Copy("list", "x", QuestionPrompt("", ""), "one, three, two", "one, two, three")
    assert copies.verdict(" One, three, two. And so on", copy) == {"exact": True, "memory": False}
    assert copies.verdict(" one, two, three", copy) == {"exact": False, "memory": True}
    assert copies.verdict(" one, three", copy) == {"exact": False, "memory": False}


REPLIES = [  # form, a reply that keeps to it, one that nearly does
    ("capitals", "THE CAPITAL IS OSLO.", "THE CAPITAL IS Oslo."),
    ("small letters", "the capital is oslo.", "The capital is oslo."),
    ("first word", '"{word}: Oslo."', "Oslo, {word}."),
    ("last words", "Oslo. {closing}", "{closing} Oslo."),
    ("with a word", "Oslo, my {word}.", "Oslo, my {word}s."),
    ("quoted", '"It is Oslo."', '"It is" Oslo.'),
    ("short", "It is Oslo, a town in Norway.", "It is Oslo, a town in Norway, up north."),
    ("numbered", "1. Oslo\n2. Norway", "1. Oslo\n3. Norway"),
    ("twice", "It is Oslo. It is Oslo!", "It is Oslo. It is in Norway."),
    ("exclaimed", "It is Oslo!!!", "It is Oslo!!!!"),
]


@pytest.mark.parametrize(("form", "kept", "missed"), REPLIES)
def test_a_reply_keeps_to_its_instruction_or_does_not(form: str, kept: str, missed: str) -> None:
    item = next(one for one in EVERY_INSTRUCTION if one.form == form)
    told = re.findall(r'"([^"]+)"', item.text)
    texts = [text.format(word=(told or [""])[0], closing=(told or [""])[0]) for text in (kept, missed, "")]
    assert [instructions.verdict(text, item)["followed"] for text in texts] == [True, False, False]


def test_an_instructed_reply_is_right_where_it_names_the_answer_anywhere() -> None:
    item = next(one for one in EVERY_INSTRUCTION if one.fact.name == "capital/France" or one.fact.true == ("Paris",))
    assert instructions.verdict("SO IT IS PARIS.", item)["right"]
    assert not instructions.verdict("Parisian.", item)["right"]


def test_every_fact_is_instructed_once_and_every_form_is_met_in_both_splits() -> None:
    for split in SPLITS:
        told = instructions.instructions(split)
        assert [item.fact for item in told] == facts(split)
        assert {item.form for item in told} == set(instructions.FORMS)
        assert all(item.prompt.user.startswith("Instruction: ") and "\nTask: " in item.prompt.user for item in told)


def test_choice_outcomes_use_sum_and_mean_and_no_ruled_out_option() -> None:
    asked = [conflicts.MultipleChoice(QuestionPrompt("", ""), ("a", "b", "c"), right=1, memory=0)]
    questions = ChoiceSet("x", asked, has_context=True)
    sums, means = [-4.0, -5.0, -6.0], [-2.0, -1.0, -3.0]
    assert questions.outcomes(0, (sums, means)) == {"accuracy": False, "normalised": True, "memory": True}
    ruled_out = [-torch.inf] * 3
    assert best_option(ruled_out) is None
    assert not any(questions.outcomes(0, (ruled_out, ruled_out)).values())


# --- the runner, on a tiny model -----------------------------------------------------------------------------------


class Tokenizer:
    """A character tokenizer with a chat template of angle brackets; it pads on the side that it is told."""

    padding_side = "right"
    chat_template, bos_token, pad_token = "<{role}>{content}", None, "<pad>"

    def apply_chat_template(self, turns: list[dict[str, str]], add_generation_prompt: bool, tokenize: bool) -> str:
        assert add_generation_prompt
        assert not tokenize
        return "".join(f"<{turn['role'][0]}>{turn['content']}" for turn in turns) + "<a>"

    def __call__(self, text: Any, **_: Any) -> Any:
        if isinstance(text, str):
            return {"input_ids": self._ids(text)}
        rows = [self._ids(one) for one in text]
        width = max(map(len, rows))
        assert self.padding_side == "left"
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return Batch(input_ids=ids, attention_mask=(ids > 0).long())

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(chr(96 + i % 26 + 1) for i in row) for row in ids.tolist()]

    @staticmethod
    def _ids(text: str) -> list[int]:
        return [ord(c) % 40 + 20 for c in text]


def test_a_prompt_ends_with_the_beginning_of_the_reply() -> None:
    assert language.rendered(Tokenizer(), QuestionPrompt("Who?", "It was")) == "<s>Answer briefly.<u>Who?<a>It was"


class Batch(dict[str, Any]):
    def to(self, device: Any) -> Batch:
        return Batch({name: value.to(device) for name, value in self.items()})


class Echo:
    """Answers each prompt with its own length, shifted by what is attached; remembers the batches."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shift = 0
        self.batches: list[tuple[int, int]] = []

    def generate(self, input_ids: Any, attention_mask: Any, max_new_tokens: int, do_sample: bool) -> torch.Tensor:
        assert not do_sample
        self.batches.append((self.shift, len(input_ids)))
        return torch.cat([input_ids, attention_mask.sum(-1, keepdim=True) + 1000 * self.shift], dim=1)


class EchoTokenizer(Tokenizer):
    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [str(int(row[0])) for row in ids]


@contextmanager
def shift(model: Echo, config: dict[str, Any], processor: Any) -> Iterator[None]:
    assert isinstance(processor, Tokenizer)
    model.shift = config["shift"]
    try:
        yield
    finally:
        model.shift = 0


def length_set(name: str = "lengths", letter: str = "x") -> ReplySet:
    """Prompts of unordered lengths; `right`: the reply is the prompt's length plus 1000."""
    prompts = [QuestionPrompt(letter * size, "y") for size in (30, 4, 17, 9, 22)]
    widths = [len(language.rendered(Tokenizer(), prompt)) for prompt in prompts]
    group = {"all": [True] * 5, "long": [True, False, False, False, True]}
    judge = lambda number, reply: {"right": reply == str(widths[number] + 1000), "plain": int(reply) < 1000}  # noqa: E731
    return ReplySet(name, prompts, group, [5] * 5, judge)


def test_answers_come_back_in_the_order_of_the_prompts_and_batches_alternate() -> None:
    model, advanced = Echo(), []
    configs: dict[str, Any] = {"right": {"shift": 1}, "wrong": {"shift": 2}}
    questions = length_set()
    runs = language.run(model, EchoTokenizer(), [questions], configs, batch=2, attach=shift, advance=advanced.append)
    assert [item.name for item in runs] == ["plain", "right", "wrong"]
    assert advanced == ["plain", "right", "wrong"] * 3
    assert len(advanced) == language.calls([questions], configs, 2)
    assert model.batches == [(0, 2)] + [(s, rows) for rows in (2, 2, 1) for s in (0, 1, 2)]  # the first is the warm-up
    plain, right, _ = language.results(runs, [questions])
    assert plain["scores"]["lengths"] == {
        "all": {"n": 5, "right": 0.0, "plain": 1.0},
        "long": {"n": 2, "right": 0.0, "plain": 1.0},
    }
    assert right["scores"]["lengths"]["all"] == {"n": 5, "right": 1.0, "plain": 0.0}
    change = right["differences"]["lengths"]["all"]["right"]
    assert (change["value"], change["interval"], change["p"]) == (1.0, (1.0, 1.0), 2 * 0.5**5)
    assert set(right["time_ratio"]) == set(right["seconds"]) == {"lengths"}
    assert right["time_ratio"]["lengths"] > 0


def test_a_configuration_is_not_asked_where_the_passage_that_it_looks_for_is_missing() -> None:
    configs: dict[str, Any] = {
        "cad": {"decoder": {"cad": {"begin": "xx"}}, "shift": 1},
        "dola": {"decoder": {"dola": {}}, "shift": 2},
        "pasta": {"methods": ["vhr", {"pasta": {"begin": "zz"}}], "shift": 3},
    }
    sets = [length_set(), length_set("bare", "z")]
    advanced: list[str] = []
    runs = language.run(Echo(), EchoTokenizer(), sets, configs, attach=shift, advance=advanced.append)
    both = {"lengths", "bare"}
    assert [set(item.answers) for item in runs] == [both, {"lengths"}, both, {"bare"}]
    assert len(advanced) == language.calls(sets, configs) == 6
    assert set(language.results(runs, sets)[1]["scores"]) == {"lengths"}


def test_a_batch_gives_the_replies_and_choices_of_single_prompts() -> None:
    model = tiny.get("llama").model
    sets = question_sets("test", [True] * len(some(facts("test"), 5)), 5)
    assert all(3 <= len(questions.prompts) <= 5 for questions in sets)
    together, alone = (language.run(model, Tokenizer(), sets, {"empty": {}}, batch=batch)[1] for batch in (3, 1))
    for questions in sets:
        assert [len(reply) for reply in alone.answers[questions.name]] == (
            questions.lengths if isinstance(questions, ReplySet) else [2] * len(questions.prompts)
        )
        for one, other in zip(together.answers[questions.name], alone.answers[questions.name], strict=True):
            if isinstance(questions, ReplySet):
                assert one[: len(other)] == other  # a batch runs on until its longest reply is done
            else:
                torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)


def test_choices_are_scored_as_a_plain_forward_pass_scores_them() -> None:
    model, tokenizer = tiny.get("llama").model, Tokenizer()
    choice = choices("test", context=True)[0]
    runs = language.run(model, tokenizer, [ChoiceSet("x", [choice], True)], {})
    sums, means = runs[0].answers["x"][0]
    prompt = tokenizer._ids(language.rendered(tokenizer, choice.prompt))
    for option, total, mean in zip(choice.options, sums, means, strict=True):
        tail = tokenizer._ids(f" {option}")
        with torch.no_grad():
            chances = model(torch.tensor([prompt + tail])).logits[0].log_softmax(-1)
        expected = sum(float(chances[len(prompt) - 1 + i, token]) for i, token in enumerate(tail))
        assert total == pytest.approx(expected, abs=1e-3)
        assert mean == pytest.approx(expected / len(tail), abs=1e-3)


def test_closed_book_marks_what_plain_answers() -> None:
    known = facts("test")[:6]

    class Scholar(Echo):
        def generate(self, **inputs: Any) -> torch.Tensor:
            ids = inputs["input_ids"]
            return torch.cat([ids, torch.arange(len(ids))[:, None]], dim=1)

    class Reader(Tokenizer):
        def __call__(self, text: Any, **more: Any) -> Any:
            self.texts = text
            return super().__call__(text, **more)

        def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
            by_text = {fact.closed_book.user: fact.true[-1] for fact in known[::2]}
            return [next((a for q, a in by_text.items() if q in text), "unheard of") for text in self.texts]

    assert all(not prompt.user.startswith("Context") for prompt in closed_book_set(known).prompts)
    assert language.closed_book(Scholar(), Reader(), known, batch=4) == [True, False] * 3


# --- statistics, report, command ----------------------------------------------------------------------------------


def _entry(name: str, right: float, skipped: str = "") -> dict[str, Any]:
    """A run whose scores are all `right`, but for copies, where they are half of it."""
    entry: dict[str, Any] = {"name": name, "config": {}}
    entry |= {part: {} for part in ("scores", "intervals", "differences", "time_ratio")}
    for part in language_report.PARTS:
        if part.questions == skipped:
            continue
        value = right / 2 if part.questions == "copies" else right
        for group in (part.group, *part.forms):
            values = dict.fromkeys(part.scores, value)
            spans = dict.fromkeys(part.scores, (value - 0.1, value + 0.1))
            changes = {score: {"value": 0.125, "interval": (-0.25, 0.5), "p": 0.0625} for score in part.scores}
            entry["scores"].setdefault(part.questions, {})[group] = {"n": 8, **values}
            entry["intervals"].setdefault(part.questions, {})[group] = spans
            entry["differences"].setdefault(part.questions, {})[group] = changes
        entry["time_ratio"][part.questions] = 1.25
    return entry


def test_the_page_shows_scores_in_percent_and_dashes_where_a_run_was_not_asked() -> None:
    runs = [_entry("plain", 0.4), _entry("cad", 0.8, skipped="choices closed-book")]
    facts_of = {"model": "m", "split": "test", "batch": 16, "command": "run", "versions": {"torch": "9"}}
    page = language_report.markdown({"runs": runs, "hashes": {"model": "f" * 64}, **facts_of})
    assert language_report.faith(runs[1]) == pytest.approx((0.8 + 0.4 + 0.8) / 3)
    assert "| cad | 80.0 | 40.0 | 80.0 | – | 80.0 | 80.0 | 80.0 | 66.7 | 1.2 to 1.2 |" in page
    assert "| cad | 40.0 (30 to 50) | 40.0 (30 to 50) | +12.5 (-25.0 to +50.0) | 0.062 | 1.25 |" in page
    assert "| plain | 40.0 (30 to 50) | 40.0 (30 to 50) |  |  | 1.25 |" in page
    assert "| cad | – | – | – | – | – |" in page
    assert "Made by `run` with torch 9. SHA-256: model ffffffffffff." in page
    assert len(language_report.tables({"runs": runs})) == len(language_report.PARTS) + 3


def test_a_page_of_some_sets_sums_those_up() -> None:
    """The mean needs the three sets that ask for faith in a context, and no other."""
    sets = ["conflicts", "copies", "choices with context", "choices closed-book"]
    runs = [_entry("plain", 0.4), _entry("cad", 0.8)]
    for entry in runs:
        for part in ("scores", "intervals", "differences", "time_ratio"):
            entry[part] = {name: entry[part][name] for name in sets}
    first = language_report.tables({"runs": runs})[0]
    assert [column.header for column in first.columns] == ["run", *sets, "mean of the first three", "time"]
    del runs[0]["scores"]["copies"]
    assert language_report.tables({"runs": runs})[0].title != "Summary"


def _measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> Any:
    tokenizer = Tokenizer()
    model = tiny.fresh("llama").model
    monkeypatch.setattr("sightline.models.loading.load_model", lambda name: (model, tokenizer))
    suite = tmp_path / "suite.yaml"
    suite.write_text('nothing: {}\n"empty | too": {methods: []}\n')
    app = typer.Typer()
    app.command()(language.main)
    return CliRunner().invoke(app, ["--suite", str(suite), *options])


def test_the_command_writes_tables_results_and_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("page.md", "result.json", "answers.json")}
    options = ["--limit", "3", "--out", str(files["page.md"]), "--json", str(files["result.json"])]
    done = _measured(monkeypatch, tmp_path, *options, "--answers", str(files["answers.json"]))
    assert done.exit_code == 0, done.output
    result = json.loads(files["result.json"].read_text())
    assert [entry["name"] for entry in result["runs"]] == ["plain", "nothing", "empty | too"]
    plain, same = result["runs"][0], result["runs"][1]
    assert plain["scores"] == same["scores"]
    assert same["differences"]["copies"]["all"]["exact"] == {"value": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    assert set(result["hashes"]) == {"model", "questions", "suite", "calibration"}
    assert result["command"].startswith("python -m studies.language")
    page = files["page.md"].read_text()
    blocks = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    assert len(blocks) == len(language_report.PARTS) + 3  # the summary, copies and instructions by form
    for block in blocks:  # every row of a table has as many cells as its head
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert page.count("\n## ") == len(blocks) + 1  # and the configurations
    answers = json.loads(files["answers.json"].read_text())
    assert 7 * 2 <= len(answers) <= 7 * 3
    assert all(set(one["answers"]) == {"plain", "nothing", "empty | too"} for one in answers)


def test_recall_alone_is_that_of_the_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        language, "closed_book", lambda model, tokenizer, facts, batch: [fact.name < "m" for fact in facts]
    )
    done = _measured(monkeypatch, tmp_path, "--limit", "30", "--closed-book")
    chosen = some(facts("test"), 30)
    assert done.output == f"{sum(fact.name < 'm' for fact in chosen)} of {len(chosen)} facts\n"


def test_bad_requests_end_with_one_line_and_status_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for options, word in ((["--split", "train"], "calibration"), (["--suite", str(tmp_path / "no.yaml")], "no.yaml")):
        done = _measured(monkeypatch, tmp_path, *options)
        assert done.exit_code == 2
        assert re.fullmatch(r"error: .+\n", done.output)
        assert word in done.output
