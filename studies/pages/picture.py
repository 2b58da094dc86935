"""`python -m studies.pages.picture`: the README's picture, cut from a report (needs Chromium; `--browser` names it).

It runs `sightline demo --scenes 1` with VHR alone, which writes a report about the first test scene, and photographs the
card of that scene.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageChops
from sightline.benchmarks.demo import demo, save

PICTURE = Path(__file__).parents[2] / "docs/assets/report.png"
WIDTH, HEIGHT, SCALE = 900, 420, 2
SUITE = "vhr: {methods: [vhr]}\n"
ALONE = """<style>
body { background: #fff; overflow: hidden }
body * { visibility: hidden }
article.card, article.card * { visibility: visible }
article.card { position: fixed; inset: 8px 8px auto 8px; margin: 0; flex-direction: row }
.card .picture { flex: 0 0 210px }
.card .picture img { aspect-ratio: 1 }
.card .columns { display: grid; grid-template-columns: 1fr 1fr; gap: 20px }
</style>"""
"""Nothing but the first card, on white, as wide as a README."""


def command(
    browser: Annotated[str, typer.Option(help="Chromium's command.")] = "chromium",
    out: Annotated[Path, typer.Option(metavar="PNG", help="The picture.")] = PICTURE,
) -> None:
    """Photograph the first card of a report."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.yaml"
        suite.write_text(SUITE, encoding="utf-8")
        page = next(path for path in save(demo(scenes=1, suite=suite), Path(folder), None) if path.suffix == ".html")
        # The page forbids any style but its own; its copy for this picture does not.
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", f"{ALONE}</head>"), encoding="utf-8")
        shot = Path(folder) / "shot.png"
        options = [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}", f"--screenshot={shot}"]
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--hide-scrollbars", *options, page.as_uri()], check=True
        )
        picture = Image.open(shot).convert("RGB")
    edge = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.crop(edge).quantize(128).save(out, optimize=True)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(command)
