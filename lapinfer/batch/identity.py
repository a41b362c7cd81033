"""Which model a batch was begun with: what its answers come from, by content and not by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lapinfer.checkpoint.adapted import adapted
from lapinfer.checkpoint.home import packed_path
from lapinfer.checkpoint.hub import resolve
from lapinfer.checkpoint.safetensors import SafetensorsFile
from lapinfer.checkpoint.texts import texts_in
from lapinfer.home import packed_models
from lapinfer.options import LoadOptions
from lapinfer.packing.copies import cached_folder
from lapinfer.packing.reader import content_of
from lapinfer.progress import Progress, silent


def model_identity(path: str, options: LoadOptions, progress: Progress = silent) -> str:
    """The same for the same weights, adapters and config in the same format, and the same texts beside them. Loads
    nothing.
    """
    source = adapted(resolve(path), options.lora)
    if isinstance(source, Path):
        folder, weights = source, content_of(SafetensorsFile(packed_path(source))) or str(source.resolve())
        weights += (folder / "config.json").read_text(encoding="utf-8")
    else:
        copy = cached_folder(source, options.quant, packed_models(), progress)
        folder, weights = source.folder, copy.name.rpartition("-")[2]
    digest = hashlib.sha256(weights.encode())
    for text in texts_in(folder):
        digest.update(f"\n{text}\n".encode())
        digest.update(hashlib.sha256((folder / text).read_bytes()).digest())
    return digest.hexdigest()[:32]
