"""What went wrong in a step: one word of its header, which whoever runs the step reads when it has ended."""

from lapinfer.kernels.cache import jit
from lapinfer.kernels.operands import KEYS, NOT_READ, PROBLEM_BITS, PROBLEMS, VALUES


@jit
def note_problem(step, place, kind):
    """Keep the first problem of a step; but a failed read before others, since slots then hold what they should not."""
    first = step.problem
    if first == 0 or (kind == NOT_READ and first % PROBLEMS != NOT_READ):
        step.problem = PROBLEMS * place + kind


@jit
def note_range(step, layer, keys, values, least, stop):
    """Note a token whose keys or values are not in the range of their cache: each the largest magnitude, as bits.

    Below `least` all of them are too small to keep their digits; from `stop` on the largest is too large, or none; LOST
    is added where it leaves nothing of its neighbours.
    """
    if step.problem == 0:
        if keys >= stop or 0 < keys < least:
            step.problem = keys << PROBLEM_BITS | PROBLEMS * layer + KEYS
        elif values >= stop or 0 < values < least:
            step.problem = values << PROBLEM_BITS | PROBLEMS * layer + VALUES
