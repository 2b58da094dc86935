"""One process of an evaluation through a harness; `torchrun` starts several.

Arguments: engine, benchmark, model, config, folder of data or "testbed", samples, output folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sightline.benchmarks.benchmark import DataSource
from sightline.benchmarks.harness import engines
from sightline.benchmarks.runner import suite
from sightline.benchmarks.runner.plan import named
from sightline.models.loading import load_model


def main(engine: str, benchmark: str, model: str, config: str, data: str, limit: str, out: str) -> None:
    torch.set_num_threads(1)
    source = DataSource(None if data == "testbed" else Path(data), int(limit))
    asked = suite.read(benchmark, source)
    engines.run(engine, *load_model(model), named([config]), Path(out), benchmark=asked, source=source, batch=4)


if __name__ == "__main__":
    main(*sys.argv[1:])
