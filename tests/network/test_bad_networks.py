"""Networks that cannot be pruned are refused in one line that says what to do."""

import pytest
import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from tests.networks import data, small

IMAGES = data(4, 4, dtype=torch.float32)[0][0]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = small("plain").float()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.mul_(0.5))


class Doubled(torch.autograd.Function):
    """An operation with a gradient of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found = Doubled.apply(x)  # type: ignore[no-untyped-call]
        assert isinstance(found, Tensor)
        return found


def refused(model: nn.Module) -> str:
    with pytest.raises(SelectorError) as error:
        find_groups(model, IMAGES.clone())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scripted_modules() -> None:
    script = torch.jit.trace(small("plain").float(), IMAGES)  # type: ignore[no-untyped-call]
    assert "TorchScript" in refused(script)
    assert "layer '1' is TorchScript" in refused(nn.Sequential(nn.Identity(), script))


def test_tensors_without_values() -> None:
    with torch.device("meta"):
        model = nn.Conv2d(3, 4, 3)
    assert "'weight' has no values" in refused(model)


def test_complex_weights() -> None:
    assert "'0.weight' holds complex numbers" in refused(
        nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.complex64))
    )


def test_inputs_that_are_changed_in_place() -> None:
    assert "images.clone()" in refused(InPlace())


def test_quantised_modules() -> None:
    kind = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.modules.linear"})
    assert "quantise the pruned one" in refused(nn.Sequential(kind(3, 4)))


def test_functions_with_gradients_of_their_own_are_followed() -> None:
    model = small("plain").float()
    model.act = Custom()
    assert find_groups(model, IMAGES).prunable.keys() == {"stem", "next"}
