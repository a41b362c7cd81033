"""What a training run is: sizes as in config.json, options of mixtures and trees, the optimiser; one TOML file.

    [model]      the keys of a Llama's config.json, and qk_norm
    [dense]      intermediate_size; or
    [moe]        experts, and how they are kept in balance; or
    [fff]        trees as in docs/checkpoint-format.md, and how they are trained
    [training]   steps, batch, learning rate, …

What is contradictory is refused with one line. The sizes become a config.json, and that a `ModelSpec` by the engine's
own reader: what is trained is what the engine runs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from lapinfer.errors import CheckpointError, InputError, UnsupportedError
from lapinfer.families import spec_from_config
from lapinfer.spec import ModelSpec

END: Final = "<|endoftext|>"
"""The special token between texts: id 0."""


def _within(default: float, least: float, most: float = inf) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


def _check(section: str, values: Any) -> None:
    """Types and ranges of a section's fields; whole numbers become floats where those are meant."""
    hints = get_type_hints(type(values))
    for entry in fields(values):
        value, hint = getattr(values, entry.name), hints[entry.name]
        if hint is float and type(value) is int:
            value = float(value)
            object.__setattr__(values, entry.name, value)
        if get_origin(hint) is Literal:
            fits, expected = value in get_args(hint), "one of " + ", ".join(get_args(hint))
        else:
            least, most = entry.metadata.get("least", -inf), entry.metadata.get("most", inf)
            fits = type(value) is hint and (hint not in (int, float) or least <= value <= most)  # NaN: false
            bounds = f" from {least:g}" + ("" if most == inf else f" to {most:g}") if entry.metadata else ""
            words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
            expected = words[hint] + bounds
        if not fits:
            raise InputError(f"{section}.{entry.name}: expected {expected}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Architecture:
    """[model]. head_dim 0: hidden_size / num_attention_heads. qk_norm: RMS norms on each head's queries and keys."""

    vocab_size: int = _within(2048, 257, 1 << 20)
    max_position_embeddings: int = _within(256, 4, 1 << 20)
    hidden_size: int = _within(128, 1, 1 << 16)
    num_hidden_layers: int = _within(4, 1, 1024)
    num_attention_heads: int = _within(4, 1, 1024)
    num_key_value_heads: int = _within(2, 1, 1024)
    head_dim: int = _within(0, 0, 4096)
    rope_theta: float = _within(10_000.0, 2, 1e9)
    rms_norm_eps: float = _within(1e-5, 0, 1)
    tie_word_embeddings: bool = True
    qk_norm: bool = False

    def __post_init__(self) -> None:
        _check("model", self)


@dataclass(frozen=True, slots=True)
class Dense:
    """[dense]."""

    intermediate_size: int = _within(512, 1, 1 << 20)

    def __post_init__(self) -> None:
        _check("dense", self)


@dataclass(frozen=True, slots=True)
class Mixture:
    """[moe]. Experts are gated SiLUs of moe_intermediate_size.

    noise: noisy top-k gating; importance, load: weights of squared coefficients of variation (all in arXiv 1701.06538,
    sections 2.1 and 4); switch: weight of the Switch Transformer's balance (2101.03961, equation 4); z_loss: of
    ST-MoE's (2202.08906, equation 5); bias_rate: u of loss-free balancing (2408.15664). 0 turns any of them off.
    """

    num_experts: int = _within(16, 1, 4096)
    num_experts_per_tok: int = _within(2, 1, 4096)
    moe_intermediate_size: int = _within(32, 1, 1 << 20)
    score: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = True
    noise: bool = False
    importance: float = _within(0.0, 0, 1e3)
    load: float = _within(0.0, 0, 1e3)
    switch: float = _within(0.01, 0, 1e3)
    z_loss: float = _within(0.001, 0, 1e3)
    bias_rate: float = _within(0.0, 0, 1)

    def __post_init__(self) -> None:
        _check("moe", self)
        if self.num_experts_per_tok > self.num_experts:
            raise InputError(
                f"moe.num_experts_per_tok: expected at most num_experts, {self.num_experts}, "
                f"got {self.num_experts_per_tok}"
            )
        if self.load and not self.noise:
            raise InputError("moe.load: a probability over the noise, so it needs noise = true; switch needs none")
        if self.bias_rate and self.score != "sigmoid":
            raise InputError('moe.bias_rate: a bias that selects needs score = "sigmoid"')
        if self.num_experts_per_tok == 1 and self.norm_topk_prob:
            raise InputError("moe.norm_topk_prob: a lone expert would always weigh 1, and the router learn nothing")


@dataclass(frozen=True, slots=True)
class Trees:
    """[fff]. Sizes as in the section `fff` of a config.json.

    forward: what training computes. `straight_through`: the chosen leaf, with the gradient of the mixture; `soft`: the
    mixture of arXiv 2308.14711; `hardened`: the chosen leaf, whose gradient does not reach the nodes. hardening: h, the
    weight of the mean entropy of decisions, rising linearly from 0 at the share hardening_start of all steps to h at
    the last. region_leak: how often a decision is turned around. balance: α of arXiv 2405.16836.
    """

    depth: int = _within(3, 0, 16)
    leaf_width: int = _within(64, 1, 1 << 20)
    trees: int = _within(1, 1, 4096)
    gated: bool = True
    activation: str = "silu"
    bias: bool = False
    node_bias: bool = True
    node_width: int = _within(1, 1, 4096)
    node_activation: str = "relu"
    master_width: int = _within(0, 0, 1 << 20)
    mix: bool = False
    forward: Literal["straight_through", "soft", "hardened"] = "straight_through"
    hardening: float = _within(0.0, 0, 1e3)
    hardening_start: float = _within(0.5, 0, 0.999)
    region_leak: float = _within(0.0, 0, 0.5)
    balance: float = _within(0.01, 0, 1e3)

    def __post_init__(self) -> None:
        _check("fff", self)

    def section(self) -> dict[str, Any]:
        """The section of a config.json."""
        values = asdict(self)
        for name in ("forward", "hardening", "hardening_start", "region_leak", "balance"):
            del values[name]
        return values


@dataclass(frozen=True, slots=True)
class Training:
    """[training]. A step is `batch` windows of `length` tokens (0: max_position_embeddings).

    The learning rate rises linearly for `warmup` steps, and falls as a cosine to `final` times its peak. precision
    auto: bfloat16 where the processor multiplies it, for matrices; weights, norms and routers are float32. dropout: the
    share of embeddings, and of what attention and feed-forwards add, that is zeroed in training. validation: the share
    of each text, its end, that is held out.
    """

    steps: int = _within(700, 1, 1 << 40)
    batch: int = _within(16, 1, 1 << 20)
    length: int = _within(0, 0, 1 << 20)
    learning_rate: float = _within(3e-3, 0, 10)
    warmup: int = _within(50, 0, 1 << 40)
    final: float = _within(0.1, 0, 1)
    weight_decay: float = _within(0.1, 0, 10)
    beta1: float = _within(0.9, 0, 0.9999)
    beta2: float = _within(0.95, 0, 0.99999)
    clip: float = _within(1.0, 1e-6, 1e9)
    dropout: float = _within(0.0, 0, 0.9)
    precision: Literal["auto", "bf16", "f32"] = "auto"
    seed: int = _within(0, 0, 1 << 32)
    validation: float = _within(0.05, 0.0001, 0.9)
    log_every: int = _within(10, 1, 1 << 40)
    validate_every: int = _within(100, 1, 1 << 40)
    save_every: int = _within(100, 1, 1 << 40)

    def __post_init__(self) -> None:
        _check("training", self)


@dataclass(frozen=True, slots=True)
class Config:
    """A training run. At most one of dense, moe and fff; without any, the default dense feed-forward."""

    model: Architecture = field(default_factory=Architecture)
    dense: Dense | None = None
    moe: Mixture | None = None
    fff: Trees | None = None
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        kinds = [name for name in ("dense", "moe", "fff") if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise InputError(f"{', '.join(kinds)}: expected one kind of feed-forward")
        if not kinds:
            object.__setattr__(self, "dense", Dense())
        if self.training.length > self.model.max_position_embeddings:
            raise InputError(
                f"training.length: expected at most max_position_embeddings, {self.model.max_position_embeddings}, "
                f"got {self.training.length}"
            )
        if self.moe is not None and self.moe.score == "sigmoid" and not self.model.qk_norm:
            raise InputError("moe.score: sigmoid is written as lfm2_moe, whose attention needs model.qk_norm = true")
        if self.moe is not None and not self.moe.norm_topk_prob and not self.model.qk_norm:
            raise InputError("moe.norm_topk_prob: false is written as qwen3_moe, which needs model.qk_norm = true")
        self.spec()

    @property
    def length(self) -> int:
        """Tokens of a training window."""
        return self.training.length or self.model.max_position_embeddings

    def spec(self) -> ModelSpec:
        """The model as the engine has it; InputError for sizes that contradict each other."""
        try:
            return spec_from_config(self.checkpoint_config(), "config")
        except (CheckpointError, UnsupportedError) as error:
            raise InputError(str(error)) from error

    def checkpoint_config(self) -> dict[str, Any]:
        """The config.json of the model's checkpoint."""
        values = asdict(self.model)
        qk_norm = values.pop("qk_norm")
        if not values["head_dim"]:
            del values["head_dim"]
        values |= {"hidden_act": "silu", "dtype": "float32", "eos_token_id": 0, "bos_token_id": None}
        if self.moe is not None:
            return _mixture_config(values, self.moe, qk_norm)
        if self.fff is not None:
            width = self.fff.leaf_width << self.fff.depth  # no layer has it, but Llama's config.json does
            model_type = "qwen3" if qk_norm else "lapinfer"
            return {"model_type": model_type, **values, "intermediate_size": width, "fff": self.fff.section()}
        assert self.dense is not None
        model_type, name = ("qwen3", "Qwen3") if qk_norm else ("llama", "Llama")
        return {
            "model_type": model_type, "architectures": [f"{name}ForCausalLM"], **values,
            "intermediate_size": self.dense.intermediate_size,
        }  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Sections and keys, as `from_dict` reads them."""
        return {name: section for name, section in asdict(self).items() if section is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A configuration from sections of keys; InputError names what is not known."""
        sections: dict[str, Any] = {}
        for name, section in values.items():
            if name not in SECTIONS:
                raise InputError(f"{name}: not a section; expected {', '.join(SECTIONS)}")
            if not isinstance(section, Mapping):
                raise InputError(f"{name}: expected a section [{name}], got {section!r}")
            keys = [entry.name for entry in fields(SECTIONS[name])]
            for key in section:
                if key not in keys:
                    raise InputError(f"{name}.{key}: not a key; expected {', '.join(keys)}")
            sections[name] = SECTIONS[name](**section)
        return cls(**sections)

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """A configuration from a file; errors begin with its name."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_bytes().decode("utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a TOML file ({error})") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


SECTIONS: Final[Mapping[str, Any]] = {
    "model": Architecture, "dense": Dense, "moe": Mixture, "fff": Trees, "training": Training,
}  # fmt: skip


def _mixture_config(values: dict[str, Any], moe: Mixture, qk_norm: bool) -> dict[str, Any]:
    """As the family whose router is the same: Mixtral's, Qwen 3's with query and key norms, LFM2's with sigmoids."""
    values |= {"num_experts_per_tok": moe.num_experts_per_tok}
    if not qk_norm:
        return {
            "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **values,
            "num_local_experts": moe.num_experts, "intermediate_size": moe.moe_intermediate_size,
            "sliding_window": None,
        }  # fmt: skip
    values |= {
        "num_experts": moe.num_experts, "moe_intermediate_size": moe.moe_intermediate_size,
        "intermediate_size": moe.moe_intermediate_size, "norm_topk_prob": moe.norm_topk_prob,
    }  # fmt: skip
    if moe.score == "softmax":
        return {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **values, "decoder_sparse_step": 1}
    eps = values.pop("rms_norm_eps")
    del values["hidden_act"]  # LFM2 has no such key: it is always SiLU
    return {
        "model_type": "lfm2_moe", "architectures": ["Lfm2MoeForCausalLM"], **values, "norm_eps": eps,
        "layer_types": ["full_attention"] * values["num_hidden_layers"], "num_dense_layers": 0,
        "use_expert_bias": bool(moe.bias_rate), "routed_scaling_factor": 1.0,
    }  # fmt: skip
