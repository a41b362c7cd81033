"""What a study found, in plain words, and how its figures came about."""

from __future__ import annotations

from lapinfer.digits import number, size
from lapinfer.report.against import ALIKE
from lapinfer.scale.network import NETWORKS
from lapinfer.scale.study import Crossing, Row, Study, crossings
from lapinfer.scale.subject import Subject

SAME = 0.05
"""Costs that differ by less than this share are called the same."""


def money(value: float) -> str:
    return f"{value:.3g}"


def found(study: Study) -> list[str]:
    """The answers: what models cost against each other, then what experts apart bring."""
    return [*_against_dense(study), *(line for s in study.subjects if s.layers for line in _apart(study, s))]


def _against_dense(study: Study) -> list[str]:
    """Each routed model against dense ones of as many parameters, in all or active, at the most nodes and sequences."""
    nodes, batches = max(study.options.nodes), study.options.batches
    dense, lines = [s for s in study.subjects if not s.layers], []
    for subject in (s for s in study.subjects if s.layers):
        for other in dense:
            if abs(other.parameters / subject.parameters - 1) < ALIKE:
                alike = "which has as many parameters"
            elif abs(other.parameters / subject.active - 1) < ALIKE:
                alike = "which has as many parameters as a token uses"
            else:
                continue
            pairs = [(_cheapest(study, subject, nodes, b), _cheapest(study, other, nodes, b)) for b in batches]
            said = [
                f"{ours.cost / theirs.cost:.2f} times as much with {_sequences(ours.batch)}"
                for ours, theirs in (pairs[0], pairs[-1])
                if ours and theirs
            ]
            if said:
                lines.append(
                    f"On {_nodes(nodes)}, against {other.name}, {alike}, a token of {subject.name} costs "
                    f"{', and '.join(dict.fromkeys(said))}."
                )
    return lines


def _cheapest(study: Study, subject: Subject, nodes: int, batch: int) -> Row | None:
    return min(study.of(subject.name, nodes=nodes, batch=batch), key=lambda row: row.cost, default=None)


def _apart(study: Study, subject: Subject) -> list[str]:
    network, own = study.options.network.name, [c for c in crossings(study) if c.model == subject.name]
    if not own:
        return []
    last, lines = own[-1], []
    memory = {row.arrangement: row.memory for row in study.rows
              if row.model == subject.name and row.nodes == last.nodes and row.batch == last.batch}  # fmt: skip
    lines.append(f"{subject.name} over {network}, experts apart on {_nodes(last.nodes)}: {_since(last, study)}.")
    paying = [crossing for crossing in own[:-1] if crossing.since is not None]
    if paying:
        lines[-1] += (
            " On fewer nodes: " + ", ".join(f"{c.nodes} from {_sequences(c.since or 0)} on" for c in paying) + "."
        )
    if "all homes" in memory:
        apart, whole = size(memory["all homes"]), size(memory["replicas"])
        lines.append(f"{subject.name}: a node holds {apart} where experts are apart, and {whole} as a replica.")
    return lines


def _since(crossing: Crossing, study: Study) -> str:
    if crossing.best is None:
        return "the only way, since no replica fits a node's memory"
    best = f"at best {crossing.best:.2f} times the tokens per second of replicas, with {_sequences(crossing.batch)}"
    if crossing.since is None:
        tried = study.options.batches
        return f"they never pay with {min(tried)} to {max(tried):,} sequences ({best})"
    return f"they pay from {_sequences(crossing.since)} on ({best})"


def _nodes(n: int) -> str:
    return f"{n} node{'s' * (n != 1)}"


def _sequences(n: int) -> str:
    return f"{n:,} sequence{'s' * (n != 1)}"


def notes(study: Study) -> list[str]:
    """How the figures came about, and what they do not say."""
    options, network = study.options, study.options.network
    assumed = "assumed round figures of no network that was measured" if network.name in NETWORKS else "measured here"
    prompt = f"a prompt of {options.load.prompt} tokens, and" if options.load.prompt else "without a prompt,"
    lines = [
        "Simulated, not measured: steps were measured on one machine, or foreseen from its speed; many such machines "
        "were simulated (simpy), layer by layer, with the experts that tokens choose.",
        *map(_about, study.subjects),
        f"Each sequence is {prompt} an answer of {options.load.answer}; as soon as it ends, another one begins. Tokens "
        "are those of answers; reading prompts takes its time.",
        f"Network {network.name}: latency {1e6 * network.latency:.3g} µs, {network.bandwidth / 1e9:.3g} GB/s each way, "
        f"{1e6 * network.call:.3g} µs of software at each end of a message: {assumed}.",
        f"Cost is {number(options.price)} for an hour of a node, a placeholder: give your own price.",
        "Experts that are apart: activations go out as kernels read them, a float32 row comes back for each expert of "
        "a token, in one message for each node and layer. What the engine's software takes to ask and to be asked was "
        "measured in one process.",
        "Not in it: other kinds of processors, failures, stragglers, idle hours, energy, quality, training, and dense "
        "models that are split over nodes.",
    ]
    if (shared := options.shared) is not None:
        lines.append(
            f"Nodes are processes of this machine: together they compute at most {shared.processors:.2f} times as fast "
            f"as one, and read {shared.memory[-1]:.2f} times as many bytes per second."
        )
    return lines


def _about(subject: Subject) -> str:
    steps = f"{subject.name}: steps {subject.source}"
    if not subject.layers:
        return f"{steps}."
    tape = subject.tape
    return f"{steps}; experts {tape.source}, the busiest of a layer with {tape.skew:.2f} times the mean load."
