"""The ways of calling `generate` that tests go through."""

from __future__ import annotations

from typing import Any

#: mode: (prompt, options of `generate`)
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "one": ("one", {}),
    "padded": ("padded", {}),
    "images": ("images", {}),
    "static": ("padded", {"cache_implementation": "static"}),
    "beams": ("pair", {"num_beams": 3}),
    "sampling": ("padded", {"do_sample": True}),
    "several answers": ("pair", {"do_sample": True, "num_return_sequences": 2}),
    "several beams": ("pair", {"num_beams": 3, "num_return_sequences": 2}),
}
