"""Measuring what a model's matrices multiply: second moments or covariances of their inputs over chunks of tokens.

The tokens run through a packed model (q8 is exact enough), and runtime/trace.py shows what each matrix multiplies.
`pack_calibrated` hands that to the packer, which runs no model itself.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from lapinfer.checkpoint import Checkpoint
from lapinfer.checkpoint.mapping import let_go
from lapinfer.errors import CheckpointError, InputError
from lapinfer.families import spec_from_config
from lapinfer.home import home
from lapinfer.machine import default_threads
from lapinfer.model import Model
from lapinfer.outputs import KEPT_WHILE_OPEN, release_files
from lapinfer.packing.copies import Use
from lapinfer.packing.entries import PackedEntry
from lapinfer.packing.pack import MEASURED, pack_checkpoint
from lapinfer.packing.quantize import Inputs
from lapinfer.packing.reader import PackedFile
from lapinfer.progress import Phase, Progress, silent
from lapinfer.quant.calibrate import feedback_factors
from lapinfer.quant.choice import FED_BACK
from lapinfer.runtime.ops import Limits
from lapinfer.runtime.plan import Op
from lapinfer.runtime.trace import traced
from lapinfer.spec import ModelSpec
from lapinfer.tensors import Tensor, tensors
from lapinfer.text.tokenizer import Tokenizer
from lapinfer.texts import decoded

CHUNK = 512
"""Tokens of a sequence; fewer where the model's context is shorter."""
RANDOM_CHUNKS, TEXT_CHUNKS = 8, 24
FEW_TOKENS = 64
CALIBRATION = "calibration"
"""Of folders in LAPINFER_HOME, each with a copy that is run once."""
COVARIANCE_BYTES = 1 << 28
"""Covariances held at once; the tokens run again for each further group of matrices."""

CALIBRATING = Phase("calibrating", "tokens", part=(2, MEASURED))

FEEDBACK_COLUMNS = 4096
"""Wider matrices are not quantized with error feedback: their Cholesky factor takes minutes and a gigabyte."""
FEEDBACK_BANK = 1 << 29
"""Nor are matrices of experts whose covariances take more bytes in one layer."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids [chunks, tokens] to run, and `label`, which says where they are from: random or text:<digest>."""

    label: str
    chunks: np.ndarray


def chunk_length(spec: ModelSpec) -> int:
    return min(CHUNK, spec.context, spec.positions or CHUNK)


def random_tokens(spec: ModelSpec) -> Tokens:
    """The same random token ids every time: better than no knowledge of a matrix's inputs, and needs no text."""
    ids = np.random.default_rng(0).integers(0, spec.vocab, (RANDOM_CHUNKS, chunk_length(spec)))
    return Tokens("random", ids)


def text_tokens(spec: ModelSpec, folder: Path, path: Path) -> Tokens:
    """The first chunks of a text, by the tokenizer in `folder`.

    InputError when the file can't be read, is no text, or is too short; CheckpointError without a tokenizer.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    text = decoded(data, str(path))
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
    return Tokens(f"text:{hashlib.sha256(data).hexdigest()[:16]}", chunks)


def input_shape(tensor: Tensor) -> tuple[int, ...]:
    """[C] of what a matrix multiplies; [E, C] where that is measured for each expert.

    The experts' first matrices have the same inputs, as far as a few thousand tokens can tell.
    """
    return (tensor.shape[0], tensor.shape[-1]) if tensor.inputs == "expert" else tensor.shape[-1:]


def second_moments(
    model: Model, chunks: np.ndarray, matrices: Sequence[Tensor], progress: Progress
) -> dict[str, np.ndarray]:
    """Mean square of each input column of the matrices, by name: [C], or [E, C] for one of each expert."""
    sums = {tensor.name: np.zeros(input_shape(tensor)) for tensor in matrices}
    means = _means(model, chunks, matrices, sums, 1, lambda x: np.einsum("tc,tc->c", x, x), progress)
    return {name: mean.astype(np.float32) for name, mean in means.items()}


def covariances(
    model: Model, chunks: np.ndarray, matrices: Sequence[Tensor], progress: Progress
) -> dict[str, np.ndarray]:
    """Mean products [C, C] of the input columns of the matrices, by name, or [E, C, C]."""
    shapes = {tensor.name: input_shape(tensor) for tensor in matrices}
    sums = {name: np.zeros((*shape, shape[-1]), np.float32) for name, shape in shapes.items()}
    return _means(model, chunks, matrices, sums, 2, lambda x: x.T @ x, progress)


def _means(
    model: Model, chunks: np.ndarray, matrices: Sequence[Tensor], sums: dict[str, np.ndarray], dimensions: int,
    product: Callable[[np.ndarray], np.ndarray], progress: Progress,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Means over tokens of a product of their inputs [T, C] that has `dimensions`, added up in `sums` of zeros.

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
            own = inputs[experts == expert]
            sums[name][expert] += product(own)
            tokens[name][expert] += len(own)

    _run(model, chunks, matrices, add, progress)
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
    model: Model, chunks: np.ndarray, matrices: Sequence[Tensor],
    add: Callable[[str, np.ndarray, np.ndarray | None], None], progress: Progress,
) -> None:  # fmt: skip
    """Run each chunk as a sequence of its own; `add` sees the inputs [T, C] of the matrices.

    The experts' first matrices are told what their router sees; of the second ones, each row's expert is told.
    """
    fed_by: dict[tuple[int, str], list[Tensor]] = {}
    for tensor in matrices:
        for label in _ops_of(tensor, model.spec):
            fed_by.setdefault((tensor.layer, label), []).append(tensor)

    def before(op: Op, inputs: np.ndarray, experts: np.ndarray | None) -> None:
        for tensor in fed_by.get((op.layer, op.label), ()):
            columns = inputs[:, : tensor.columns]
            if model.in_trouble:
                return
            if not np.isfinite(columns).all():
                raise CheckpointError(
                    f"{model.name}: the inputs of {tensor.name} are not numbers: its weights are damaged"
                )
            add(tensor.name, columns, experts)

    def after(op: Op) -> None:
        if (weights := op.weights) is not None:  # the model may be larger than what packing should take
            let_go(weights)

    length = chunks.shape[1]
    want = np.full(length, any(tensor.layer < 0 for tensor in matrices))
    with traced(model, before, after):
        for i, ids in enumerate(chunks):
            progress(CALIBRATING, i * length, chunks.size)
            model.step(ids, np.zeros(length, np.int64), np.arange(length), want)
    progress(CALIBRATING, chunks.size, chunks.size)


def _ops_of(tensor: Tensor, spec: ModelSpec) -> tuple[str, ...]:
    """Labels of the ops of its layer that see what a matrix multiplies."""
    if tensor.inputs == "router":
        return "router", "descend"
    return ("head",) if tensor.module == "embed" and spec.tied else (tensor.label,)


class TokenCalibration:
    """What a checkpoint's matrices multiply, measured on random tokens or on those of a text.

    folder: where the packed form will be; a killed packing into it finds the temporary copy again.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path, text: Path | None = None):
        self._checkpoint, self._folder, self._text = checkpoint, folder, text
        self._spec = spec_from_config(checkpoint.config, str(checkpoint.path))

    @property
    def of_text(self) -> bool:
        return self._text is not None

    @cached_property
    def tokens(self) -> Tokens:
        if self._text is None:
            return random_tokens(self._spec)
        return text_tokens(self._spec, self._checkpoint.folder, self._text)

    @property
    def label(self) -> str:
        return self.tokens.label

    def measured(
        self, matrices: Sequence[PackedEntry], progress: Progress
    ) -> Generator[tuple[str, Inputs], None, None]:
        """Names of the file's tensors, each with what is known of the inputs of its matrices.

        Of a text, matrices whose format can be are quantized with error feedback, but for wide ones and large banks.
        """
        digest = hashlib.sha256(
            f"{self._folder.resolve()} {self._checkpoint.contents.identity()}".encode()
        ).hexdigest()[:12]
        temporary = home() / CALIBRATION / digest
        use = Use(temporary, self._checkpoint.path)
        try:
            yield from self._measured_by_copy(temporary, matrices, progress)
        finally:
            release_files()
            if KEPT_WHILE_OPEN:
                use.close()
            shutil.rmtree(temporary, ignore_errors=True)
            use.close()

    def _measured_by_copy(
        self, temporary: Path, matrices: Sequence[PackedEntry], progress: Progress
    ) -> Generator[tuple[str, Inputs], None, None]:
        """The same, by a q8 copy of the model in that folder, which nothing holds afterwards."""
        weighed, fed = [], []
        for entry in matrices:
            (fed if self.of_text and _feeds_back(entry) else weighed).append(entry.tensor)
        by_name: dict[str, list[Tensor]] = {}
        for tensor in fed:
            by_name.setdefault(_stored_name(tensor), []).append(tensor)
        groups = [*groups_within({name: sum(map(_covariance_bytes, parts)) for name, parts in by_name.items()})]
        runs = bool(weighed) + len(groups)
        inputs: dict[str, dict[str, np.ndarray]] = {}
        with closing(self._copied_model(temporary, progress)) as model:
            told = _of_run(0, runs, progress)
            moments = second_moments(model, self.tokens.chunks, weighed, told) if weighed else {}
            for tensor in weighed:
                moment = moments.pop(tensor.name)
                if tensor.inputs_vary and not self.of_text:
                    moment = np.sqrt(moment)
                inputs.setdefault(_stored_name(tensor), {})[tensor.name] = _of_each_matrix(moment, tensor, 1)
            for name in [name for name in inputs if name not in by_name]:
                yield name, inputs.pop(name)
            for run, group in enumerate(groups, runs - len(groups)):
                parts = [tensor for name in group for tensor in by_name[name]]
                products = covariances(model, self.tokens.chunks, parts, _of_run(run, runs, progress))
                for name in group:
                    for tensor in by_name[name]:
                        factors = self._factors(tensor, products.pop(tensor.name))
                        inputs.setdefault(name, {})[tensor.name] = _of_each_matrix(factors, tensor, 2)
                        del factors
                    yield name, inputs.pop(name)

    def _factors(self, tensor: Tensor, covariance: np.ndarray) -> np.ndarray:
        """Factors of error feedback in place of the covariances [C, C] or [E, C, C]."""
        try:
            for one in covariance if covariance.ndim > 2 else covariance[None]:
                one[:] = feedback_factors(one)
        except CheckpointError as error:
            raise CheckpointError(f"{self._checkpoint.path}: {tensor.name}: {error}") from error
        return covariance

    def _copied_model(self, folder: Path, progress: Progress) -> Model:
        """The checkpoint as q8, packed into `folder`."""
        length = self.tokens.chunks.shape[1]
        limits = Limits(length, step=length, threads=default_threads(), activations="q16")
        pack_checkpoint(
            self._checkpoint,
            folder,
            "q8",
            force=True,
            progress=lambda phase, *counts: progress(Phase("preparing", phase.unit, part=(1, MEASURED)), *counts),
            coarse=False,
        )
        weights = PackedFile(folder, tensors(self._spec).values())
        return Model(self._spec, weights, limits, name=str(self._checkpoint.path))


def pack_calibrated(
    checkpoint: Checkpoint, folder: Path, quant: str = "auto", *, text: Path | None = None,
    progress: Progress = silent, force: bool = False,
    notice: Callable[[str], None] = lambda line: None,
) -> Path:  # fmt: skip
    """Pack a checkpoint into `folder`, weighed by the inputs that random tokens give, or those of a text."""
    calibration = TokenCalibration(checkpoint, folder, text)
    return pack_checkpoint(
        checkpoint, folder, quant, calibration=calibration, progress=progress, force=force, notice=notice
    )


def _of_run(run: int, runs: int, progress: Progress) -> Progress:
    """Of one of several runs over the same tokens, what all of them are told of."""
    return lambda phase, done, total: progress(phase, run * total + done, runs * total)


def _stored_name(tensor: Tensor) -> str:
    """The name under which a file stores a matrix: its own, or its bank's."""
    return tensor.bank or tensor.name


def _covariance_bytes(tensor: Tensor) -> int:
    shape = input_shape(tensor)
    return 4 * prod(shape) * shape[-1]


def _feeds_back(entry: PackedEntry) -> bool:
    """Whether a matrix is quantized with error feedback."""
    tensor = entry.tensor
    if entry.format not in FED_BACK or tensor.columns > FEEDBACK_COLUMNS:
        return False
    return tensor.inputs != "expert" or _covariance_bytes(tensor) <= FEEDBACK_BANK


def _of_each_matrix(measured: np.ndarray, tensor: Tensor, dimensions: int) -> np.ndarray:
    """The same for each matrix of a bank, where it was measured for all of them together."""
    if len(tensor.shape) > 2 and measured.ndim == dimensions:
        return np.broadcast_to(measured, (*tensor.shape[:-2], *measured.shape))
    return measured
