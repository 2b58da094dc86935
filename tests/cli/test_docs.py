"""The documentation is true: the README's table is the registry's, and CONTRIBUTING's template method runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import sightline
import torch
from sightline.cli.docs import FACTS, facts, method_table, updated
from sightline.plugin.core import registry

from tests.helpers import tiny

ROOT = Path(__file__).parents[2]


def test_readme_table_is_the_registrys() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert updated(text, method_table()) == text
    assert all(f"| `{name}` |" in method_table() for name in sightline.methods())


@pytest.mark.parametrize("name", sightline.methods())
def test_every_method_has_a_page(name: str) -> None:
    """With the registry's facts and settings on it, and links that lead somewhere."""
    page = ROOT / "docs" / "methods" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert updated(text, facts(sightline.methods()[name]), *FACTS) == text
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / link).exists(), link
    assert (ROOT / text.split("Code: `")[1].split("`")[0]).exists()


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        updated("no table here", method_table())


def test_template_method_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    sightline.methods()
    monkeypatch.setattr(registry.METHODS, "_registered", dict(registry.METHODS._registered))
    exec(compile(code[1], "CONTRIBUTING.md", "exec"), {"__name__": "template"})
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
