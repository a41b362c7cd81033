"""Trained weights as a checkpoint folder that the engine loads: docs/checkpoint-format.md, or a family's own names."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn

from lapinfer import __version__
from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.checkpoint.home import FILE_NAME
from lapinfer.checkpoint.safetensors import read_metadata
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import family, sources_for, spec_from_config
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.outputs import PART, cannot_write, check_place, write_whole
from lapinfer.packing.assemble import Assembler
from lapinfer.packing.target import check_no_other_weights
from lapinfer.spec import RouterSpec, TreeSpec
from lapinfer.tensors import tensors
from lapinfer.train.config import END
from lapinfer.train.decoder import Decoder
from lapinfer.train.state import save_tensors

MARK = "lapinfer"
"""Key of the metadata of weights that were exported here: its value is the version."""
WRITTEN = (FILE_NAME, "config.json", "tokenizer.json", "tokenizer_config.json")

Rename = str | None | Callable[[Tensor], Mapping[str, Tensor]]
Names = Mapping[str, Rename]
"""A name in a module -> its name in the checkpoint; None: it is not written; a function: several tensors by name,
of a fused or transposed one. A * stands for a number, which the other side's * gets."""


def export(
    module: Decoder, path: str | Path, tokenizer: tokenizers.Tokenizer | None = None, *, force: bool = False
) -> Path:
    """Write a decoder of this package as the type that its configuration says: llama, lapinfer, mixtral, …

    An older export is replaced; InputError where other files are in the way, unless `force`.
    """
    names = decoder_names(module)
    return export_module(module, path, module.config.checkpoint_config(), names, tokenizer, force=force)


def export_module(
    module: nn.Module, path: str | Path, config: Mapping[str, Any], names: Names,
    tokenizer: tokenizers.Tokenizer | None = None, *, force: bool = False,
) -> Path:  # fmt: skip
    """Write anybody's module as a checkpoint folder: its config.json, and a table from its names to the config's.

        export_module(model, "folder", {"model_type": "lapinfer", "fff": {…}, …}, {
            "embed.weight": "model.embed_tokens.weight",
            "blocks.*.ff.up": "model.layers.*.mlp.up",
            "blocks.*.qkv.weight": lambda w: dict(zip(THREE_NAMES, w.chunk(3), strict=True)),
            "mask": None,
        })

    Every tensor must be in the table, and every one that the config promises must come out, in its shape and as
    numbers; else InputError or CheckpointError, and nothing is written. An older export is replaced; InputError where
    other files are in the way, unless `force`.
    """
    stored = renamed(module.state_dict(), names)
    return write_checkpoint(path, config, stored, tokenizer, force=force)


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Tensors by the names of a checkpoint, in float32."""
    patterns = [(re.compile(re.escape(own).replace(r"\*", r"(\d+)")), rename) for own, rename in names.items()]
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        matches = [(match, rename) for pattern, rename in patterns if (match := pattern.fullmatch(name))]
        if not matches:
            raise InputError(f"{name}: not in the table of names; None leaves a tensor out")
        match, rename = matches[0]
        if rename is None:
            continue
        parts = {rename: value} if isinstance(rename, str) else rename(value)
        for target, part in parts.items():
            numbers = iter(match.groups())
            stored_name = re.sub(r"\*", lambda _, numbers=numbers: next(numbers, "*"), target)
            if stored_name in stored:
                raise InputError(f"{name}: {stored_name!r} is written twice")
            stored[stored_name] = part.detach().to("cpu", torch.float32).contiguous()
    return stored


def write_checkpoint(
    path: str | Path, config: Mapping[str, Any], stored: Mapping[str, Tensor],
    tokenizer: tokenizers.Tokenizer | None = None, *, force: bool = False,
) -> Path:  # fmt: skip
    """A folder of config.json, model.safetensors and the tokenizer's files, checked before it is where it belongs."""
    path = Path(path)
    for name, value in stored.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{name}: has values that are not numbers (NaN or infinite)")
    check_folder(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=PART, dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        # Copies: of tensors that share memory, as tied ones do, safetensors would write only one.
        copies = {name: value.clone() for name, value in stored.items()}
        save_tensors(partial / FILE_NAME, copies, {"format": "pt", MARK: __version__})
        if tokenizer is not None:
            write_whole(partial / "tokenizer.json", tokenizer.to_str())
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            if tokenizer.token_to_id(END) is not None:
                settings["eos_token"] = END
            write_whole(partial / "tokenizer_config.json", json.dumps(settings, indent=1))
        write_whole(partial / "config.json", json.dumps(dict(config), indent=1))
        check(partial)
        check_folder(path, force=force)
        path.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, path / file.name)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def check_folder(folder: Path, *, force: bool = False) -> None:
    """InputError when an export to a folder would replace somebody else's file, unless `force`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder to write")
    check_no_other_weights(folder)
    is_ours = _is_export(folder / FILE_NAME)
    for name in WRITTEN:
        check_place(folder / name, lambda path: is_ours, force=force)


def _is_export(weights: Path) -> bool:
    """Whether weights were exported here."""
    try:
        return not weights.is_symlink() and MARK in read_metadata(weights)
    except CheckpointError:
        return False


def check(folder: Path) -> None:
    """CheckpointError when a folder has not the tensors that its config.json promises."""
    checkpoint = FolderCheckpoint(folder)
    spec = spec_from_config(checkpoint.config, str(folder / "config.json"))
    assembler = Assembler(checkpoint, sources_for(spec, checkpoint.names()))
    assembler.check_all(tensors(spec).values())


def decoder_names(module: Decoder) -> dict[str, Rename]:
    """The table of a decoder of this package."""
    spec = module.spec
    table = family(spec.family).names
    names: dict[str, Rename] = {"lm_head.weight": "lm_head.weight"}
    for part, own in LLAMA.items():
        outer = "" if part in ("embed", "norm") else "layers.*."
        for name, stored_name in zip(own, table.modules[part], strict=True):
            names[f"{outer}{name}.weight"] = f"model.{outer}{stored_name}.weight"
    router, p = spec.layers[0].feed_forward.router, "layers.*.mlp."
    if isinstance(router, TreeSpec):
        for name in module.layers[0].get_submodule("mlp").state_dict():
            names[p + name] = f"model.{p}{name}"
    elif isinstance(router, RouterSpec):
        names |= _expert_names(table, p)
    return names


def _expert_names(table: TensorNames, p: str) -> dict[str, Rename]:
    """Every expert's matrices by themselves, as published files have them."""
    layout, layer = table.experts, "model.layers.*."
    assert layout is not None

    def gate_up(bank: Tensor) -> dict[str, Tensor]:
        gate, up = (layer + name for name in layout.gate_up)
        parts = {}
        for e, expert in enumerate(bank):
            parts[gate.format(e)], parts[up.format(e)] = expert.chunk(2)
        return parts

    def down(bank: Tensor) -> dict[str, Tensor]:
        return {(layer + layout.down).format(e): expert for e, expert in enumerate(bank)}

    return {
        p + "router.weight": layer + layout.router, p + "noise.weight": None, p + "gate_up": gate_up, p + "down": down,
        p + "selection_bias": layer + table.selection_bias,
    }  # fmt: skip
