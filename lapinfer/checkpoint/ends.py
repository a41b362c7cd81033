"""Texts of tokens that end an answer, whatever a checkpoint's files name as its end.

The list is llama.cpp's (src/llama-vocab.cpp).
"""

from __future__ import annotations

from typing import Final

END_OF_TURN: Final = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
    "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
)  # fmt: skip
"""Of any vocabulary in which they are special tokens."""

ENDS: Final = (*END_OF_TURN, "</s>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[")
"""Of GGUF files, which may say nothing of ends. Of folders, these end an answer only where their files name them."""
