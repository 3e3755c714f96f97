"""The forecast of the accuracy: what a grid of disturbed logits gives, whatever its size."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from selector.planning import expectation
from selector.planning.expectation import DRAWS, NOISE, Logits


def made(images: int, classes: int, seed: int, sure: float) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    values = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    values[torch.arange(images), labels] += sure
    return Logits(values, labels)


def slow_after(logits: Logits, changes: list[float]) -> list[float]:
    """All 81 points of the grid, all draws at once; interpolated by hand."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((DRAWS, *logits.values.shape), generator=generator, dtype=torch.float64)
    noise *= NOISE * logits.values.std()
    labels = logits.labels.repeat(DRAWS)
    losses, shares = [], []
    for number in range(81):
        kept = 1 - number / 80
        disturbed = (kept * logits.values + (1 - kept**2) ** 0.5 * noise).flatten(0, 1)
        losses.append(float(functional.cross_entropy(disturbed, labels)))
        shares.append(float((disturbed.argmax(1) == labels).double().mean()))
    rises = [max(losses[: n + 1]) - losses[0] for n in range(81)]
    falls = [min(shares[: n + 1]) for n in range(81)]
    found = []
    for change in changes:
        right = next((n for n in range(81) if rises[n] > change), None)
        if change <= 0 or right is None:
            found.append(falls[0] if change <= 0 else falls[-1])
            continue
        part = (change - rises[right - 1]) / (rises[right] - rises[right - 1])
        found.append(falls[right - 1] + part * (falls[right] - falls[right - 1]))
    return found


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 60),
    classes=st.integers(2, 30),
    seed=st.integers(0, 1000),
    sure=st.sampled_from([0.0, 1.0, 4.0, 8.0]),
    change=st.floats(-1, 5),
)
def test_accuracies_are_those_of_the_whole_grid(
    images: int, classes: int, seed: int, sure: float, change: float
) -> None:
    logits = made(images, classes, seed, sure)
    for changes in ([change], [change, change - 0.5, change + 0.7], [0.0, 100.0]):
        assert logits.after(changes) == pytest.approx(slow_after(logits, changes), abs=1e-9)


def test_nothing_is_computed_beyond_the_highest_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    entropy = functional.cross_entropy

    def counted(*args: torch.Tensor) -> torch.Tensor:
        seen.append(args[0].numel())
        return entropy(*args)

    monkeypatch.setattr(functional, "cross_entropy", counted)
    logits = made(100, 10, 0, 4.0)
    logits.after([0.05, 0.02])
    assert 2 * DRAWS <= len(seen) < 20 * DRAWS
    seen.clear()
    logits.after([100.0])
    assert len(seen) == 81 * DRAWS


def test_what_is_too_much_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, changes = made(2000, 12, 1, 4.0), [-1.0, 0.0, 0.1, 0.3, 1.0, 3.0]
    whole = logits.after(changes)
    for most in (2000 * 12 * 2, 2000 * 12, 600 * 12):
        monkeypatch.setattr(expectation, "MOST_LOGITS", most)
        found = logits.after(changes)
        assert found != whole
        # Accuracy is that of all images where nothing is lost; elsewhere as good as a sample is.
        assert found[:2] == [logits.accuracy] * 2
        assert found == pytest.approx(whole, abs=0.04)
        assert found == sorted(found, reverse=True)


def test_ten_thousand_classes_take_a_second() -> None:
    logits = made(256, 10_000, 0, 6.0)
    begin = time.process_time()
    found = logits.after([0.5, 0.1, 100.0])
    # The whole grid; 56 s when all images and draws were disturbed.
    assert time.process_time() - begin < 2
    assert found[2] == pytest.approx(0, abs=0.01)
    assert logits.accuracy > found[1] > found[0] > found[2]
