"""Random tokenizer folders: what tokenizer.json, tokenizer_config.json and the older files beside them can say.

`python tests/tokenizer_cases.py` stores what transformers makes of them (`VALUES`), for the tests that run without it.
"""

import hashlib
import json
import os
import random
import tempfile
import warnings
from pathlib import Path

from fake_model import byte_names
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VALUES = Path(__file__).parent / "tokenizer_values.json"
CASES = 160
TEXTS = [
    "hello",
    "he llo 123 .",
    "<s>hello</s>",
    "<|im_start|>user\nhello <x> he<|im_end|>\n",
    " <y>hello <pad>   hello",
    "hé 1234 don't <|endoftext|>x",
    "",
    " hello <unk> world n't '",
]
WORDS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>", "<x>", "<|endoftext|>", "<unk>", " <y>", "hello"]
CLASSES = [
    *("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer"),
    *("GPT2TokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"),
    *("GPTNeoXTokenizerFast", "CohereTokenizerFast", "Qwen3_5Tokenizer", "NoSuchTokenizer", "BloomTokenizerFast", None),
]
MODELS = [
    *["llama"] * 6,
    *("qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "granite", "olmo2", "olmoe", "gpt2", "gpt_oss"),
    *("smollm3", "deepseek_v3", "lfm2", "fff", None),
]


def write_case(seed: int, folder: Path) -> None:
    """The files of one case."""
    r = random.Random(seed)
    kind = r.choice([byte_level, byte_level, pieces, words])
    tokenizer = kind(r)
    for _ in range(r.randrange(4)):
        flags = {name: r.random() < 0.2 for name in ("normalized", "lstrip", "rstrip", "single_word")}
        added = AddedToken(r.choice(WORDS), special=r.random() < 0.6, **flags)
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    if r.random() < 0.5:
        begin = tokenizer.token_to_id(r.choice(WORDS))
        tokenizer.post_processor = (
            processors.ByteLevel()
            if begin is None
            else processors.TemplateProcessing(single="B $A", pair="B $A B:1 $B:1", special_tokens=[("B", begin)])
        )
    if r.random() < 0.1:
        tokenizer.enable_truncation(3)
    if r.random() < 0.1:
        tokenizer.enable_padding(length=12)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = r.choice(MODELS)
    config = configuration(r, tokenizer, rebuilt=kind is not words)
    if kind is words:  # of which the other classes cannot make a tokenizer of theirs
        model = "llama"
    if r.random() < 0.3:
        named = {name: token(r) for name in ("bos_token", "eos_token", "pad_token") if r.random() < 0.5}
        extra = {"additional_special_tokens": [r.choice(WORDS)]} if r.random() < 0.5 else {}
        put(folder, "special_tokens_map", named | extra)
    if r.random() < 0.2:
        put(folder, "added_tokens", {w: tokenizer.get_vocab_size() + i for i, w in enumerate(r.sample(WORDS, 2))})
    put(folder, "tokenizer_config", config)
    if model is not None:
        put(folder, "config", {"model_type": model})


def configuration(r: random.Random, tokenizer: Tokenizer, rebuilt: bool) -> dict:
    config = {}
    name = r.choice(CLASSES) if rebuilt else "PreTrainedTokenizerFast"
    if name is not None:
        config["tokenizer_class"] = name
    for key in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "mask_token"):
        if r.random() < 0.5:
            config[key] = None if r.random() < 0.2 else token(r, typed=True)
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "clean_up_tokenization_spaces"):
        if r.random() < 0.3:
            config[key] = r.random() < 0.5
    if r.random() < 0.1:
        config["split_special_tokens"] = True
    if r.random() < 0.2:
        config["image_token"] = token(r, typed=True)
    which = r.random()
    if which < 0.2:
        named = {"boi_token": "<boi>", "foo": r.choice(WORDS)}
        config["extra_special_tokens"] = r.choice([r.sample(WORDS, 2), named, []])
    elif which < 0.4:
        config["additional_special_tokens"] = [token(r, typed=True) for _ in range(2)]
    if r.random() < 0.4:
        added, size = {}, tokenizer.get_vocab_size()
        for i, word in enumerate(r.sample(WORDS, 3)):
            known = tokenizer.token_to_id(word)
            added[str(size + i if known is None else known)] = token(r, word, as_object=True)
        config["added_tokens_decoder"] = added
    return config


def token(r: random.Random, word: str | None = None, typed: bool = False, as_object: bool = False) -> str | dict:
    word = r.choice(WORDS) if word is None else word
    if r.random() < 0.5 and not as_object:
        return word
    flags = {f: r.random() < 0.25 for f in ("lstrip", "rstrip", "single_word", "normalized") if r.random() < 0.85}
    special = {"special": r.random() < 0.7} if r.random() < 0.6 else {}
    return {"content": word} | flags | special | ({"__type": "AddedToken"} if typed else {})


def byte_level(r: random.Random) -> Tokenizer:
    vocabulary = [*byte_names(), *(w for w in WORDS if r.random() < 0.4)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, []))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = r.choice([plain, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), plain])])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(r: random.Random) -> Tokenizer:
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁h", "h", "e", "l", "o", "▁he"]
    vocabulary += ["lo", *(w for w in WORDS if r.random() < 0.3)]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    merges = [("▁", "h"), ("▁h", "e"), ("l", "o")]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def words(r: random.Random) -> Tokenizer:
    if r.random() < 0.5:
        vocabulary = dict.fromkeys(["<unk>", "h", "he", "hello", ".", "'", "n't", *WORDS])
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    else:
        scored = [("<unk>", 0.0), *((w, -1.0 - i) for i, w in enumerate(["h", "e", "l", "o", ".", "▁", " "]))]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = r.choice([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()])
    return tokenizer


def put(folder: Path, name: str, value: dict) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value))


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def theirs(folder: Path) -> dict | None:
    """What transformers makes of a folder, None where it cannot load it."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            t = transformers.AutoTokenizer.from_pretrained(folder)
            ids = [[t(text).input_ids, t(text, add_special_tokens=False).input_ids] for text in TEXTS]
        except Exception:  # an unknown token that is not in the vocabulary, mostly
            return None
        decoded = [t.decode(with_special, skip_special_tokens=True) for with_special, _ in ids]
    return {"ids": ids, "decoded": decoded, "special": dict(t.special_tokens_map)}


def main() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    values = {}
    for seed in range(CASES):
        with tempfile.TemporaryDirectory() as folder:
            write_case(seed, Path(folder))
            if (value := theirs(Path(folder))) is not None:
                values[str(seed)] = digest(value)
    VALUES.write_text(json.dumps(values, indent=0).replace("\n", "") + "\n")


if __name__ == "__main__":
    main()
