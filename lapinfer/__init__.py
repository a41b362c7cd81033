"""lapinfer runs language models on a laptop's CPU.

    import lapinfer

    with lapinfer.load("smollm2") as model:
        print(model.chat("What is the capital of France?").text)

The public names are imported when they are first used: `import lapinfer` loads neither NumPy nor Numba.
"""

TYPE_CHECKING = False  # importing typing takes 7 ms, in which Ctrl-C would find no handler yet
if TYPE_CHECKING:
    from lapinfer.errors import CheckpointError as CheckpointError
    from lapinfer.errors import ContextError as ContextError
    from lapinfer.errors import DoesNotFitError as DoesNotFitError
    from lapinfer.errors import InputError as InputError
    from lapinfer.errors import LapinferError as LapinferError
    from lapinfer.errors import QueueFullError as QueueFullError
    from lapinfer.errors import UnsupportedError as UnsupportedError
    from lapinfer.options import LoadOptions as LoadOptions
    from lapinfer.options import SamplingParams as SamplingParams
    from lapinfer.text.completion import Completion as Completion
    from lapinfer.text.generation import Token as Token
    from lapinfer.text.language_model import LanguageModel as LanguageModel
    from lapinfer.text.language_model import load as load
    from lapinfer.text.scheduler import Scheduler as Scheduler

__version__ = "0.1.0"

_HOMES = {
    "lapinfer.errors": (
        "CheckpointError",
        "ContextError",
        "DoesNotFitError",
        "InputError",
        "LapinferError",
        "QueueFullError",
        "UnsupportedError",
    ),
    "lapinfer.options": ("LoadOptions", "SamplingParams"),
    "lapinfer.text.completion": ("Completion",),
    "lapinfer.text.generation": ("Token",),
    "lapinfer.text.language_model": ("LanguageModel", "load"),
    "lapinfer.text.scheduler": ("Scheduler",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lapinfer' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
