"""Tests of models served by vLLM, against transformers with Sightline attached.

They run in an environment of their own (`make test-serving`, constraints-serving.txt), on a CPU, with the engine in the
test's process so that it can be asked about its cache.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2-135M-Instruct as a checkpoint."""
    from tests.serving.served.models import apart, save_smollm2

    return apart(save_smollm2, tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A folder with a LLaVA whose text model is SmolLM2's first layers, its tower random."""
    from tests.serving.served.models import apart, save_llava

    return apart(save_llava, tmp_path_factory.mktemp("llava"), smollm2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a model type to a folder with a random model of four layers."""
    from tests.serving.served.models import apart, save_tiny

    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = apart(save_tiny, tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return folder
