"""A folded checkpoint computes what the attached model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sightline
import torch
from sightline.plugin.calibration.folded import MARKER
from sightline.serving.fold import SEEING_NOTE, export
from sightline.serving.plan import resolve
from torch import nn

from tests.helpers import tiny

GAINS = (1 + 0.7 * torch.randn(tiny.LAYERS, tiny.HEADS, generator=torch.Generator().manual_seed(5))).tolist()
CONFIG = {"methods": [{"head_gain": {"gains": GAINS}}, {"faith": {"rows": "all", "head_list": [[1, 2]]}}]}


class Processor:
    """Writes its file, as a processor does."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def folded(case: tiny.TinyCase, config: Any, out: Path, known: Any = None) -> dict[str, Any]:
    plan = resolve("mine", config, known, loaded=case.model.config)
    return export(case.model, Processor(), plan, out)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3_text", "llava", "qwen2_vl"])
def test_a_folded_model_is_the_attached_one(name: str, tmp_path: Path) -> None:
    case = tiny.fresh(name)
    inputs = case.inputs(2)
    with torch.no_grad(), sightline.attach(case.model, CONFIG):
        expected = case.model(**inputs).logits
    with torch.no_grad():
        plain = case.model(**inputs).logits
    folded(case, CONFIG, tmp_path / "out")
    again = type(case.model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = again(**inputs).logits
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
    assert (plain - expected)[seen].abs().max() > 0.1


def test_what_is_folded_in_is_not_attached_again(tmp_path: Path) -> None:
    """It would act twice; what the weights do not hold is attached as ever."""
    case = tiny.fresh("llama")
    folded(case, CONFIG, tmp_path / "out")
    again = type(case.model).from_pretrained(tmp_path / "out").eval()
    for method in ("head_gain", "faith"):
        twice = {"methods": [one for one in CONFIG["methods"] if method in one]}
        with pytest.raises(sightline.ConfigError, match=f"'{method}' is folded into the weights.*leave it out"):
            sightline.attach(again, twice)
    with sightline.attach(again, {"methods": [{"pasta": {"head_list": [[0, 1]]}}]}, emphasis=lambda ids: ids > 0):
        again(**case.inputs(1))
    (tmp_path / "out" / MARKER).write_text("{}")
    with pytest.raises(sightline.ConfigError, match="not readable"):
        sightline.attach(again, CONFIG)


def test_the_record_says_what_was_folded(tmp_path: Path) -> None:
    case = tiny.fresh("llama")
    plan = resolve(
        "mine", {"methods": [{"head_gain": {"head_list": [[2, 3]], "gain": -1.0}}]}, loaded=case.model.config
    )
    record = export(
        case.model,
        Processor(),
        plan,
        tmp_path / "out",
        fingerprint=lambda model: str(float(model.model.layers[2].self_attn.o_proj.weight.sum())),
    )
    assert json.loads((tmp_path / "out" / MARKER).read_text()) == json.loads(json.dumps(record))
    assert record["folded"] == {"into": "o_proj", "heads": [[2, 3, -1.0]]}
    assert record["config"] == {"methods": [{"head_gain": {"head_list": [(2, 3)]}}]}
    assert record["hashes"]["model"] != record["hashes"]["folded"]
    assert record["note"] is None
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_half_precision_rounds_once(tmp_path: Path) -> None:
    case = tiny.fresh("llama")
    model = case.model.to(torch.bfloat16)
    before = model.model.layers[0].self_attn.o_proj.weight.detach().clone()
    record = folded(case, {"methods": [{"head_gain": {"head_list": [[0, 1]], "gain": 1.3}}]}, tmp_path / "out")
    size = before.shape[1] // tiny.HEADS
    expected = before.clone()
    expected[:, size : 2 * size] = (before[:, size : 2 * size].double() * torch.tensor(1.3).double()).to(torch.bfloat16)
    assert torch.equal(model.model.layers[0].self_attn.o_proj.weight, expected)
    assert record["dtype"] == "bfloat16"


def test_static_vhr_is_folded_with_a_note(tmp_path: Path) -> None:
    case = tiny.fresh("llava")
    known = {"model": "mine", "architecture": "llava", "layers": tiny.LAYERS, "heads": tiny.HEADS}
    known["visual_heads"] = {"scores": [[float(head) for head in range(tiny.HEADS)]] * tiny.LAYERS}
    config, inputs = {"methods": [{"vhr": {"static": True}}]}, case.inputs(1)
    with torch.no_grad(), sightline.attach(case.model, config, calibration=known):
        expected = case.model(**inputs).logits
    record = folded(case, config, tmp_path / "out", known)
    assert record["note"] == SEEING_NOTE
    with torch.no_grad():
        torch.testing.assert_close(case.model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_contrast_is_no_weight(tmp_path: Path) -> None:
    case = tiny.fresh("llama")
    with pytest.raises(sightline.ConfigError, match=r"'decore' compares two runs at each token.*sightline serve"):
        folded(case, {"decoder": {"decore": {"head_list": [[0, 0]]}}}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_attention_on_the_first_token_is_no_weight(tmp_path: Path) -> None:
    case = tiny.fresh("llama")
    with pytest.raises(sightline.ConfigError, match=r"'zerotuning'.*sightline serve"):
        folded(case, {"methods": [{"zerotuning": {"gain": 2.0}}]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused_untouched(tmp_path: Path) -> None:
    case = tiny.fresh("llama")
    attention = case.model.model.layers[1].self_attn
    first = case.model.model.layers[0].self_attn.o_proj.weight.detach().clone()

    class Linear4bit(nn.Linear):
        pass

    attention.o_proj = Linear4bit(attention.o_proj.in_features, attention.o_proj.out_features)
    with pytest.raises(sightline.UnsupportedModelError, match="layer 1 of 'mine' has Linear4bit"):
        folded(case, CONFIG, tmp_path / "out")
    assert torch.equal(case.model.model.layers[0].self_attn.o_proj.weight, first)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("mine")
    with pytest.raises(sightline.SightlineError, match="it is there already"):
        folded(tiny.fresh("llama"), CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
