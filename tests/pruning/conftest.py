"""A real report that several files look at."""

import pytest

import selector
from selector.cli.demo import batched, calibration, digits, network
from selector.pruning.report import Report


@pytest.fixture(scope="session")
def demo_report() -> Report:
    """Of the demo's network, pruned by the shipped selector in two rounds, on test images."""
    test = batched(digits().test, 250)
    result = selector.prune(
        network(),
        calibration(),
        keep_macs=0.6,
        rounds=2,
        test_batches=test,
        max_ratios={"conv2": 0.4},
    )
    return result.report
