"""Keys of a config.json that no reader asked for: left aside when they change nothing, refused when they may.

The rule, for a key that the family's reader did not ask for:

1. It is on the list below, or on the family's own list of ignored keys: it changes nothing.
2. Its value says nothing: null, false, zero, empty, a 1 that something would be multiplied with, or layers that all
   have full attention. An option that is off, whatever it is, leaves the model as it is.
3. It stands among rope parameters, or its name has one of the words that the forward pass is made of (WORDS): it may
   change what the model computes, and is refused by name.
4. What is left is reported in one line.

So a new option of a known family is never skipped in silence, and marks of training tools don't stop anybody.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from lapinfer.errors import CheckpointError, UnsupportedError
from lapinfer.families.config import Config, shown

HARMLESS: Final = frozenset((
    # what wrote the file, and what it was made from
    "_name_or_path", "name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "model_type",
    "transformers_version", "transformers.js_config", "_commit_hash", "is_llama_config",
    # how transformers runs it
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "_experts_implementation",
    "_flash_attn_2_enabled", "cache_implementation", "chunk_size_feed_forward", "output_attentions",
    "output_hidden_states", "pretraining_tp", "ep_size", "return_dict", "torchscript", "use_cache", "use_bfloat16",
    "use_return_dict", "tf_legacy_loss", "pruned_heads", "unsloth_fixed",
    # training
    "aux_loss_alpha", "gradient_checkpointing", "initializer_range", "input_jitter_noise", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "seq_aux",
    # other tasks than text, and defaults of generation
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "id2label", "is_decoder",
    "label2id", "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_scores", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
    "task_specific_params", "temperature", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "typical_p",
))  # fmt: skip
"""Keys that change nothing in any family."""

HARMLESS_ENDS: Final = ("_dropout", "_pdrop", "_token_id", "_token_ids", "_version")

MOST_UNKNOWN: Final = 1000
"""Keys, as each of them is looked at; published files have ten or twenty."""

WORDS: Final = re.compile(
    r"activation|adapter|alibi|altup|attention|attn|bias|bidirectional|block|cap\b|causal|chunk|clamp|clip|compress|"
    r"conv|cross|depth|dims?\b|embed|encoder|eps\b|epsilon|expert|factor|ffn?\b|freq|gate|gating|glu\b|group|head|hidden|indexer|"
    r"intermediate|interleave|kv\b|latent|laurel|layer|limit|logit|lora|mamba|mask|memory|mix|mlp|moe\b|mscale|"
    r"multiplier|nope\b|norm|ntk|parallel|patt?ern|position|prenorm|qk|quant|rank|recurren|residual|rope|rotary|"
    r"rout|scal|shared|sink|size|skip|sliding|softcap|sparse|ssm|state|swiglu|temper|theta|tie\b|tied|tying|topk|vocab|"
    r"width|window"
)
"""Parts of names of what a forward pass is made of; \\b ends a word between underscores."""

FACTORS: Final = re.compile(r"scal|factor|multiplier|temper|mod\b")
"""Parts of names of what something is multiplied with."""


def unknown_keys(config: Config, ignored: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Paths and values of keys that were not asked for and are on no list, objects that were read looked into."""

    def walk(values: dict[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            name = f"{path}{key}"
            if name not in config.asked:
                if key not in HARMLESS and not str(key).endswith(HARMLESS_ENDS) and key not in ignored:
                    yield name, value
            elif isinstance(value, dict) and any(read.startswith(f"{name}.") for read in config.asked):
                yield from walk(value, f"{name}.")

    return walk(dict(config.values), "")


def is_functional(name: str, value: Any) -> bool:
    """Whether an unknown key may change what the model computes."""
    words = name.lower().replace("_", " ").replace(".", " ")
    return not says_nothing(words, value) and WORDS.search(words) is not None


def check_unknown_keys(config: Config, ignored: Collection[str] = ()) -> str:
    """One line about keys that are left aside, or ""; UnsupportedError for one that may change the function."""
    left: list[str] = []
    for count, (name, value) in enumerate(unknown_keys(config, ignored)):
        if count == MOST_UNKNOWN:
            raise CheckpointError(
                f"{config.where}: has more than {MOST_UNKNOWN} keys that are not known; is it another file?"
            )
        if is_functional(name, value):
            raise UnsupportedError(
                f"{config.where}: {name[:80]!r} is {shown(value)}, which is not known in this family and may change "
                f"what it computes; remove the key if it does not"
            )
        if not says_nothing(name, value):
            left.append(f"{name[:80]!r} ({shown(value)})")
    more = f" and {len(left) - 8} more" if len(left) > 8 else ""
    return f"note: {config.where}: left aside, since it is not known here: {', '.join(left[:8])}{more}" if left else ""


def says_nothing(name: str, value: Any) -> bool:
    """Whether a value is that of an option that is off."""
    if isinstance(value, list | dict):
        return all(item is None or item is False or item == "full_attention" for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value == 0 or (value == 1 and FACTORS.search(name.lower()) is not None)
    return value in (None, False, "")
