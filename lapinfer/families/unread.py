"""Stored tensors that no part of the model is read from: what they are, and whether the model can do without them.

The rule, for a tensor that the family has no place for:

1. It is what another tool makes of weights (quantized, an adapter, another program's names): refused, with what to do.
2. It follows from config.json, or is empty: it changes nothing, and nobody needs to hear of it.
3. It belongs to something else that is stored beside the model (images, other tasks, further layers), or is no float,
   as no weight is: it is left aside, and named in a line.
4. It stands in a layer that is read, or beside the layers under a name of what a forward pass is made of: the model
   would be another one without it, and is refused.
5. What is left is left aside, and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from lapinfer.families.quantized import INSTEAD

Verdict = Literal["foreign", "harmless", "aside", "needed"]


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors whose name has `pattern`; `dims`: only those with so many dimensions. `why`: what they are."""

    pattern: re.Pattern[str]
    why: str
    dims: tuple[int, ...] | None = None


def _kind(pattern: str, why: str, *dims: int) -> Kind:
    return Kind(re.compile(pattern, re.ASCII), why, dims or None)


FOREIGN: Final = (
    _kind(r"\.(qweight|qzeros|g_idx)$", f"weights quantized by GPTQ or AWQ; {INSTEAD}"),
    _kind(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|SCB|weight_format)$",
          f"weights quantized by bitsandbytes; {INSTEAD}"),
    _kind(r"\.weight_scale_inv$|\.(weight|input|activation)_scale$|\.scale_weight$|^scaled_fp8$",
          f"scales of weights quantized to FP8 or int8; {INSTEAD}"),
    _kind(r"\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale|input_global_scale|weight_g_idx)$",
          f"weights quantized by compressed-tensors; {INSTEAD}"),
    _kind(r"\.(q_weight|q_scale|q_scale_max|q_groups|q_invperm|q_perm|q_group_map|trellis|suh|svh|mcg|mul1)$",
          f"weights quantized by ExLlama (EXL2, EXL3); {INSTEAD}"),
    _kind(r"\.(codebooks|codes)$", f"weights quantized by AQLM; {INSTEAD}"),
    _kind(r"\.(W_q|W_q_packed)$|\.(\w+_proj|lm_head)\.(zero|scale|meta)$", f"weights quantized by HQQ; {INSTEAD}"),
    _kind(r"\.(_data|_scale|_zeropoint|_shift)$", f"weights quantized by Quanto; {INSTEAD}"),
    _kind(r"(_proj|_tokens|lm_head|switch_mlp\.\w+)\.(scales|biases)$", f"weights quantized by MLX; {INSTEAD}"),
    _kind(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.|^base_model\.model\.",
          "an adapter's tensors; merge them into the model with PEFT's merge_and_unload, and save that"),
    _kind(r"\.parametrizations\.|\.weight_[gv]$", "weights under a parametrization; remove it before saving the model"),
    _kind(r"_fsdp_wrapped_module\.|_flat_param\b", "shards of FSDP; gather the whole model before saving it"),
    _kind(r"^(tok_embeddings|output)\.weight$|^layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.",
          "weights under Meta's or Mistral's own names; get or make a folder for transformers (model.safetensors)"),
    _kind(r"\.linear_(qkv|fc1|fc2|proj)\.|\.self_attention\.query_key_value\.",
          "weights under Megatron's or another family's names; get or make a folder for transformers"),
)  # fmt: skip
"""What other tools make of weights."""

HARMLESS: Final = (
    _kind(r"rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|rotary_pos_emb\.inv_freq$",
          "rotary frequencies, which follow from config.json"),
    _kind(r"^rope\.freqs$", "rotary frequencies"),
    _kind(r"(attn|attention)\.(bias|masked_bias)$", "a causal mask, or the number in it", 0, 1, 4),
    _kind(r"(^|\.)position_ids$", "0, 1, 2, …"),
)  # fmt: skip
"""Buffers of older files. A bias of attention has one dimension, too, but hangs on a projection."""

ASIDE: Final = (
    _kind(r"(^|\.)(vision|visual|image|audio|speech|video|multi_modal|multimodal|mm_|siglip|clip)",
          "parts for images or sound"),
    _kind(r"(^|\.)(mtp\w*|nextn\w*)\.|(^|\.)medusa|(^|\.)eagle", "layers that guess further tokens"),
    _kind(r"^(score|classifier|classification_head|v_head|value_head|reward_head|qa_outputs|regression_head|summary)\b",
          "heads for other tasks"),
    _kind(r"\.[kvq]_scale$|\.kv_scale$|\.(q|k|v)_zero_point$", "scales of a quantized KV cache"),
    _kind(r"^(optimizer|optim|ema|scheduler)\b", "states of training"),
)  # fmt: skip
"""What may be stored beside a decoder of text."""

WORDS: Final = re.compile(r"norm|(^|[._])ln|embed|embd|pos|proj|scale|prefix|prompt|adapter|^lm_head|^output")
"""Parts of names, beside the layers, of what a forward pass is made of."""

LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h)\.(\d{1,9})\.", re.ASCII)


def foreign(names: Iterator[str] | list[str]) -> tuple[str, str] | None:
    """The first tensor that another tool has made, and what it is."""
    for name in names:
        for kind in FOREIGN:
            if kind.pattern.search(name):
                return name, kind.why
    return None


def verdict(name: str, shape: tuple[int, ...], is_float: bool, prefix: str, layers: int) -> tuple[Verdict, str]:
    """What becomes of a tensor that is not read, and why.

    prefix: what the names of the decoder's tensors begin with. layers: how many it has.
    """
    if 0 in shape:
        return "harmless", "empty"
    for kind in HARMLESS:
        if kind.pattern.search(name) and (kind.dims is None or len(shape) in kind.dims):
            return "harmless", kind.why
    inner = name.removeprefix(prefix)
    layer = LAYER.match(inner) if name.startswith(prefix) else None
    if layer and int(layer[1]) >= layers:
        return "aside", f"layers beyond the {layers} of config.json"
    for kind in ASIDE:
        if kind.pattern.search(name):
            return "aside", kind.why
    if not is_float:
        return "aside", "no floats"
    if layer:
        return "needed", "in a layer"
    beside = name.startswith(prefix) and inner.count(".") <= 1
    if (beside or name.startswith("lm_head.")) and WORDS.search(inner.rpartition(".")[0]):
        return "needed", "beside the layers"
    return "aside", "of no known use"
