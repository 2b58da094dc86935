"""The page in Chromium: a question is asked, answers appear, the heat shows, and nothing is fetched from elsewhere.

Needs Gradio, playwright and a Chromium (`make test-play`).
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="no Gradio here: make test-play")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: make test-play")

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PATIENCE = 180_000
"""Milliseconds that a busy machine may take for one thing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("play") / "log").open("w+")
    server = subprocess.Popen([sys.executable, "-m", "sightline", "play", "--port", str(port)], stdout=log, stderr=log)
    try:
        for _ in range(PATIENCE // 500):
            assert server.poll() is None, Path(log.name).read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(params=[1280, 400])
def page(request: pytest.FixtureRequest, address: str, browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.asked_for = []
    page.on("request", lambda one: page.asked_for.append(one.url))
    page.goto(address)
    page.locator("#ask").wait_for()
    yield page
    page.close()


def wide(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def test_only_this_machine_is_served(address: str) -> None:
    with urllib.request.urlopen(address) as reply:
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'self'")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))


def test_a_question_two_answers_and_the_heat(page: Any, address: str) -> None:
    page.locator("#scenes button.thumbnail-item").nth(2).click()
    page.locator("#picture img").wait_for()
    page.locator("#ask").click()
    page.locator("#answer-first .word").first.wait_for()
    assert "The image shows" in page.locator("#answer-plain .text").inner_text()
    weak = page.locator("#answer-plain .word.weak").first
    heat = weak.locator(".heat")
    assert not heat.is_visible()
    weak.hover()
    assert heat.is_visible()
    assert heat.bounding_box()["y"] == pytest.approx(page.locator("#answer-plain .look").bounding_box()["y"], abs=2)
    assert not wide(page)
    assert [url for url in page.asked_for if not url.startswith((address, "data:", "blob:"))] == []


def test_what_settings_mean_is_dark_enough_to_read(page: Any) -> None:
    """At least 4.5 to 1 against the white card, as the accessibility guidelines (WCAG 2) ask."""
    words = page.get_by_text("factor on the chosen heads' output").first
    parts = re.findall(r"[\d.]+", words.evaluate("one => getComputedStyle(one).color"))[:3]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (float(one) / 255 for one in parts)]
    assert 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) >= 4.5


def test_a_slider_writes_the_yaml_and_it_can_be_copied(page: Any) -> None:
    number = page.get_by_label("number input for vhr: alpha")
    number.fill("3")
    number.press("Enter")
    page.locator("#yaml-first", has_text="alpha: 3").wait_for()
    assert page.locator("#yaml-first button[aria-label*='opy']").count() == 1


def test_ten_scenes_show_chair_at_equal_recall(page: Any, address: str) -> None:
    page.locator("#measure").click()
    report = page.frame_locator("#report iframe")
    report.locator(".found li").first.wait_for()
    assert "CHAIR_I at equal recall" in report.locator(".found").inner_text()
    report.locator(".card").first.wait_for()  # its script runs
    everything = report.locator("[data-is=told]").inner_text()
    report.locator(".chips label", has_text="helped").click()
    report.locator(".chips label", has_text="unchanged").click()
    assert (
        report.locator("[data-is=told]").inner_text() != everything
        or "unchanged 10" in report.locator(".chips").inner_text()
    )
    assert not wide(page)
    assert [url for url in page.asked_for if not url.startswith((address, "data:", "blob:", "about:"))] == []
