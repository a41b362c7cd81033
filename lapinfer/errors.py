"""The ways lapinfer fails. Every message is one or two lines: what, where, expected, got, next step."""


def quoted(name: str) -> str:
    """A name that a file gives, for a message: on one line, and cut where it is absurdly long."""
    return repr(name if len(name) <= 120 else name[:120] + "…")


LONGEST = 2000
"""Characters of a message."""


class LapinferError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1

    def __str__(self) -> str:
        """Short, however long the names are that it quotes."""
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"


class CheckpointError(LapinferError):
    """A file of a checkpoint is missing, damaged, or says something that cannot be true."""


class TemplateError(CheckpointError):
    """A chat template failed on what it was given: it is wrong, or made for other messages."""


class UnsupportedError(LapinferError):
    """The checkpoint is well-formed, but asks for something that would be computed wrongly here."""


class InputError(LapinferError):
    """A prompt, token id, position or option is outside what the loaded model accepts."""


class ContextError(InputError):
    """A prompt has more tokens than the context holds."""


class UnknownOptionError(InputError, TypeError):
    """A keyword that a function does not have; a TypeError too, as Python raises it elsewhere."""


class TrainingError(LapinferError):
    """Training cannot go on: the loss is no number."""


class DoesNotFitError(LapinferError):
    """The model needs more memory, disk or context than there is."""

    exit_code = 3


class QueueFullError(LapinferError):
    """As many requests wait as may; retry_after: seconds after which one may be taken."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after
