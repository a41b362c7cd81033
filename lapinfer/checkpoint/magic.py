"""What a file is, by its first bytes: names and suffixes are often wrong, and downloads are often something else."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NamedTuple

from lapinfer.errors import CheckpointError

FileKind = Literal["gguf", "safetensors", "foreign", "json", "unknown"]

SAFE: Final = "load it with transformers once and save it with save_pretrained, which writes model.safetensors"
PICKLE: Final = f"which may run any code and is never loaded; {SAFE}"
OLD: Final = "of before August 2023; convert the model again to GGUF"
PACKED: Final = "unpack it first"

BEGINNINGS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"lmgg", f"a GGML file {OLD}"),
    (b"fmgg", f"a GGMF file {OLD}"),
    (b"tjgg", f"a GGJT file {OLD}"),
    (b"algg", "a LoRA adapter in an old GGML format; convert it and merge it into its model"),
    (b"nsgg", "a saved session of llama.cpp, not a model"),
    (b"qsgg", "a saved state of llama.cpp, not a model"),
    (b"PK\3\4", f"a zip archive, as PyTorch's weights are: a pickle, {PICKLE}"),
    (b"\x80\x02", f"a pickle, {PICKLE}"),
    (b"\x80\x03", f"a pickle, {PICKLE}"),
    (b"\x80\x04", f"a pickle, {PICKLE}"),
    (b"\x80\x05", f"a pickle, {PICKLE}"),
    (b"\x89HDF", "HDF5 weights of Keras or TensorFlow; save the model as safetensors"),
    (b"\x93NUMPY", "an array of NumPy, not a model"),
    (b"\x1f\x8b", f"compressed with gzip; {PACKED}"),
    (b"\x28\xb5\x2f\xfd", f"compressed with zstd; {PACKED}"),
    (b"\xfd7zXZ\0", f"compressed with xz; {PACKED}"),
    (b"BZh", f"compressed with bzip2; {PACKED}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {PACKED}"),
    (b"MZqFpD", "a llamafile, a program with a model inside; unzip it and name the .gguf file"),
    (b"version https://git-lfs", "a pointer to a file that git-lfs has not fetched; run: git lfs pull"),
    (b"Entry not found", "an error of the hub instead of the file; download it again"),
    (b"Invalid username", "an error of the hub instead of the file; log in, and download it again"),
    (b"Access to model", "an error of the hub instead of the file; ask for access, log in, and download it again"),
)  # fmt: skip
"""First bytes -> what the file is, and what to do."""

LOOKED_AT: Final = 512
LARGEST_HEADER: Final = 1 << 30
"""Bytes of the JSON that a safetensors file may begin with, generously."""


class Found(NamedTuple):
    """What a file is; words: for a message after "is", with what to do. foreign: known, and nothing to be opened."""

    kind: FileKind
    words: str


def look_at(path: Path) -> Found:
    """What the file at `path` is; CheckpointError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return told_by(file.read(LOOKED_AT))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def told_by(begins: bytes) -> Found:
    """What a file is that begins with these bytes, at least LOOKED_AT of them where it is so long."""
    if not begins:
        return Found("foreign", "empty; download it again")
    if begins.startswith(b"GGUF"):
        return Found("gguf", "a GGUF file; name it by itself")
    for bytes_, words in BEGINNINGS:
        if begins.startswith(bytes_):
            return Found("foreign", words)
    if begins[257:262] == b"ustar":
        return Found("foreign", f"a tar archive; {PACKED}")
    if len(begins) > 8 and 2 <= int.from_bytes(begins[:8], "little") <= LARGEST_HEADER and begins[8:9] == b"{":
        return Found("safetensors", "a safetensors file")
    if not begins.strip(b"\0"):
        return Found("foreign", "nothing but zeros, a download that was never finished; download it again")
    text = begins.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return Found("foreign", "a web page, perhaps an error or a login instead of the model; download it again")
    if text.startswith((b"{", b"[")):
        return Found("json", "JSON, perhaps an error instead of the model")
    return Found("unknown", f"no model (it begins with {begins[:8]!r})")


def of_start(begins: bytes) -> str:
    """ "is", and what a file is that ought to be something else and begins so; "" where that is not known."""
    found = told_by(begins)
    return f"is {found.words}" if found.kind in ("foreign", "gguf") and begins else ""
