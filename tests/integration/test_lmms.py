"""The lmms-eval adapter: the same scores as our own scorers and as lmms-eval's own model, on one process and on two."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sightline
from given import flat, two_processes
from PIL import Image
from sightline import testbed
from sightline.benchmarks.benchmark import Benchmark, DataSource
from sightline.benchmarks.harness import engines, offline
from sightline.benchmarks.harness.lmms import Sightline, SightlineChat
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.evaluate import ReplySettings, evaluate
from sightline.benchmarks.runner.plan import named
from sightline.common.errors import ConfigError, DataError, SightlineError, UnsupportedModelError

BARE = {"lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}}}
FIRST_WORD = [{"function": "regex", "regex_pattern": "(Yes|No)"}, {"function": "take_first"}]
WORD = {
    "filter_list": [{"name": "word", "filter": FIRST_WORD}]
}  # the testbed's model says "Yes.", lmms-eval wants "Yes"


def read(name: str, limit: int) -> tuple[Benchmark, DataSource]:
    source = DataSource(None, limit, seed=3)
    return suite.read(name, source), source


def test_lmms_eval_finds_the_model_by_its_entry_point() -> None:
    from lmms_eval.models import get_model

    assert get_model("sightline") is SightlineChat
    assert get_model("sightline", force_simple=True) is Sightline


@pytest.mark.parametrize(("name", "limit", "simple"), [("pope", 12, False), ("chair", 20, False), ("chair", 7, True)])
def test_scores_equal_those_of_our_own_command(
    embedded: Any, tmp_path: Path, name: str, limit: int, simple: bool
) -> None:
    benchmark, source = read(name, limit)
    configs = named(["vhr"])
    settings = {"benchmark": benchmark, "source": source, "batch": 8, "simple": simple}
    found = engines.run("lmms-eval", *embedded, configs, tmp_path / "harness", **settings)
    own = evaluate(benchmark, *embedded, configs, tmp_path / "own", settings=ReplySettings(None, 8, 0))
    assert found is not None
    assert own is not None
    scores = found["tasks"][f"sightline_{name}"]
    assert scores["plain"] != scores["vhr"]
    for entry in own["runs"]:
        assert scores[entry["name"]] == pytest.approx(flat(entry, name, benchmark.columns), abs=1e-12)


def test_two_processes_give_the_scores_of_one(embedded: Any, tmp_path: Path) -> None:
    source = DataSource(None, 7)  # an odd number: one process pads
    benchmark = suite.read("chair", source)
    one = engines.run("lmms-eval", *embedded, named(["vhr"]), tmp_path / "one", benchmark=benchmark, source=source)
    two_processes("lmms-eval", "chair", "embedded", "vhr", "testbed", "7", tmp_path / "two")
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert one is not None
    assert two["tasks"]["sightline_chair"] == one["tasks"]["sightline_chair"]


@pytest.mark.parametrize("cls", [Sightline, SightlineChat])
def test_lmms_evals_own_llava_gives_the_same_captions(embedded: Any, tmp_path: Path, cls: Any) -> None:
    """`base=llava_hf`: another class loads the model and writes the prompts, one at a time."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    benchmark, source = read("chair", 5)
    offline.benchmark_task("lmms-eval", benchmark, source, tmp_path)
    weights = Path(testbed.__file__).parent / "weights"
    said = {}
    for config in (None, "vhr"):
        given = f"base=llava_hf,pretrained={weights},device_map=cpu" + (f",config={config}" if config else "")
        theirs = cls.create_from_arg_string(given, {"batch_size": 1, "device": "cpu"})
        ours = cls(embedded[0], config, processor=embedded[1], batch_size=4)
        assert type(theirs).__module__.startswith("lmms_eval.")
        captions = []
        for model in (theirs, ours):
            manager = TaskManager("ERROR", include_path=str(tmp_path), include_defaults=False)
            found = simple_evaluate(model, tasks=["sightline_chair"], task_manager=manager, bootstrap_iters=0)
            captions.append([one["resps"][0][0] for one in found["samples"]["sightline_chair"]])
        assert [one.strip() for one in captions[0]] == captions[1]
        said[config] = captions[1]
    assert said[None] != said["vhr"]


def answers(model: Any, benchmark: Benchmark) -> list[str]:
    """Replies one at a time, the testbed's own prompt, without any adapter."""
    net, processor = model
    replies = []
    for sample in benchmark.samples:
        prompt = testbed.prompt(processor, sample.text)
        inputs = processor(images=sample.image, text=prompt, return_tensors="pt")
        ids = net.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        replies.append(processor.decode(ids, skip_special_tokens=True))
    return replies


@pytest.mark.parametrize("form", ["parquet", "json", "jsonl", "disk", "hub"])
def test_their_pope_reads_local_data(embedded: Any, tmp_path: Path, form: str) -> None:
    import datasets

    benchmark, _ = read("pope", 3)
    facts = [benchmark.truth(n) for n in range(len(benchmark.samples))]
    rows = [
        {"question_id": n, "question": sample.text, "answer": fact["label"], "image": sample.image}
        for n, (sample, fact) in enumerate(zip(benchmark.samples, facts, strict=True))
    ]
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    if form.startswith("json"):
        for number, row in enumerate(rows):
            row["image"].save(data / "images" / f"{number}.png")
            row["image"] = f"images/{number}.png"
        lines = "\n".join(map(json.dumps, rows))
        (data / f"pope.{form}").write_text(lines if form == "jsonl" else json.dumps(rows))
    else:
        kept = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        if form == "disk":
            datasets.DatasetDict({"test": kept}).save_to_disk(data)
        else:
            (data / "pope" / "data").mkdir(parents=True)
            kept.to_parquet(data / ("pope.parquet" if form == "parquet" else "pope/data/test-00000-of-00001.parquet"))
    out = tmp_path / "out"
    found = engines.run("lmms-eval", *embedded, {}, out, tasks=["pope"], data=data, changes=BARE | WORD)
    assert found is not None
    scores = found["tasks"]["pope_local"]["plain"]
    replies = answers(embedded, benchmark)
    right = [reply.strip().lower().startswith(fact["label"]) for reply, fact in zip(replies, facts, strict=True)]
    assert 0 < sum(right) < len(right)
    assert scores["pope_accuracy,word"] == pytest.approx(sum(right) / len(right))


def test_a_group_gives_its_tasks(tmp_path: Path) -> None:
    import datasets

    row = {"question_id": 1, "question": "Is there a dog?", "answer": "no", "image": Image.new("RGB", (8, 8))}
    kept = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image())
    for split in ("adversarial", "popular", "random"):
        kept.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    names = offline.local_task("lmms-eval", "pope_full", tmp_path, tmp_path / "tasks")
    assert sorted(names) == ["pope_adv_local", "pope_pop_local", "pope_random_local"]


def request(model: Any, doc: dict[str, Any], **options: Any) -> SimpleNamespace:
    """A request as lmms-eval makes it; the document goes where it puts it."""
    documents = model.task_dict.setdefault("t", {}).setdefault("test", [])
    documents.append(doc)
    if model.is_simple:
        return SimpleNamespace(args=(doc["text"], options, lambda d: d["images"], len(documents) - 1, "t", "test"))

    def messages(d: dict[str, Any]) -> list[dict[str, Any]]:
        shown = [{"type": "image", "url": image} for image in d["images"]]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": d["text"]}]}]

    return SimpleNamespace(args=(doc["text"], messages, options, len(documents) - 1, "t", "test"))


@pytest.mark.parametrize("cls", [Sightline, SightlineChat])
def test_replies_come_in_the_order_of_the_requests(embedded: Any, cls: Any) -> None:
    """Whatever the batches: prompts with and without pictures, of several lengths and settings, in any order."""
    shown = testbed.scenes("test", 3)
    docs = [({"text": testbed.question("dog"), "images": [scene.image]}, {"max_new_tokens": 4}) for scene in shown]
    docs += [({"text": testbed.CAPTION_PROMPT, "images": [scene.image]}, {"max_new_tokens": 20}) for scene in shown]
    docs += [({"text": testbed.question("cat"), "images": []}, {"max_new_tokens": 4})]
    random.Random(5).shuffle(docs)
    batched, single = (cls(embedded[0], "vhr", processor=embedded[1], batch_size=size) for size in (4, 1))
    together = batched.generate_until([request(batched, doc, **options) for doc, options in docs])
    alone = [single.generate_until([request(single, doc, **options)])[0] for doc, options in docs]
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in together}) > 3
    assert all(
        one.token_counts.output_tokens <= options["max_new_tokens"]
        for one, (_, options) in zip(together, docs, strict=True)
    )


def test_a_reply_ends_where_the_task_says(embedded: Any) -> None:
    model = SightlineChat(embedded[0], processor=embedded[1])
    doc = {"text": testbed.CAPTION_PROMPT, "images": [testbed.scene("test", 0).image]}
    (whole,) = model.generate_until([request(model, doc, max_new_tokens=30, until=[])])
    stop = whole.text.split()[4]
    (cut,) = model.generate_until([request(model, doc, max_new_tokens=30, until=["never there", stop])])
    assert cut.text == whole.text[: whole.text.index(stop)].strip()


def test_answers_are_scored_by_their_log_probability(embedded: Any) -> None:
    """lmms-eval wants mean losses, the smallest wins: as cross entropy of a forward pass says."""
    import torch

    net, processor = embedded
    model = Sightline(net, processor=processor, batch_size=3)
    picture = testbed.scene("test", 1).image
    requests = []
    for answer in ("Yes.", "No.", "There is a dog"):
        requests.append(request(model, {"text": testbed.question("dog"), "images": [picture]}))
        text, _, shown, number, task, split = requests[-1].args
        requests[-1].args = (text, answer, shown, number, task, split)
    found = model.loglikelihood(requests)
    for (loss, likeliest), one in zip(found, requests, strict=True):
        prompt = processor(images=picture, text=testbed.prompt(processor, one.args[0]), return_tensors="pt")
        tail = processor.tokenizer(one.args[1], add_special_tokens=False, return_tensors="pt")["input_ids"]
        prompt["attention_mask"] = torch.cat([prompt["attention_mask"], torch.ones_like(tail)], 1)
        prompt["input_ids"] = torch.cat([prompt["input_ids"], tail], 1)
        with torch.no_grad():
            logits = net(**prompt).logits[0, -1 - tail.shape[1] : -1]
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, tail[0]).item(), abs=1e-4)
        assert likeliest == bool((logits.argmax(-1) == tail[0]).all())


def test_what_cannot_be_done_is_refused_in_a_line(embedded: Any, smollm2: Any, tmp_path: Path) -> None:
    net, processor = embedded
    benchmark, source = read("chair", 2)
    with pytest.raises(ConfigError, match="nothing to run"):
        engines.run("lmms-eval", net, processor, {}, tmp_path)
    with pytest.raises(ConfigError, match="limit the benchmark"):
        engines.run("lmms-eval", net, processor, {}, tmp_path, benchmark=benchmark, source=source, limit=1)
    with pytest.raises(ConfigError, match="--engine lmms-eval"):
        engines.run("lm-eval", net, processor, {}, tmp_path, benchmark=benchmark, source=source)
    with pytest.raises(ConfigError, match=r"no task 'poppe'.*pope"):
        engines.run("lmms-eval", net, processor, {}, tmp_path, tasks=["poppe"], data=tmp_path)
    with pytest.raises(DataError, match="no rows for pope"):
        engines.run("lmms-eval", net, processor, {}, tmp_path, tasks=["pope"], data=tmp_path)
    with pytest.raises(ConfigError, match="batch_size"):
        SightlineChat(net, processor=processor, batch_size="auto")
    (tmp_path / "pope.jsonl").write_text('{"question": "Is it?", "image": "lost.png"}\n')
    with pytest.raises(DataError, match=r"pope.jsonl, line 1: no picture .*lost.png"):
        engines.run("lmms-eval", net, processor, {}, tmp_path, tasks=["pope"], data=tmp_path)
    (tmp_path / "pope.jsonl").write_text('{"question": "Is it?"}\n{"question": "Is')
    with pytest.raises(DataError, match="line 2: not JSON"):
        engines.run("lmms-eval", net, processor, {}, tmp_path, tasks=["pope"], data=tmp_path)
    chat = SightlineChat(net, processor=processor)
    film = SimpleNamespace(
        args=("", lambda d: [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], {}, 0, "t", "test")
    )
    chat.task_dict["t"] = {"test": [{}]}
    with pytest.raises(UnsupportedModelError, match="shows video"):
        chat.generate_until([film])
    with pytest.raises(UnsupportedModelError, match="base="):
        chat.generate_until_multi_round([])
    blind = SightlineChat(smollm2[0], processor=smollm2[1])
    with pytest.raises(SightlineError, match="text only"):
        blind.generate_until([request(blind, {"text": "What?", "images": [Image.new("RGB", (8, 8))]})])


def test_the_model_is_left_as_it_was(embedded: Any) -> None:
    net, processor = embedded
    model = SightlineChat(net, "vhr", processor=processor)
    model.generate_until(
        [request(model, {"text": "What?", "images": [testbed.scene("test", 0).image]}, max_new_tokens=2)]
    )
    assert not getattr(net, "_sightline_host", None) or not net._sightline_host.plugs
    assert sightline.unwrap(net) is net


def test_a_text_model_answers_chat_tasks(smollm2: Any) -> None:
    net, tokenizer = smollm2
    model = SightlineChat(net, processor=tokenizer)
    (found,) = model.generate_until([request(model, {"text": "Say hello.", "images": []}, max_new_tokens=6)])
    turn = [{"role": "user", "content": "Say hello."}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = net.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert found.text == tokenizer.decode(said, skip_special_tokens=True).strip()
