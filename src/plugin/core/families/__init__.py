"""Family adapters: the few things the engine must know of a model family, and the families it refuses.

An adapter says where the text decoder is, which token ids stand for image features and what reading the prompt without
its image means. Most families need no more than their name; `find_family` answers for a model.
"""

from __future__ import annotations

from .base import Family, declared_family, find_family, register_family

__all__ = ["Family", "declared_family", "find_family", "register_family"]
