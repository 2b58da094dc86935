"""Measures the embedded model on the calibration split and writes its calibration file.

`python -m sightline.testbed.profile [--scenes N] [--seed S] [--out FILE]`
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import sys
from pathlib import Path

from rich.progress import track

from . import CAPTION_PROMPT, load, prompt, scenes

NAME = "sightline/testbed"
GAZE_ALPHA = 5.0  # LLaVA-1.5's; the sweep chooses the strength that the demo uses


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sightline.testbed.profile", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="calibration scenes to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("calibration/testbed.yaml"))
    arguments = parser.parse_args(argv)

    from ..benchmarks.files import write_text
    from ..plugin.calibration import Calibration, Source
    from ..profiling.measure import measure_gaze, measure_sinks, measure_visual_heads
    from ..profiling.observe import look

    model, processor = load()
    text = prompt(processor, CAPTION_PROMPT)
    pictures = [scene.image for scene in scenes("calibration", arguments.scenes, seed=arguments.seed)]
    read = track(pictures, "reading scenes")
    seen = look(model, processor, [processor(images=[picture], text=[text], return_tensors="pt") for picture in read])

    config = model.config.text_config
    depth = config.num_hidden_layers
    calibration = Calibration(
        schema=1,
        model=NAME,
        aliases=["testbed/weights"],
        architecture=model.config.model_type,
        layers=depth,
        heads=config.num_attention_heads,
        source=Source(
            kind="measured",
            reference=None,
            command=f"python -m sightline.testbed.profile --scenes {arguments.scenes} --seed {arguments.seed}",
            versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            date=datetime.date.today().isoformat(),
            samples=len(seen),
        ),
        sink=measure_sinks(seen),
        gaze=measure_gaze(seen, GAZE_ALPHA),
        visual_heads=measure_visual_heads(seen, layers=[1, *range(depth - round(depth * 14 / 32), depth)]),
    )
    write_text(arguments.out, calibration.dump())
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
