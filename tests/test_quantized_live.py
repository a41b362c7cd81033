"""Matrices that the tools' own libraries have quantized and stored, against what these make of them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import CONFIG, LAYER, SHAPES, Stored, floats, save

from lapinfer.checkpoint.folder import FolderCheckpoint

torch = pytest.importorskip("torch")

TYPES = {
    torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
Q = f"{LAYER}self_attn.q_proj."


def stored(tensor: Any) -> tuple[str, np.ndarray]:
    """A tensor of PyTorch, as its type and bits."""
    kind = TYPES[tensor.dtype]
    bits = {"BF16": torch.uint16, "F8_E4M3": torch.uint8}.get(kind)
    return kind, (tensor.view(bits) if bits else tensor).contiguous().numpy()


def folder(path: Path, section: dict[str, Any], parts: Stored) -> FolderCheckpoint:
    """A tiny Llama of which one matrix is quantized."""
    rng = np.random.default_rng(0)
    plain = {f"{LAYER}{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    del plain[f"{Q}weight"]
    tensors = {name: ("F32", values) for name, values in (floats() | plain).items()}
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": section}))
    save(tensors | {f"{Q}{name}": value for name, value in parts.items()}, path / "model.safetensors")
    return FolderCheckpoint(path)


def matrix() -> Any:
    return torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, SHAPES["self_attn.q_proj"]).astype(np.float32))


COMPRESSED = [
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False}),
    ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
]


@pytest.mark.parametrize(("form", "weights"), COMPRESSED, ids=lambda value: value if isinstance(value, str) else "")
def test_compressed_tensors(form: str, weights: dict[str, Any], tmp_path: Path) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    library = pytest.importorskip("compressed_tensors.quantization")
    found = pytest.importorskip("compressed_tensors.quantization.utils")
    args = library.QuantizationArgs(**weights)
    scheme = library.QuantizationScheme(targets=["Linear"], weights=args, format=form)
    x = matrix()
    size = args.group_size or x.shape[1]
    groups = x.reshape(len(x), -1, size)
    state = {"weight": x}
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = (448 * 6 / x.abs().max()).reshape(1)
        more = {"global_scale": state["weight_global_scale"]}
    else:
        more = {}
    scale, zero = found.calculate_qparams(groups.amin(-1), groups.amax(-1), args, **more)
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    compressed = compressor.compress(state, scheme)
    again = compressor.decompress(compressed, scheme)["weight"]
    section = {"quant_method": "compressed-tensors", "format": form,
               "config_groups": {"group_0": json.loads(scheme.model_dump_json())}}  # fmt: skip
    if args.symmetric:
        compressed.pop("weight_zero_point", None)
    checkpoint = folder(tmp_path / "model", section, {name: stored(value) for name, value in compressed.items()})
    read = checkpoint.read(f"{Q}weight")
    np.testing.assert_allclose(read, again.float().numpy(), rtol=2e-7 if again.dtype == torch.float32 else 2**-8)
    assert np.linalg.norm(read - x.numpy()) < 0.12 * np.linalg.norm(x.numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes(kind: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    x = matrix()
    codes, state = functional.quantize_4bit(x, blocksize=64, quant_type=kind, compress_statistics=nested)
    again = functional.dequantize_4bit(codes, state)
    parts = {"weight": stored(codes)} | {
        f"weight.{name}": stored(value) for name, value in state.as_dict(packed=True).items()
    }
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    checkpoint = folder(tmp_path / "model", section, parts)
    np.testing.assert_allclose(checkpoint.read(f"{Q}weight"), again.numpy(), rtol=1e-6, atol=1e-8)
