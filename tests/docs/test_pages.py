"""The pages that are made are up to date, and the method that the guide writes does what it says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import sightline
import tomllib
import torch
from sightline.plugin.core import registry

from studies.pages.__main__ import between, made
from studies.pages.registry import method_table
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]


def test_pages_are_what_code_and_results_say() -> None:
    """Tables, references and plots, as `make docs` would write them now."""
    stale = [str(path) for path, text in made() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run make docs"


def test_readme_is_short() -> None:
    text = re.sub("<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(re.findall(r"\S*\w\S*", text)) <= 1200


def test_readme_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("| extra | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(extras)


@pytest.mark.parametrize("name", sightline.methods())
def test_every_method_has_a_page(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert (ROOT / text.split("Code: `")[1].split("`")[0]).exists()
    for title in ("## What it does", "## Paper, release, and what is ours", "## Measured"):
        assert title in text


def test_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        between("no table here", "methods", method_table())


def test_template_method_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/guides/method.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    sightline.methods()
    monkeypatch.setattr(registry.METHODS, "_registered", dict(registry.METHODS._registered))
    exec(compile(code[1], "method.md", "exec"), {"__name__": "template"})
    assert "brighten" in sightline.methods()

    case = tiny.get("llava_gqa")
    inputs = case.inputs(2, lengths=[5, 9])
    logits = {}
    with torch.no_grad():
        logits["plain"] = case.model(**inputs).logits
        for factor in (1.0, 3.0):
            with sightline.attach(case.model, {"methods": [{"brighten": {"factor": factor}}]}):
                logits[factor] = case.model(**inputs).logits
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[1.0][valid], logits["plain"][valid], atol=1e-4, rtol=1e-4)
    assert (logits[3.0] - logits["plain"])[valid].abs().max() > 1e-2

    # The factor itself, seen by a probe in the first layer, where keys and queries are still the plain model's.
    masses = {factor: _image_mass(case, inputs, factor) for factor in (1.0, 3.0)}
    expected = 3 * masses[1.0] / (1 + 2 * masses[1.0])
    torch.testing.assert_close(masses[3.0], expected, atol=1e-5, rtol=1e-4)
    assert math.isfinite(float(expected.sum()))


def _image_mass(case: tiny.TinyCase, inputs: dict[str, torch.Tensor], factor: float) -> torch.Tensor:
    """Attention mass on the image, last prompt row of layer 0: [B, H]."""
    from sightline.plugin.core.edits import Rows, WeightProbe
    from sightline.plugin.core.layout import Layout, Step
    from sightline.plugin.core.method import Method, Session, Settings

    seen: list[torch.Tensor] = []

    class Look(Method):
        summary = source = cost = "test"
        config = Settings

        def start(self, layout: Layout) -> Session:
            session = Session()
            image = layout.image.float()

            def see(weights: torch.Tensor, keys: slice, first: int) -> None:
                seen.append((weights[:, :, 0] * image[:, None]).sum(-1))

            def edits(step: Step) -> dict[int, list[WeightProbe]]:
                rows = Rows(step.count - 1, step.count, torch.ones(layout.batch, 1, dtype=torch.bool))
                return {0: [WeightProbe(see, rows)]}

            session.edits = edits  # type: ignore[method-assign, assignment]
            return session

    registry.METHODS._registered["look"] = Look
    Look.name = "look"
    with torch.no_grad(), sightline.attach(case.model, {"methods": [{"brighten": {"factor": factor}}, "look"]}):
        case.model(**inputs)
    return seen[0]
