"""What the pages show runs as it is printed, and prints what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from sightline.models import loading
from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.core.registry import METHODS

from tests.helpers import hub

from .snippets import ROOT, blocks, pages, run

PAGES = {str(path.relative_to(ROOT)): path for path in pages()}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph, as a reader has one; the hub's names give tiny models of that family."""
    load = loading.load_model

    def load_model(name: str, **options: str) -> tuple[object, object]:
        return hub.stand_in(name) if name in hub.HUB else load(name)

    monkeypatch.setattr(loading, "load_model", load_model)
    for registry in (METHODS, DECODERS):  # what a page registers is gone with it
        registry.known()
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setenv("SIGHTLINE_CALIBRATION", str(tmp_path / "calibration"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (200, 40, 40)).save(tmp_path / "photo.jpg")
    return tmp_path


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if blocks(path)])
@pytest.mark.usefixtures("reader")
def test_blocks_run_and_print_what_is_shown(name: str) -> None:
    for line, shown, printed in run(PAGES[name]):
        assert _lines(printed) == _lines(shown), f"{name}:{line}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_few_blocks_are_only_looked_at() -> None:
    """Those that need what no test has, each for a reason that its page says."""
    marked = {(name, one.illustrative) for name, path in PAGES.items() for one in blocks(path) if one.illustrative}
    assert marked == set(ILLUSTRATIVE)


ILLUSTRATIVE = (("README.md", "needs a running server"), ("docs/guides/serving.md", "needs a running server"))


def test_a_false_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", encoding="utf-8")
    assert list(run(page)) == [(2, "3\n", "2\n")]
    for wrong in (
        "```console\n$ sightline eval --no-such-option\n```\n",
        "```yaml\nmethods: [vhrr]\n```\n",
        "```\nx\n```\n",
    ):
        page.write_text(wrong, encoding="utf-8")
        with pytest.raises(Exception, match=r"No such option|vhrr|no language"):
            list(run(page))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), f"{name}: {link}"
