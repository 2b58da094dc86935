"""What a checkpoint's weights already do: `sightline export` folds head gains into them and says so beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ...common.errors import ConfigError

MARKER = "sightline.json"  # lies beside weights that something was folded into


def is_folded(model: str) -> bool:
    """Whether a model's name is a folder that `sightline export` wrote."""
    return (Path(model) / MARKER).is_file()


def check_not_folded(model: str, methods: Iterable[str]) -> None:
    """Raises ConfigError for methods that the model's weights hold already: they would act twice."""
    if not is_folded(model):
        return
    try:
        listed = json.loads((Path(model) / MARKER).read_text(encoding="utf-8"))["config"]["methods"]
        held = {one if isinstance(one, str) else next(iter(one)) for one in listed}
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        raise ConfigError(
            f"cannot tell what is folded into '{model}': {MARKER} there is not readable; mend it"
        ) from error
    twice = sorted(held & {*methods})
    if twice:
        raise ConfigError(
            f"method '{twice[0]}' is folded into the weights of '{model}' already (see {MARKER} there) and would act twice:"
            " leave it out, or attach to the model that it was folded from"
        )
