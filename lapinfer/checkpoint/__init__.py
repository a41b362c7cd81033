"""Checkpoints on disk: folders of safetensors, GGUF files, the packed form, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # names of models are completed in a shell without NumPy
    import numpy as np

    from lapinfer.checkpoint.identity import Contents
    from lapinfer.quant.groups import Grouped


class Checkpoint(Protocol):
    """Weights as they were published, under their published (Hugging Face) names.

    `folder` holds config and tokenizer files (a folder beside the cache for a GGUF file, whose tokenizer
    is rebuilt there). `contents` tells it from every other checkpoint. `name` is what a packed copy is called by.
    `notices` are lines that a user should see.
    """

    name: str
    path: Path
    folder: Path
    contents: Contents
    notices: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """config.json, with what only the tensors say (families/stored.py)."""
        ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def stored_as(self, name: str) -> str:
        """F32, F16, BF16, or the GGUF type: Q4_0, Q6_K, …"""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop as float32, whatever they are stored as."""
        ...

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> Grouped | None:
        """The same rows as stored groups of 32 where a packed format holds them exactly, else None."""
        ...
