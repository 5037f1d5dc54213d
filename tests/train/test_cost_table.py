"""benchmarks/costs.py against real runs: what it says of a round is what such a round costs."""

from __future__ import annotations

import json

import pytest
from benchmark import script

from fedtiny_train import models
from fedtiny_train.config import read_toml


@pytest.fixture(scope="module")
def costs():
    return script("costs")


@pytest.mark.parametrize("method", ["fedtiny", "prunefl", "fl-pqsu", "fedpack"])
def test_the_table_says_what_a_run_spends(costs, tools, tmp_path, method):
    _, small, _, _ = tools
    flags = ["--method", method, "--no-selective-upload", "--adjust-every", "2", "--adjust-until", "2"]
    run = small(tmp_path / "run", *flags, "--partition", "iid", "--row-floor", "0")
    config = read_toml(run / "config.toml")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    samples = lines[1]["clients"][0]["samples"]
    spent = costs.spent(config, models.choose(config.model, (1, 8, 8), 10), samples)
    # a client may hold a sample more than the one that the table is of
    assert max(line["flops_max"] for line in lines[1:]) == pytest.approx(spent.flops, rel=0.01)
    assert max(line["memory_paper"] for line in lines[1:]) == spent.paper
    assert max(line["memory_max"] for line in lines[1:]) == spent.memory.total
    assert (3 * spent.plain[0], 3 * spent.plain[1]) == (lines[3]["bytes_down"], lines[3]["bytes_up"])
    assert 3 * spent.most[1] == max(line["bytes_up"] for line in lines[1:])
    if method == "fedtiny":
        described = lines[0]["bytes_down"] - 3 * spent.begin[0]
        assert 0 < described < 200  # beside the pool, each device is asked once to describe its inputs
