"""Tokenizers and choices beside transformers, where that is installed: cases that have no stored values."""

import numpy as np
import pytest
from test_tokenizer_files import ours
from tokenizer_cases import CASES, theirs, write_case

from lapinfer.options import SamplingParams
from lapinfer.text.generation_config import Bans
from lapinfer.text.sampling import Sampler

pytest.importorskip("transformers")


@pytest.mark.parametrize("seed", range(CASES, CASES + 60))
def test_ids_and_texts_are_those_of_transformers(seed, tmp_path):
    write_case(seed, tmp_path)
    expected = theirs(tmp_path)
    if expected is not None:
        assert ours(tmp_path) == expected


@pytest.mark.parametrize("seed", range(20))
def test_bans_and_penalties_are_those_of_transformers(seed):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(seed)
    ids, vocab, prompt = rng.integers(0, 8, 20).tolist(), 40, 20 - seed % 3
    ends, sequences, ngram = frozenset([9]), ((4,), (*ids[-2:], 5), (1, 2, 3)), 1 + seed % 3
    logits = rng.standard_normal(vocab).astype(np.float32) * 4
    steps = [
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.NoRepeatNGramLogitsProcessor(ngram),
        theirs.NoBadWordsLogitsProcessor([list(run) for run in sequences], eos_token_id=torch.tensor([9])),
        theirs.MinNewTokensLengthLogitsProcessor(prompt, 2, torch.tensor([9])),
        theirs.SuppressTokensLogitsProcessor([11], device="cpu"),
        theirs.SuppressTokensAtBeginLogitsProcessor([12], prompt),
    ]
    expected = torch.from_numpy(logits.copy())[None]
    for step in steps:
        expected = step(torch.tensor([ids]), expected)
    bans = Bans(always=(11,), first=(12,), sequences=sequences, ngram=ngram, least=2)
    banned = bans.after(ids, prompt, ends)
    assert set(banned) == set(torch.isinf(expected[0]).nonzero().flatten().tolist())
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1.3))
    assert sampler.sample(logits, None, ids, banned)[0] == int(expected.argmax())
