"""The bench on a tiny random-weight LLaVA with the real plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
from sightline.benchmarks.speed import bench as speed
from sightline.benchmarks.speed import shapes
from sightline.common.errors import ConfigError, SightlineError


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other; a tiny model needs one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> str:
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 32064,
    }
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setitem(shapes.SHAPES, "tiny", {"text": text, "vision": vision})
    monkeypatch.setattr(shapes, "IMAGE_SIZE", 112)
    return "tiny"


def test_bench_measures_both_phases(tiny: str) -> None:
    told: list[tuple[str, int]] = []
    result = speed.bench(
        tiny, ["vhr", "var", "gift"], new_tokens=4, batch=2, repeats=2, advance=lambda *call: told.append(call)
    )
    names = ["plain", "vhr", "var", "gift"]
    assert [(row["name"], row["phase"]) for row in result["rows"]] == [
        (name, phase) for name in names for phase in ("prefill", "decode")
    ]
    for row in result["rows"]:
        ratio = row["ratio"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert row["plain_ms"] > 0
        assert row["ms"] > 0
        assert row["peak_mb"] is None or row["peak_mb"] > 0
    assert told == [(told[k][0], 15) for k in range(15)]  # five runs a round, and one round to warm up
    model = result["model"]
    assert (model["image_tokens"], model["prompt_tokens"], model["weights"]) == (64, 104, "random")
    assert {"command", "versions", "batch", "new_tokens", "threads"} <= set(result)
    json.dumps(result)


def test_bench_measures_the_trace(tiny: str) -> None:
    """With methods or none; what has it in its name is traced, the rest is not."""
    plugs: list[sightline.Plug] = []

    def attach(*arguments: Any, **options: Any) -> sightline.Plug:
        plugs.append(sightline.attach(*arguments, **options))
        return plugs[-1]

    result = speed.bench(tiny, ["trace", "vhr", "vhr+trace"], new_tokens=4, batch=2, repeats=1, attach=attach)
    assert [row["name"] for row in result["rows"][::2]] == ["plain", "trace", "vhr", "vhr+trace"]
    # The second round runs them in order.
    tables = []
    for plug in plugs[-3:]:
        try:
            tables.append(len(plug.trace))
        except ConfigError:
            tables.append(None)
    assert tables == [8, None, 8]


def test_planted_sinks_fire(tiny: str) -> None:
    subject = shapes.build(tiny, batch=1)
    share = float(subject.facts["sinks"].split("lets ")[1].split(" %")[0])
    assert 1 < share < 6
    assert subject.calibration["gaze"]["enhanced_layers"] == [2, 3]
    assert subject.calibration["visual_heads"]["layers"] == [1, 4, 5, 3] or set(
        subject.calibration["visual_heads"]["layers"]
    ) == {1, 4, 5, 3}


def test_published_layers_for_the_7b_shape() -> None:
    """The proportions give the published LLaVA-1.5-7B layers at 32 layers."""
    layers = 32
    assert round(11 / 32 * layers) == 11
    assert list(range(round(12 / 32 * layers), round(23 / 32 * layers))) == list(range(12, 23))
    assert [1, *range(layers - round(14 / 32 * layers), layers)] == [1, *range(18, 32)]


def test_ratios_are_taken_within_a_round() -> None:
    def sample(ms: float) -> speed.Timing:
        return speed.Timing({"prefill": ms, "decode": ms / 10}, {"prefill": 5.0, "decode": None})

    rounds = [
        {"plain": sample(99), "plain again": sample(101), "x": sample(110)},
        {"plain": sample(200), "plain again": sample(200), "x": sample(300)},  # the machine slowed down
        {"plain": sample(100), "plain again": sample(100), "x": sample(120)},
    ]
    plain, _, row, decode = speed.rows(rounds, ["plain", "x"])
    assert row["ratio"] == pytest.approx({"min": 1.1, "median": 1.2, "max": 1.5})
    assert (row["plain_ms"], row["ms"], row["peak_mb"]) == (100, 120, 5.0)
    assert decode["peak_mb"] is None
    assert plain["ratio"] == pytest.approx({"min": 1.0, "median": 1.0, "max": 101 / 99})


def test_methods_entries(tmp_path: Path) -> None:
    assert speed.configuration("vhr+gift") == {"methods": [{"vhr": {}}, {"gift": {}}]}
    file = tmp_path / "c.yaml"
    file.write_text("methods: []")
    assert speed.configuration(str(file)) == str(file)
    assert speed.configuration("trace") == {"methods": []}
    assert speed.configuration("vhr+trace") == {"methods": [{"vhr": {}}]}
    for wrong in ("a++b", str(tmp_path / "none.yaml")):
        with pytest.raises(ConfigError):
            speed.configuration(wrong)
    with pytest.raises(ConfigError, match="nothing to measure"):
        speed.bench("tiny", [])
    with pytest.raises(ConfigError, match="at least 2"):
        speed.bench("tiny", ["vhr"], new_tokens=1)


def test_bad_names_are_user_errors(tmp_path: Path) -> None:
    for arguments in ({"dtype": "int3"}, {"device": "nowhere"}, {"device": "cuda:77"}):
        with pytest.raises(SightlineError):
            shapes.build("llava-shape", batch=1, **arguments)
    with pytest.raises(SightlineError, match=r"config\.json"):
        shapes.build(str(tmp_path), batch=1)


def test_compiled_runs_stand_beside_the_others(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each against plain of its kind; the graph itself is made by a backend that runs it as it is."""
    import functools

    import transformers

    monkeypatch.setattr(transformers, "CompileConfig", functools.partial(transformers.CompileConfig, backend="eager"))
    result = speed.bench(tiny, ["gift"], new_tokens=3, repeats=1, compiled=True)
    names = ["plain", "gift", "plain compiled", "gift compiled"]
    assert [row["name"] for row in result["rows"][::2]] == names
    captured = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert captured >= 2
    text = result["rows"]
    assert all(row["ms"] > 0 for row in text)
    assert "GB/s" in str(speed.table(result).caption)


def test_a_step_reads_its_weights_and_keys(tiny: str) -> None:
    subject = shapes.build(tiny, batch=2, prompt_tokens=200)
    assert subject.facts["prompt_tokens"] == 200
    layers, hidden, inner, words = 6, 64, 64, 32064
    weights = layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden + words * hidden
    keys = 2 * 2 * 200 * layers * hidden
    assert subject.facts["step"] == {"bytes": 4 * (weights + keys), "flops": 2 * 2 * weights + 2 * keys}
