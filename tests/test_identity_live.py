"""Texts that are changed after a checkpoint was packed, as transformers reads them."""

import json

import pytest
from fake_model import CHAT, byte_tokenizer_folder
from test_identity import loaded, own_home  # noqa: F401
from test_pack import write

transformers = pytest.importorskip("transformers")

MESSAGES = [{"role": "user", "content": "x"}]


def test_changed_texts_are_read_as_transformers_reads_them(tmp_path, monkeypatch):
    write(tmp_path / "model")
    versions = []
    for template, in_file in (("OLD {{ messages[0].content }}", None), (CHAT, None), (CHAT, "FILE {{ bos_token }}")):
        byte_tokenizer_folder(tmp_path / "model", template, tokenizer_class="PreTrainedTokenizerFast")
        if in_file is not None:
            (tmp_path / "model" / "chat_template.jinja").write_text(in_file)
        with loaded(tmp_path / "model", monkeypatch) as ours:
            theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
            expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
            assert ours.template.render(MESSAGES) == expected
            versions.append(expected)
    assert len(set(versions)) == 3
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_start|>"}))
    with loaded(tmp_path / "model", monkeypatch) as ours:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
        assert ours.tokenizer.eos_token == theirs.eos_token
