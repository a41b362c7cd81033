"""What lies beside weights: tokenizer, templates, and how to generate.

Read where the checkpoint lies, never from a packed copy of it.
"""

from __future__ import annotations

from pathlib import Path

TEXTS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model",
    "generation_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files of a checkpoint's folder, each of which may be missing."""
TEMPLATES = "additional_chat_templates"
"""A folder of further templates, NAME.jinja."""


def texts_in(folder: Path) -> list[Path]:
    """The texts that a folder has, by their paths in it."""
    found = [Path(name) for name in TEXTS if (folder / name).is_file()]
    return found + sorted(path.relative_to(folder) for path in (folder / TEMPLATES).glob("*.jinja") if path.is_file())
