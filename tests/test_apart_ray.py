"""Experts in actors of Ray: by the packed file and by what is sent, after a death, and what is refused."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_apart import expected, limits_of, spec_of, steps, weights_of

from lapinfer.cluster.nodes import RayNodes, apart_model, fitted_limits, routed_layers
from lapinfer.errors import DoesNotFitError, InputError
from lapinfer.loading import load_model
from lapinfer.model import Model
from lapinfer.options import LoadOptions
from lapinfer.spec import TreeSpec

NAME = "gpt_oss-yarn"
"""Its experts have biases."""


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    pytest.importorskip("ray")
    from lapinfer.cluster.start import LOCAL, cluster

    with cluster(LOCAL):
        import ray

        yield ray


def nodes_of(model: Model) -> RayNodes:
    assert model.exchange is not None
    nodes = model.exchange.nodes
    assert isinstance(nodes, RayNodes)
    return nodes


def resident_in_map(array: np.ndarray) -> int:
    """Bytes in memory of this process of the map that has an array, as Linux tells."""
    address = array.ctypes.data
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
        first, last = (int(end, 16) for end in part.split(maxsplit=1)[0].split("-"))
        if first <= address < last:
            return 1024 * int(re.findall(r"^Rss: +(\d+)", part, re.M)[0])
    raise AssertionError("the array is in no map")


def test_two_actors_that_have_the_file(ray: Any) -> None:
    """The same bits and bytes, also after one of them was killed; here nothing of an expert is touched."""
    notes: list[str] = []
    options = LoadOptions(threads=1, expert_nodes=2, ctx=64, slots=4)
    with closing(load_model("austen-moe", replace(options, expert_nodes=None))) as whole:
        logits, parts = steps(whole), whole.usage.parts()
    with closing(load_model("austen-moe", options, progress=lambda what, *done: notes.append(str(what)))) as model:
        nodes = nodes_of(model)
        np.testing.assert_array_equal(steps(model), logits)
        assert model.usage.parts() == parts
        usage = nodes.usage()
        assert sum(node["touched"] for node in usage) == parts["experts"]
        assert not any(node["sent"] for node in usage)
        if sys.platform == "linux":
            banks = [model.weights.tensor(f"layers.{i}.experts") for i in range(len(model.spec.layers))]
            others = model.weights.path.stat().st_size - sum(bank.nbytes for bank in banks)
            around = 1 << 16  # what the system maps beside a page that is touched
            assert 0 < resident_in_map(banks[0]) < others + around * (1 + len(banks))
        os.kill(usage[1]["pid"], signal.SIGKILL)
        np.testing.assert_array_equal(steps(model), logits)
        assert notes.count("note: a node with experts died; it is started again") == 1
    assert nodes.usage() == []


def test_experts_are_sent_where_no_file_is(ray: Any) -> None:
    with closing(apart_model(spec_of(NAME), weights_of(NAME, "q8"), limits_of(), 1, threads=1)) as model:
        assert nodes_of(model).usage()[0]["sent"]
        np.testing.assert_array_equal(steps(model), expected(NAME, "q8", "q8")[0])


def test_more_threads_than_the_cluster_has(ray: Any) -> None:
    with pytest.raises(DoesNotFitError, match="--expert-nodes: 2 engines of 99 threads found no room"):
        apart_model(spec_of(NAME), weights_of(NAME, "q8"), limits_of(), 2, threads=99)


def test_what_cannot_be_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, weights = spec_of(NAME), weights_of(NAME, "q8")
    with pytest.raises(InputError, match="expert_nodes: expected at most"):
        apart_model(spec, weights, limits_of(), 1000)
    with pytest.raises(InputError, match="expert_nodes: this model has no experts"):
        load_model("austen-dense", LoadOptions(expert_nodes=2))
    narrow = replace(spec.layers[0].feed_forward, width=4, router=TreeSpec(3), gated=False, bias=False)
    narrow_spec = replace(spec, layers=tuple(replace(layer, feed_forward=narrow) for layer in spec.layers))
    with pytest.raises(InputError, match="expert_nodes: leaves of a few neurons"):
        routed_layers(narrow_spec)
    for more in ({"memory": 1.0}, {"policy": "system"}):
        with pytest.raises(InputError, match="leave out --expert-nodes, or --memory and --policy"):
            LoadOptions(expert_nodes=2, **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expert_nodes: expected a whole number from 1"):
        LoadOptions(expert_nodes=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'--expert-nodes needs ray: pip install "lapinfer\[cluster\]"'):
        apart_model(spec, weights, limits_of(), 2)


def test_steps_are_so_short_that_answers_fit() -> None:
    routed = routed_layers(spec_of(NAME))
    assert fitted_limits(limits_of(step=512), routed, 48).step == 512
    assert fitted_limits(limits_of(step=512), routed, 200_000).step == 120 // routed[0].active // 8 * 8
