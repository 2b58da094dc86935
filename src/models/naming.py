"""From the name of a model that a user typed to what can be loaded, without waiting for a hub that is not there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..common.errors import LINE, SightlineError, shortened
from ..common.validation import suggest

EMBEDDED = "embedded"
EMBEDDED_SMOL = "embedded-smol"
SMOLLM2 = "smollm2"
OURS = (EMBEDDED, EMBEDDED_SMOL, SMOLLM2)  # loaded by name, from what comes with this package or beside it
PATIENCE = 5.0
"""Seconds to wait for the hub's first answer."""


@dataclass(frozen=True)
class Checkpoint:
    """What transformers is asked for: a folder or a hub name, and whether it has to be on this machine already."""

    name: str
    local: bool


def checkpoint(name: str) -> Checkpoint:
    """Where a model's files are.

    Args:
        name: a folder with a checkpoint, or owner/name on the Hugging Face hub.

    Raises:
        SightlineError: there is none of that name; near names are offered.
    """
    folder = Path(name).expanduser()
    is_path = os.path.exists(folder) or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if is_path:
        if not os.path.isfile(folder / "config.json"):
            near = suggest(folder.name, _beside(folder))
            raise SightlineError(
                f"no model in {shortened(name, LINE)}{near}: expected a folder with config.json and weights"
            )
        return Checkpoint(str(folder), local=True)
    ours = get_close_matches(name.lower(), OURS, n=1, cutoff=0.7)
    if ours:
        raise SightlineError(f"no model {name!r}, did you mean '{ours[0]}'?")
    return _on_the_hub(name)


def _beside(folder: Path) -> list[str]:
    """The names of checkpoints in the folder above."""
    try:
        return [one.name for one in folder.parent.iterdir() if (one / "config.json").is_file()]
    except OSError:
        return []


def _on_the_hub(name: str) -> Checkpoint:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=PATIENCE)
        return Checkpoint(name, local=False)
    except HFValidationError:
        reason, cached = "it is neither a folder here nor a name as the hub has them", False
    except GatedRepoError:
        reason = "the hub wants you to log in and to accept its licence"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or only for those who log in"
    except HfHubHTTPError as error:
        reason = f"the hub answers {_first_line(error)}"
    except Exception as error:  # no network, whichever client says so
        reason = f"the hub cannot be reached ({type(error).__name__}), and it is not in the cache"
    if cached:
        return Checkpoint(name, local=True)
    near = suggest(name, [*OURS, *_cached()])
    raise SightlineError(
        f"cannot load model {shortened(name, LINE)!r}{near or ':'} {reason}; give {EMBEDDED!r}, {SMOLLM2!r}, a checkpoint"
        " folder, or a hub name that is cached or reachable"
    )


def _cached() -> list[str]:
    """The names of the models that the hub's cache has."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*--*")
    return ["/".join(folder.name.split("--")[1:]) for folder in folders]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
