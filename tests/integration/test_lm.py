"""The lm-eval adapter: lm-eval's own numbers when plain, `sightline.score` and `generate` under a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sightline
from given import ENDINGS, FACTS, flat, two_processes
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.harness import engines
from sightline.benchmarks.harness.lm import SightlineLM, register
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.evaluate import ReplySettings, evaluate
from sightline.benchmarks.runner.plan import named
from sightline.common.errors import ConfigError

PAIRS = [(prompt, ending) for prompt, endings in ENDINGS for ending in endings]


def requests(rows: list[Any]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=row) for row in rows]


@pytest.fixture(scope="module")
def theirs(smollm2: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(smollm2[0], tokenizer=smollm2[1], batch_size=1)


def test_plain_answers_score_as_with_lm_evals_own_model(smollm2: Any, theirs: Any) -> None:
    ours = SightlineLM(smollm2[0], processor=smollm2[1], batch_size=3)
    rows = requests([*PAIRS, ("", "Better late than never."), (PAIRS[0][0] + " ", "fonder")])
    for mine, expected in zip(ours.loglikelihood(rows), theirs.loglikelihood(rows), strict=True):
        assert mine[0] == pytest.approx(expected[0], abs=2e-3)
        assert mine[1] == expected[1]


def test_plain_texts_score_and_continue_as_with_lm_evals_own_model(smollm2: Any, theirs: Any) -> None:
    ours = SightlineLM(smollm2[0], processor=smollm2[1], batch_size=2)
    texts = requests([(prompt,) for prompt, _ in ENDINGS[:3]])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=5e-3)
    asked = [(f"Context: {c}\nQuestion: {q}\nAnswer:", {"until": ["\n"], "max_gen_toks": 6}) for c, q, _, _ in FACTS]
    assert ours.generate_until(requests(asked)) == theirs.generate_until(requests(asked))


def test_a_long_context_loses_its_beginning(smollm2: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    rows = requests([(PAIRS[0][0] * 4, " fonder."), ("Better late than", " never.")])
    ours, theirs = (
        kind(smollm2[0], **{name: smollm2[1]}, max_length=20, batch_size=1)
        for kind, name in ((SightlineLM, "processor"), (HFLM, "tokenizer"))
    )
    for mine, expected in zip(ours.loglikelihood(rows), theirs.loglikelihood(rows), strict=True):
        assert mine[0] == pytest.approx(expected[0], abs=2e-3)


def test_decore_scores_and_generates_what_it_does_outside(smollm2: Any, theirs: Any) -> None:
    """One prompt at a time, without padding, by the package's own functions."""
    net, tokenizer = smollm2
    ours = SightlineLM(net, "decore", processor=tokenizer, batch_size=3)
    found = ours.loglikelihood(requests(PAIRS))
    prompts = [f"Context: {c}\nQuestion: {q}\nAnswer:" for c, q, _, _ in FACTS]
    replies = ours.generate_until(requests([(prompt, {"until": [], "max_gen_toks": 6}) for prompt in prompts]))
    with sightline.attach(net, "decore", processor=tokenizer):
        for (mine, greedy), (prompt, ending) in zip(found, PAIRS, strict=True):
            inputs = tokenizer(prompt, return_tensors="pt")
            ((one,),) = sightline.score(net, inputs, [[tokenizer(ending, add_special_tokens=False)["input_ids"]]])
            assert mine == pytest.approx(one.logprob, abs=2e-3)
            assert greedy == one.greedy
        for reply, prompt in zip(replies, prompts, strict=True):
            inputs = tokenizer(prompt, return_tensors="pt")
            ids = net.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert reply == tokenizer.decode(ids, skip_special_tokens=True)
    plain = theirs.loglikelihood(requests(PAIRS))
    assert max(abs(mine - one) for (mine, _), (one, _) in zip(found, plain, strict=True) if mine > -1e9) > 0.05


@pytest.mark.parametrize("name", ["memotrap", "nqswap"])
def test_scores_equal_those_of_our_own_command(smollm2: Any, texts: Path, tmp_path: Path, name: str) -> None:
    source = DataSource(texts)
    benchmark, configs = suite.read(name, source), named(["decore"])
    settings = {"benchmark": benchmark, "source": source, "batch": 4}
    found = engines.run("lm-eval", *smollm2, configs, tmp_path / "harness", **settings)
    own = evaluate(benchmark, *smollm2, configs, tmp_path / "own", settings=ReplySettings(None, 4, 0))
    assert found is not None
    assert own is not None
    for entry in own["runs"]:
        expected = flat(entry, name, benchmark.columns)
        assert found["tasks"][f"sightline_{name}"][entry["name"]] == pytest.approx(expected)
    assert max(flat(own["runs"][0], name, benchmark.columns).values()) > 0


def test_two_processes_give_the_scores_of_one(smollm2: Any, texts: Path, tmp_path: Path) -> None:
    source = DataSource(texts, 3)
    benchmark = suite.read("nqswap", source)
    one = engines.run("lm-eval", *smollm2, named(["decore"]), tmp_path / "one", benchmark=benchmark, source=source)
    two_processes("lm-eval", "nqswap", "smollm2", "decore", texts, "3", tmp_path / "two")
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert one is not None
    assert two["tasks"] == one["tasks"]


def test_a_task_of_lm_eval_reads_local_data(smollm2: Any, tmp_path: Path) -> None:
    """Asked by lm-eval, answered by lm-eval's own model and by ours."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": question, "mc1_targets": {"choices": [right, wrong], "labels": [1, 0]}}
        for question, right, wrong in [
            ("What is two and two?", "Four", "Purple of of"),
            ("Where is Paris?", "Nowhere of of to", "In France"),
            ("Who wrote Hamlet?", "William Shakespeare", "A a a the"),
        ]
    ]
    (tmp_path / "truthfulqa_mc1.json").write_text(json.dumps(rows))
    found = engines.run("lm-eval", *smollm2, {}, tmp_path / "out", tasks=["truthfulqa_mc1"], data=tmp_path)
    manager = TaskManager(include_path=str(tmp_path / "out" / "tasks"), include_defaults=False)
    model = HFLM(smollm2[0], tokenizer=smollm2[1], batch_size=1)
    expected = simple_evaluate(model, tasks=["truthfulqa_mc1_local"], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    assert (
        found["tasks"]["truthfulqa_mc1_local"]["plain"]["acc"]
        == expected["results"]["truthfulqa_mc1_local"]["acc,none"]
    )
    assert expected["results"]["truthfulqa_mc1_local"]["acc,none"] == pytest.approx(2 / 3)


def test_lm_eval_finds_the_registered_model(smollm2: Any) -> None:
    from lm_eval.api.registry import get_model

    register()
    register()  # twice does no harm
    assert get_model("sightline") is SightlineLM
    with pytest.raises(ConfigError, match="batch_size"):
        SightlineLM(smollm2[0], processor=smollm2[1], batch_size="auto")


def test_a_configuration_for_pictures_is_refused(smollm2: Any) -> None:
    model = SightlineLM(smollm2[0], "vhr", processor=smollm2[1])
    with pytest.raises(sightline.SightlineError, match="image"):
        model.loglikelihood(requests(PAIRS[:1]))
