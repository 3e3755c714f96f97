"""The oracle on networks as people write them: outputs in objects, complex ones, other threads."""

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.oracle.fast_engine import same_outputs
from selector.oracle.fx_steps import StepRunner, take_apart
from selector.oracle.runner import check_deterministic
from tests.networks import STYLES, data, small


@dataclass
class Output:
    logits: Tensor


class Noisy(nn.Module):
    """Random outputs, in something."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: Tensor) -> object:
        noise = torch.randn_like(images)
        if self.how == "dataclass":
            return Output(noise)
        if self.how == "complex":
            return torch.complex(torch.zeros_like(noise), noise)
        return [{"logits": (noise,)}]


@pytest.mark.parametrize("how", ["dataclass", "complex", "nested"])
def test_noise_is_found_wherever_it_is(how: str) -> None:
    with pytest.raises(SelectorError, match="other outputs for the same images"):
        check_deterministic(Noisy(how), torch.ones(2, 3))


def test_outputs_in_objects_and_complex_ones_are_compared() -> None:
    one, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    for wrap in (Output, lambda x: torch.complex(torch.ones(3), x), lambda x: {"x": [x]}):
        assert same_outputs(wrap(one), wrap(one))
        assert not same_outputs(wrap(one), wrap(other))
    assert not same_outputs(Output(one), [])


@pytest.mark.parametrize("style", STYLES)
def test_steps_give_the_outputs_of_the_network(style: str) -> None:
    model, images = small(style, 6, norm=True), data()[0][0]
    runner = StepRunner(model, take_apart(model))
    values = runner.inputs(images)
    output: object = None
    with torch.no_grad():
        for node in runner.steps.nodes:
            if node.op != "placeholder":
                values[node] = output = runner.value(node, values)
        assert torch.allclose(output, model(images), rtol=1e-9)  # type: ignore[arg-type]


def test_a_network_may_run_while_another_is_traced() -> None:
    """torch.fx changes how every module is called while it traces."""
    running, images = small("residual", norm=True), data()[0][0]
    expected = running(images)
    found: list[object] = []

    class Waiting(nn.Module):
        """In the middle of its trace, another network runs in another thread."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = small("plain")

        def forward(self, images: Tensor) -> Tensor:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return self.inner(images)

    def work() -> None:
        try:
            found.append(running(images))
        except BaseException as error:  # Shown by the assertion below.
            found.append(error)

    steps = take_apart(Waiting())
    assert torch.equal(found[0], expected)  # type: ignore[arg-type]
    assert all(isinstance(node, fx.Node) for node in steps.nodes)
    assert "inner.stem" in steps.layers
    assert find_groups(running, images).prunable
