"""Tokenizers beside transformers, where that is installed: cases that have no stored values."""

import pytest
from test_tokenizer_files import ours
from tokenizer_cases import CASES, theirs, write_case

pytest.importorskip("transformers")


@pytest.mark.parametrize("seed", range(CASES, CASES + 60))
def test_ids_and_texts_are_those_of_transformers(seed, tmp_path):
    write_case(seed, tmp_path)
    expected = theirs(tmp_path)
    if expected is not None:
        assert ours(tmp_path) == expected
