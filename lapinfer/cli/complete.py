"""What a shell completes: names of models, from the names of folders alone, and what options accept.

lapinfer --install-completion sets a shell up. Each TAB starts a process, so nothing here imports NumPy or Numba, and
nothing raises: a shell would print that into the line that is being typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Completing = Callable[[str], list[str]]


def models(incomplete: str) -> list[str]:
    """Models that can be run: shipped ones, aliases, and those of the hub's cache."""
    return _beginning(incomplete, _models)


def known_models(incomplete: str) -> list[str]:
    """The same, and those of the table that `info` knows: of what is typed without org/, by the name alone."""
    return _beginning(incomplete, _models, _popular, *[_bare_popular] * bool(incomplete))


def models_to_pull(incomplete: str) -> list[str]:
    """Aliases, and those of the table."""
    return _beginning(incomplete, _aliases, _popular)


def models_and_copies(incomplete: str) -> list[str]:
    """Models, and packed copies."""
    return _beginning(incomplete, _models, _copies)


def removable(incomplete: str) -> list[str]:
    """What `rm` may be given."""
    return _beginning(incomplete, _pulled, _hub, _copies)


def one_of(choices: Iterable[str]) -> Completing:
    """One of these."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete.lower())]


def _beginning(incomplete: str, *sources: Callable[[], Iterable[str]]) -> list[str]:
    """Names that begin so, each once; a source that fails has none."""
    found: dict[str, None] = {}
    for source in sources:
        try:
            found |= dict.fromkeys(name for name in source() if name.lower().startswith(incomplete.lower()))
        except Exception:  # a home that is no folder, say: what the command will tell
            continue
    return list(found)


def _models() -> Iterable[str]:
    from lapinfer.checkpoint.shipped import SHIPPED

    return [*_aliases(), *SHIPPED, *_hub()]


def _aliases() -> Iterable[str]:
    from lapinfer.checkpoint.names import ALIASES

    return ALIASES


def _pulled() -> Iterable[str]:
    from lapinfer.checkpoint.names import ALIASES, folders_in
    from lapinfer.home import pulled_models

    return [folder.name for folder in folders_in(pulled_models()) if folder.name in ALIASES]


def _hub() -> Iterable[str]:
    from lapinfer.checkpoint.names import hub_entries

    return [name for name, _ in hub_entries()]


def _copies() -> Iterable[str]:
    from lapinfer.checkpoint.names import copy_folders

    return [folder.name for folder in copy_folders()]


def _popular() -> Iterable[str]:
    from lapinfer.checkpoint.popular import popular_names

    return popular_names()


def _bare_popular() -> Iterable[str]:
    return [name.partition("/")[2] for name in _popular()]
