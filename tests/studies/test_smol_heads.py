"""The study of embedded-smol's heads: sinks as the eager model shows them, maps compared by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sightline import Calibration

from studies import smol_heads
from studies.smol_heads import agreement, best, sinks, study
from tests.helpers import tiny
from tests.helpers.profiling_stub import LENGTHS, Processor, normalised, rows, shown

DIMS, TAU = [3, 8], 1.7


def test_sinks_are_those_of_the_eager_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smol_heads, "BATCH", 2)
    processor = Processor(tiny.get("llava_gqa"), seed=4)
    known: Any = SimpleNamespace(sink=SimpleNamespace(dims=DIMS, tau=TAU))
    done: list[int] = []
    found = sinks(processor.case.model, processor, shown(processor), known, done.append)
    assert sum(done) == len(LENGTHS)
    phi = torch.zeros(tiny.LAYERS, 4, dtype=torch.float64)
    looked = torch.zeros(tiny.LAYERS, tiny.HEADS, dtype=torch.float64)
    for row in rows(processor):
        behind = range(int(row.image.nonzero().max()) + 1, row.length)
        for layer, states in enumerate(row.hidden):
            each = torch.stack([normalised(state)[DIMS].max() for state in states])
            image = each[row.image]
            phi[layer] += torch.stack([each[0], image.median(), image.max(), (image > TAU).sum()])
            looked[layer] += row.weights[layer][:, list(behind), 0].mean(-1)
    assert phi[:, 3].sum() > 0
    names = ("first", "image_median", "image_most", "image_sinks")
    ours = torch.tensor([[layer[name] for name in names] for layer in found["layers"]]).double()
    torch.testing.assert_close(ours, phi / len(LENGTHS), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(found["attention"]).double(), looked / len(LENGTHS), atol=1e-4, rtol=1e-3)


def test_maps_are_compared_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smol_heads, "TOP", 2)
    one, other = [[0.1, 0.9], [0.5, 0.0]], [[0.2, 0.3], [0.1, 0.0]]
    assert best(one) == [(0, 1), (1, 0)]
    assert agreement("a", "b", one, other) == {"maps": ["a", "b"], "spearman": 0.8, "common": [(0, 1)]}
    shape = {"model": "m", "architecture": "llava", "layers": 2, "heads": 2}
    base = Calibration.load({**shape, "retrieval_heads": {"scores": one}})
    known = Calibration.load(
        {
            **shape,
            "retrieval_heads": {"scores": other},
            "concept_heads": {"scores": one},
            "image_heads": {"scores": other},
            "sink": {"dims": [1], "tau": 2.0},
        }
    )
    found = study(known, base, {"attention": one, "layers": []})
    assert list(found["maps"].values()) == [one, other, one, other, one]
    assert [row["spearman"] for row in found["agreement"]] == [0.8, 0.8, 0.8, 0.8]
