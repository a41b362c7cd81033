"""What the inputs of a model's matrices are like: second moments or covariances over chunks of tokens.

The tokens run through a packed model (q8 is exact enough), and runtime/trace.py shows what each matrix multiplies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapinfer.checkpoint.mapping import let_go
from lapinfer.errors import CheckpointError, InputError
from lapinfer.model import Model
from lapinfer.runtime.plan import Op
from lapinfer.runtime.trace import traced
from lapinfer.spec import ModelSpec
from lapinfer.text.tokenizer import Tokenizer

CHUNK = 512
"""Tokens of a sequence; fewer where the model's context is shorter."""
RANDOM_CHUNKS, TEXT_CHUNKS = 8, 24
FEW_TOKENS = 64
COVARIANCE_BYTES = 1 << 28
"""Covariances held at once; the tokens run again for each further group of matrices."""

Progress = Callable[[str, int, int], None]
"""Called with the phase, what is done of it, and all that there is to do."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token ids [chunks, tokens] to run, and `label`, which says where they are from: random or text:<digest>."""

    label: str
    chunks: np.ndarray

    @property
    def random(self) -> bool:
        return self.label == "random"


def chunk_length(spec: ModelSpec) -> int:
    return min(CHUNK, spec.context, spec.positions or CHUNK)


def random_tokens(spec: ModelSpec) -> Calibration:
    """The same random token ids every time: better than no knowledge of a matrix's inputs, and needs no text."""
    ids = np.random.default_rng(0).integers(0, spec.vocab, (RANDOM_CHUNKS, chunk_length(spec)))
    return Calibration("random", ids)


def text_tokens(spec: ModelSpec, folder: Path, path: Path) -> Calibration:
    """The first chunks of a text, by the tokenizer in `folder`.

    InputError when the file can't be read, isn't UTF-8, or is too short; CheckpointError without a tokenizer.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer is None:
        raise CheckpointError(f"{folder}: has no tokenizer.json, which a calibration text needs; convert without one")
    length = chunk_length(spec)
    # A token is rarely longer than 16 characters, so this is text enough; a book takes long to tokenize.
    ids = tokenizer.encode(text[: 16 * TEXT_CHUNKS * length])[: TEXT_CHUNKS * length]
    if len(ids) < 2 * length:
        raise InputError(f"{path}: has {len(ids)} tokens, calibration needs at least {2 * length}; use a longer text")
    if max(ids) >= spec.vocab:
        raise CheckpointError(f"{folder}: the tokenizer gives ids up to {max(ids)}, the model has {spec.vocab}")
    chunks = np.array(ids[: len(ids) // length * length]).reshape(-1, length)
    return Calibration(f"text:{hashlib.sha256(data).hexdigest()[:16]}", chunks)


def tensor_name(op: Op, spec: ModelSpec) -> str:
    """The matrix of a matmul op, by our tensor names."""
    return f"layers.{op.layer}.{op.label}" if op.layer >= 0 else "embed" if spec.tied else "head"


def second_moments(
    model: Model, chunks: np.ndarray, shapes: Mapping[str, tuple[int, ...]], progress: Progress
) -> dict[str, np.ndarray]:
    """Mean square of each input column of the named matrices; `shapes` are [C], or [E, C] for one of each expert."""
    sums = {name: np.zeros(shape) for name, shape in shapes.items()}
    means = _means(model, chunks, sums, 1, lambda x: np.einsum("tc,tc->c", x, x), progress)
    return {name: mean.astype(np.float32) for name, mean in means.items()}


def covariances(
    model: Model, chunks: np.ndarray, shapes: Mapping[str, tuple[int, ...]], progress: Progress
) -> dict[str, np.ndarray]:
    """Mean products [C, C] of the input columns of the named matrices, whose `shapes` are [C]; of [E, C] [E, C, C]."""
    sums = {name: np.zeros((*shape, shape[-1]), np.float32) for name, shape in shapes.items()}
    return _means(model, chunks, sums, 2, lambda x: x.T @ x, progress)


def _means(
    model: Model, chunks: np.ndarray, sums: dict[str, np.ndarray], dimensions: int,
    product: Callable[[np.ndarray], np.ndarray], progress: Progress,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Means over tokens of a product of so many dimensions of their inputs [T, C], made in `sums`, which are zeros.

    An expert that few tokens chose is taken to be like the others of its layer, the more so the fewer it had.
    """
    tokens = {name: np.zeros(total.shape[:-dimensions]) for name, total in sums.items()}

    def add(name: str, inputs: np.ndarray, experts: np.ndarray | None) -> None:
        if not tokens[name].ndim:
            sums[name] += product(inputs)
            tokens[name] += len(inputs)
            return
        assert experts is not None
        for expert in np.unique(experts):
            its = inputs[experts == expert]
            sums[name][expert] += product(its)
            tokens[name][expert] += len(its)

    _run(model, chunks, sums, add, progress)
    for name, total in sums.items():
        count = tokens[name]
        if count.ndim:  # as if it had seen FEW_TOKENS more, of the layer's mean
            total += FEW_TOKENS * total.sum(axis=0) / max(float(count.sum()), 1)
            count = (count + FEW_TOKENS).reshape(-1, *[1] * dimensions)
        total /= np.maximum(count, 1)
    return sums


def groups_within(sizes: Mapping[str, int], limit: int = COVARIANCE_BYTES) -> Iterator[list[str]]:
    """Names in groups whose sizes are at most `limit` together (a single one may be larger)."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[other] for other in group) + size > limit:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def _run(
    model: Model, chunks: np.ndarray, sums: Mapping[str, np.ndarray],
    add: Callable[[str, np.ndarray, np.ndarray | None], None], progress: Progress,
) -> None:  # fmt: skip
    """Run each chunk as a sequence of its own; `add` sees the inputs [T, C] of the matrices that `sums` names.

    The experts' first matrices are told what their router sees; of the second ones, each row's expert is told.
    """

    def before(op: Op, inputs: np.ndarray, experts: np.ndarray | None) -> None:
        own = tensor_name(op, model.spec)
        bank = f"layers.{op.layer}.experts"
        for name in (own,) if op.label not in ("router", "descend") else (f"{bank}.gate_up", f"{bank}.up"):
            if name in sums:
                inputs = inputs[:, : sums[name].shape[-1]]
                if not np.isfinite(inputs).all():
                    raise CheckpointError(
                        f"{model.name}: the inputs of {name} are not numbers: its weights are damaged"
                    )
                add(name, inputs, experts)

    def after(op: Op) -> None:
        if (weights := op.weights) is not None:  # the model may be larger than what packing should take
            let_go(weights)

    length = chunks.shape[1]
    want = np.full(length, bool({"embed", "head"} & set(sums)))
    with traced(model, before, after):
        for i, ids in enumerate(chunks):
            progress("calibrating", i * length, chunks.size)
            model.step(ids, np.zeros(length, np.int64), np.arange(length), want)
    progress("calibrating", chunks.size, chunks.size)
