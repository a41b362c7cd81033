"""Trained weights as a checkpoint folder that the engine loads: docs/checkpoint-format.md, or a family's own names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lapinfer.checkpoint.folder import FolderCheckpoint
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import family, sources_for, spec_from_config
from lapinfer.families.names import LLAMA, TensorNames
from lapinfer.packing.assemble import Assembler
from lapinfer.spec import RouterSpec, TreeSpec
from lapinfer.tensors import tensors
from lapinfer.train.config import END
from lapinfer.train.decoder import Decoder
from lapinfer.train.state import replace_file, write_text

Rename = str | None | Callable[[Tensor], Mapping[str, Tensor]]
Names = Mapping[str, Rename]
"""A name in a module -> its name in the checkpoint; None: it is not written; a function: several tensors by name,
of a fused or transposed one. A * stands for a number, which the other side's * gets."""


def export(module: Decoder, path: str | Path, tokenizer: tokenizers.Tokenizer | None = None) -> Path:
    """Write a decoder of this package as the type that its configuration says: llama, lapinfer, mixtral, …"""
    return export_module(module, path, module.config.checkpoint_config(), decoder_names(module), tokenizer)


def export_module(
    module: nn.Module, path: str | Path, config: Mapping[str, Any], names: Names,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Path:  # fmt: skip
    """Write anybody's module as a checkpoint folder: its config.json, and a table from its names to the config's.

        export_module(model, "folder", {"model_type": "lapinfer", "fff": {…}, …}, {
            "embed.weight": "model.embed_tokens.weight",
            "blocks.*.ff.up": "model.layers.*.mlp.up",
            "blocks.*.qkv.weight": lambda w: dict(zip(THREE_NAMES, w.chunk(3), strict=True)),
            "mask": None,
        })

    Every tensor must be in the table, and every one that the config promises must come out, in its shape and as
    numbers; else InputError or CheckpointError, and nothing is written.
    """
    stored = renamed(module.state_dict(), names)
    return write_checkpoint(path, config, stored, tokenizer)


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
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Path:  # fmt: skip
    """A folder of config.json, model.safetensors and the tokenizer's files, checked before it is where it belongs."""
    path = Path(path)
    for name, value in stored.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{name}: has values that are not numbers (NaN or infinite)")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        # Copies: of tensors that share memory, as tied ones do, safetensors would write only one.
        save_file(
            {name: value.clone() for name, value in stored.items()}, partial / "model.safetensors", {"format": "pt"}
        )
        if tokenizer is not None:
            write_text(partial / "tokenizer.json", tokenizer.to_str())
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            if tokenizer.token_to_id(END) is not None:
                settings["eos_token"] = END
            write_text(partial / "tokenizer_config.json", json.dumps(settings, indent=1))
        write_text(partial / "config.json", json.dumps(dict(config), indent=1))
        check(partial)
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            replace_file(path / file.name, file)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


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
