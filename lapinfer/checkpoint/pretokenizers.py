"""tokenizer.ggml.pre: how llama.cpp cuts text before its byte-level merges, by the name that a GGUF file has.

The names, and what goes with them, are those of llama.cpp's loader (src/llama-vocab.cpp); a pattern is that of the
published tokenizer.json where llama.cpp's is only rewritten for its own engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Cut:
    """Patterns, one after the other: each match and each stretch between matches becomes a piece.

    whole_words: pieces that are tokens are not merged from parts. bos: text begins with BOS unless the file says
    otherwise. nfc: text is composed first, as the published tokenizer does.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False
    nfc: bool = False


_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = f"{_SIGNS}|{_SPACE}"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED = (f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*")
_CASED_ENDINGS = "|".join(f"{word}{_ENDINGS}?" for word in _CASED)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = f"{_ENDINGS}|{_WORD}|" + r"\p{N}{1,3}|" + _REST
_QWEN2 = f"{_ENDINGS}|{_WORD}|" + r"\p{N}|" + _REST
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
) + _SPACE
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_NORDIC = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_ASCII_AND_WIDE = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_HANGUL_SIGNS_BOPOMOFO = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|"
    "[\u3105-\u312f]+|"
)
_CJK_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

DEFAULT: Final = Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
"""What is meant without a name, and by the name "default"."""

_GPT2_CUT = Cut((_GPT2,))
_DIGITS = Cut((r"\p{N}", _GPT2))
_LLAMA3_CUT = Cut((_LLAMA3,), whole_words=True, bos=True)
_QWEN2_CUT = Cut((_QWEN2,), nfc=True)

CUTS: Final[dict[str, Cut]] = {
    "default": DEFAULT,
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",
         "modern-bert", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
        _GPT2_CUT,
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _LLAMA3_CUT,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Cut((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2_CUT),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), Cut((_QWEN2,))),
    "qwen35": Cut(
        (f"{_ENDINGS}|" + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACE,), nfc=True
    ),
    "minicpm5": Cut((r"\p{N}{1,3}", f"{_ENDINGS}|{_WORD}|" + r"\p{N}+|" + _REST), whole_words=True),
    "jais-2": Cut(
        (f"{_ENDINGS}|{_WORD}|" + r"\p{N}{1,3}|" + _SIGNS + r"|\s*[\r\n]+|"
         + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}",)
    ),
    "deepseek-llm": Cut(
        (r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", _ASCII_AND_WIDE, r"\s+$", _CJK_HANGUL, r"\p{N}+")
    ),
    "deepseek-coder": Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_HANGUL, r"\p{N}")),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), Cut((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3))
    ),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), Cut((_NORDIC,))),
    "viking": Cut((_NORDIC, r"\p{N}")),
    "tekken": Cut((f"{_CASED[0]}|{_CASED[1]}|" + r"\p{N}|" + _REST_WITH_SLASH,), whole_words=True, bos=True),
    "youtu": Cut(
        (_HANGUL_SIGNS_BOPOMOFO + _HAN_KANA, f"{_CASED_ENDINGS}|" + r"\p{N}|" + _REST_WITH_SLASH),
        whole_words=True,
    ),
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        Cut((f"{_CASED_ENDINGS}|" + r"\p{N}{1,3}|" + _REST_WITH_SLASH,)),
    ),
    "granite-embed-multi-97m": Cut((f"{_CASED_ENDINGS}|" + r"\p{N}{1,3}|" + _REST_WITH_SLASH,), whole_words=True),
    **dict.fromkeys(
        ("tiny_aya", "cohere2moe"),
        Cut((r"\d{1,3}(?=(?:\d{3})*\b)", f"{_CASED_ENDINGS}|" + r"\p{N}{1,3}|" + _REST_WITH_SLASH)),
    ),
    "chameleon": Cut(
        ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
         r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
        bos=True,
    ),
    "superbpe": Cut((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **dict.fromkeys(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        Cut((f"'(?i:[sdmt]|ll|ve|re)|{_WORD}|" + r"\p{N}|" + _SIGNS + r"|\s*[\r\n]|\s+(?!\S)|\s+",)),
    ),
    "seed-coder": Cut((f"{_ENDINGS}|{_WORD}|" + r"\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACE,)),
    "ufakzeka": Cut((f"{_WORD}|" + r"\p{N}|" + _REST,)),
    "laguna": Cut((r"[^\n]+|[\n]+", _QWEN2)),
    "exaone-moe": Cut(
        (f"{_ENDINGS}|" + r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|"
         r"\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
}  # fmt: skip
"""Names that are left out are cut by code of llama.cpp's own, not by patterns: kimi-k2, afmoe, gemma4, and the like."""
