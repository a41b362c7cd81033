"""What an answer touched whose steps may be shared with others."""

from __future__ import annotations

from lapinfer.runtime.meter import Meter


class Touched:
    """The steps that one answer took part in, those of its prompt included, as a meter has them.

    A step reads most of its weights once for all answers that share it, so it counts whole for each of them, and
    `sharing` says how many that were.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter, self._answers = meter, 0

    def note(self, usage: Meter, answers: int) -> None:
        """The step that the model's meter has noted last, which so many answers shared."""
        self._meter.follow(usage)
        self._answers += answers

    @property
    def steps(self) -> int:
        return self._meter.steps

    @property
    def sharing(self) -> float:
        """Answers in a step, this one included, on average."""
        return self._answers / max(1, self.steps)

    def parts(self) -> dict[str, int]:
        """Bytes by part of the model; it takes a moment."""
        return self._meter.parts()
