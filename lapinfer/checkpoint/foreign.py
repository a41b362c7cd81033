"""Folders and files that are something else than a checkpoint: what they are, and what to do.

Tables, looked at when nothing could be opened: the first row that fits is told. Nothing here reads more of a file than
its first bytes or a small JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lapinfer.checkpoint.magic import SAFE, Found
from lapinfer.errors import CheckpointError, LapinferError, UnsupportedError, quoted

FOR_TRANSFORMERS: Final = "get or make a folder for transformers (config.json and model.safetensors)"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A folder with one of these `files` (patterns) is `what`, and its user should `do`."""

    files: tuple[str, ...]
    what: str
    do: str


FOLDERS: Final = (
    Foreign(
        ("run.json",),
        "a training of lapinfer that is not over",
        "let `lapinfer train` go on with it; its model/ comes last",
    ),
    Foreign(
        ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"),
        "an adapter (LoRA, PEFT), not a model{base}",
        "name the model that it was trained on, and this with --lora (PEFT's); MLX: merge it with mlx_lm.fuse",
    ),
    Foreign(("model_index.json",), "a diffusers pipeline, which makes images or sound", "name a model of text"),
    Foreign(
        ("modules.json", "config_sentence_transformers.json"),
        "a sentence-transformers model, which makes embeddings",
        "name a model that writes text",
    ),
    Foreign(
        ("blobs/sha256-*", "manifests"),
        "a store of ollama",
        "name the GGUF file in blobs that `ollama show --modelfile NAME` prints{blobs}",
    ),
    Foreign(
        ("sha256-*",),
        "blobs of ollama",
        "name the one with the weights, which `ollama show --modelfile NAME` prints{blobs}",
    ),
    Foreign(
        ("consolidated.safetensors", "consolidated-*.safetensors"), "weights in Mistral's own layout", FOR_TRANSFORMERS
    ),
    Foreign(("consolidated*.pth",), "Meta's own weights, which are pickles and never loaded", FOR_TRANSFORMERS),
    Foreign(
        ("mlc-chat-config.json", "ndarray-cache.json", "tensor-cache.json"),
        "a model compiled by MLC-LLM",
        FOR_TRANSFORMERS,
    ),
    Foreign(("weights.npz", "weights.*.safetensors", "model.npz"), "MLX weights of an early version", FOR_TRANSFORMERS),
    Foreign(
        ("job_new.json", "out_tensor", "measurement.json"),
        "a quantization by ExLlama (EXL2, EXL3)",
        "name the model that it was made from; lapinfer quantizes it itself (--quant)",
    ),
    Foreign(("*.nemo", "model_config.yaml", "model_weights"), "a NeMo model", FOR_TRANSFORMERS),
    Foreign(
        ("zero_to_fp32.py", "global_step*", "*_optim_states.pt"),
        "a checkpoint of DeepSpeed's training",
        "make one file of it with zero_to_fp32.py, and " + SAFE,
    ),
    Foreign(
        ("*.distcp", "__*_*.distcp"),
        "shards of torch's distributed checkpoints (FSDP)",
        "gather them with torch.distributed.checkpoint (dcp_to_torch_save), and " + SAFE,
    ),
    Foreign(
        ("mp_rank_*", "latest_checkpointed_iteration.txt"), "a checkpoint of Megatron's training", FOR_TRANSFORMERS
    ),
    Foreign(("*.ggml", "ggml-model*.bin"), "a GGML file, older than GGUF", "get a GGUF file of the model"),
    Foreign(
        ("model-*-of-*.safetensors",),
        "shards without their index",
        "download model.safetensors.index.json, too: it says which file each tensor is in",
    ),
    Foreign(
        ("model.*.safetensors",),
        "a variant of the weights ({found})",
        "call it model.safetensors if it is what you want",
    ),
    Foreign(
        ("*.safetensors",),
        "weights under another name ({found})",
        "call them model.safetensors if they are the whole model, under transformers' names",
    ),
    Foreign(("pytorch_model*.bin",), "a model with only pytorch_model.bin, a pickle, which is never loaded", SAFE),
    Foreign(
        ("*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin"),
        "a model with only {found}, a pickle, which is never loaded",
        SAFE,
    ),
    Foreign(
        ("tf_model*.h5", "*.h5", "*.keras", "saved_model.pb", "*.index"),
        "a model of TensorFlow or Keras",
        FOR_TRANSFORMERS,
    ),
    Foreign(
        ("flax_model*.msgpack", "*.msgpack", "checkpoint/_METADATA", "_METADATA"),
        "a model of Flax (JAX)",
        FOR_TRANSFORMERS,
    ),
    Foreign(("*.onnx", "onnx/*.onnx", "genai_config.json"), "a model for ONNX Runtime", FOR_TRANSFORMERS),
    Foreign(("openvino_*.xml", "*.xml"), "a model for OpenVINO", FOR_TRANSFORMERS),
    Foreign(("*.mlpackage", "*.mlmodelc", "*.mlmodel"), "a model for Core ML", FOR_TRANSFORMERS),
    Foreign(("*.engine", "*.plan", "rank0.safetensors"), "an engine of TensorRT", FOR_TRANSFORMERS),
    Foreign(("*.tflite", "*.task", "*.litertlm"), "a model for LiteRT (MediaPipe)", FOR_TRANSFORMERS),
    Foreign(("*.llamafile",), "a llamafile", "name a GGUF file: `unzip` takes the one out that is in it"),
    Foreign(("trainer_state.json",), "a checkpoint of a training without its weights", SAFE),
)
"""By their files, the surest first. {base}, {found} and {blobs} are filled in."""

INSTEAD: Final = (
    Foreign(
        (
            "*.index.json",
            "config.json",
            "generation_config.json",
            "tokenizer*.json",
            "chat_template.jinja",
            "special_tokens_map.json",
            "added_tokens.json",
            "preprocessor_config.json",
        ),
        "a file of a model's folder",
        "name the folder: {folder}",
    ),
    Foreign(
        ("adapter_model.*", "adapter_config.json"),
        "an adapter (LoRA, PEFT), not a model",
        "name the model that it was trained on, and the adapter's folder with --lora",
    ),
    Foreign(("consolidated*.safetensors",), "weights in Mistral's own layout", FOR_TRANSFORMERS),
    Foreign(("*.safetensors",), "safetensors", "name its folder: {folder}"),
    Foreign(("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"), "a pickle, which is never loaded", SAFE),
    Foreign(("*.onnx",), "a model for ONNX Runtime", FOR_TRANSFORMERS),
    Foreign(("*.h5", "*.keras", "*.pb"), "a model of TensorFlow or Keras", FOR_TRANSFORMERS),
    Foreign(("*.msgpack",), "a model of Flax (JAX)", FOR_TRANSFORMERS),
    Foreign(("*.nemo",), "a NeMo model", FOR_TRANSFORMERS),
    Foreign(
        ("*.zip", "*.tar", "*.tar.gz", "*.tgz", "*.7z", "*.zst"), "an archive", "unpack it, and name what was in it"
    ),
    Foreign(("*.model",), "a tokenizer", "name the folder of a model"),
)
"""Files that are named instead of a folder, by their names."""

WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def has_only_config(path: Path) -> bool:
    """Whether a folder has a config.json, and weights of no kind."""
    weights = any((path / name).is_file() for name in WEIGHTS)
    return (path / "config.json").is_file() and not weights and not any(_found(path, row) for row in FOLDERS)


def of_folder(path: Path) -> LapinferError:
    """The error for a folder that cannot be opened as a checkpoint."""
    weights = any((path / name).is_file() for name in WEIGHTS)
    for row in () if weights else FOLDERS:
        if (found := _found(path, row)) is not None:
            words = {"base": _base_model(path), "found": quoted(found.name), "blobs": _largest_gguf(path)}
            return UnsupportedError(f"{path}: is {row.what.format(**words)}; {row.do.format(**words)}")
    config = (path / "config.json").is_file()
    missing = f"{path}: has no {'model.safetensors and no model.safetensors.index.json' if config else 'config.json'}"
    if not config and (nearby := _nearby(path)) is not None:
        return CheckpointError(f"{missing}; there is a model in {nearby}: name that folder")
    if not any(path.iterdir()):
        return CheckpointError(f"{missing}: the folder is empty; name the folder of a model")
    if not config and not weights and any((path / name).is_file() for name in TOKENIZERS):
        return CheckpointError(f"{missing}: it has only a tokenizer; name the folder of a model")
    if config:
        return CheckpointError(f"{missing}: the weights are not here; download the whole model")
    return CheckpointError(f"{missing}; name the folder of a model, or a GGUF file")


def of_file(path: Path, found: Found) -> LapinferError:
    """The error for a file that is no model by itself; `found`: what it is by its first bytes."""
    if found.kind == "foreign":
        return UnsupportedError(f"{path}: is {found.words}")
    for row in INSTEAD:
        if any(path.match(pattern) for pattern in row.files):
            return UnsupportedError(f"{path}: is {row.what}; {row.do.format(folder=path.parent)}")
    if found.kind == "safetensors":
        return UnsupportedError(f"{path}: is a safetensors file of a model; name its folder: {path.parent}")
    return CheckpointError(f"{path}: is {found.words}; expected a GGUF file or a folder")


def beside(path: Path) -> tuple[str, ...]:
    """Notices about what lies beside the weights of a sound checkpoint, and is not applied."""
    notices = []
    if (path / "adapter_config.json").is_file():
        notices.append(f"note: {path}: an adapter lies beside the weights, which is not applied (adapter_config.json)")
    if (path / "modules.json").is_file():
        notices.append(f"note: {path}: made for embeddings (modules.json); what it writes may be nonsense")
    return tuple(notices)


def hub_snapshot(path: Path) -> Path | None:
    """The snapshot of a folder of the hub's cache (models--ORG--NAME): that of refs/main, or the only one.

    CheckpointError where there are several, and nothing says which.
    """
    snapshots = sorted(p for p in _matching(path, ("snapshots/*",)) if p.is_dir())
    if not snapshots or (path / "config.json").exists():
        return None
    try:
        commit = (path / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    chosen = [p for p in snapshots if p.name == commit] or snapshots
    if len(chosen) > 1:
        raise CheckpointError(f"{path}: has {len(chosen)} snapshots, name one of them, as {chosen[0]}")
    return chosen[0]


def _found(path: Path, row: Foreign) -> Path | None:
    return next(_matching(path, row.files), None)


def _matching(path: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    try:
        for pattern in patterns:
            yield from sorted(path.glob(pattern))
    except OSError:  # a folder below that may not be looked into
        return


def _base_model(path: Path) -> str:
    try:
        config = json.loads((path / "adapter_config.json").read_bytes()[: 1 << 20])
        name = config.get("base_model_name_or_path") or config.get("model")
        return f" of its own, of {quoted(name)}" if isinstance(name, str) else ""
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def _largest_gguf(path: Path) -> str:
    """The largest blob that begins as GGUF does, in words, or ""."""
    found = []
    for blob in _matching(path, ("blobs/sha256-*", "sha256-*")):
        try:
            with blob.open("rb") as file:
                if file.read(4) == b"GGUF":
                    found.append((blob.stat().st_size, blob))
        except OSError:
            continue
    return f"; the largest is {max(found)[1]}" if found else ""


def _nearby(path: Path) -> Path | None:
    """A folder one level below or above that is a model."""
    below = [p for p in _matching(path, ("*",)) if p.is_dir()]
    for folder in (*below, path.parent):
        if (folder / "config.json").is_file() and next(_matching(folder, ("model*.safetensors",)), None):
            return folder
    return None
