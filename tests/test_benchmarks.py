"""What benchmarks/step_budget.py promises of a step, counted at ViT-L's depth on a small image."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import step_budget


def test_a_micro_step_reads_the_host_twice():
    """The matcher's costs, and whether the loss is finite; the stock step asks ten times as often."""
    assert sum(step_budget.host_reads("ours").values()) == 2
    assert sum(step_budget.host_reads("plan").values()) > 20


@pytest.mark.filterwarnings("ignore")
def test_the_frozen_forward_starts_fewer_kernels_and_no_bias_is_kept():
    """Beside the stock layers at most 0.6 of the kernels, for the same products."""
    ours, _ = step_budget.count("ours", 192, 320)
    stock, _ = step_budget.count("0.1", 192, 320)
    assert not ours.biases
    assert len(stock.biases) == 6
    assert ours.kernels["frozen"] + ours.kernels["layers"] <= 0.6 * stock.kernels["frozen"]
    assert ours.linear["frozen"] + ours.linear["layers"] == stock.linear["frozen"]
    assert ours.attention["layers"] == stock.attention["frozen"]
