"""Which weights are tied, so that a repair leaves them as they are."""

from torch import nn

from selector.repair.schedule import shared_weights


class Tied(nn.Module):
    """Three layers of one weight, a layer of two names, a weight that the network has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.free = (nn.Linear(3, 3) for _ in range(4))
        self.second.weight = self.third.weight = self.first.weight
        self.alias = self.free
        self.inner = nn.Sequential(nn.Linear(3, 1))
        self.scale = self.inner[0].weight


def test_a_tied_weight_names_the_first_other_parameter() -> None:
    assert shared_weights(Tied()) == {
        "first": "second.weight",
        "second": "first.weight",
        "third": "first.weight",
        "inner.0": "scale",
    }


def test_a_weight_that_is_also_a_bias_of_another_layer_is_tied() -> None:
    first, second = nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)
    second.bias = second.weight
    assert shared_weights(nn.Sequential(first, second)) == {}
    third = nn.BatchNorm1d(2)
    third.bias = second.weight
    assert shared_weights(nn.Sequential(second, third)) == {"0": "1.bias"}


def test_nothing_is_tied_in_a_single_layer() -> None:
    assert shared_weights(nn.Linear(2, 2)) == {}
    assert shared_weights(nn.Module()) == {}
    twice = nn.Linear(2, 2)
    assert shared_weights(nn.Sequential(twice, nn.ReLU(), twice)) == {}
