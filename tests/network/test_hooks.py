"""Hooks that come and go; checkpointing that is switched off in one thread."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from selector.network.hooks import forward_hooks, without_checkpoints


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_error_and_after_a_name_that_is_wrong() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def inside() -> None:
        with forward_hooks(model, {"0": lambda *_: None}):
            assert count_hooks(model) == 1
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside()
    with pytest.raises(AttributeError), forward_hooks(model, {"0": print, "none": print}):
        pass
    assert count_hooks(model) == 0


def test_calls_by_keyword_are_seen_and_changed_as_calls_by_position() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    model, x, seen = ByKeyword(), torch.ones(1, 2), []
    expected, more = model.layer(2 * x), model.layer(x) + 1

    def double(layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        seen.append(args)
        return 2 * args[0]

    with forward_hooks(model, {"layer": double}, pre=True):
        assert torch.equal(model(x), expected)
    with forward_hooks(model, {"layer": lambda layer, args, output: seen.append(args)}):
        model(x)
    with forward_hooks(model, {"layer": lambda layer, args, output: output + 1}):
        assert torch.equal(model(x), more)
    assert [len(args) for args in seen] == [1, 1]
    assert all(torch.equal(args[0], x) for args in seen)


def test_reentrant_checkpoints_are_off_in_this_thread_alone() -> None:
    x, names = torch.ones(2, requires_grad=True), {}

    def run(key: str) -> None:
        output = checkpoint.checkpoint(torch.sin, x, use_reentrant=True)
        names[key] = type(output.grad_fn).__name__

    with without_checkpoints(), without_checkpoints():
        run("inside")
        thread = threading.Thread(target=run, args=("elsewhere",))
        thread.start()
        thread.join()
    run("after")
    assert names == {
        "inside": "SinBackward0",
        "elsewhere": "CheckpointFunctionBackward",
        "after": "CheckpointFunctionBackward",
    }
    assert "apply" not in vars(checkpoint.CheckpointFunction)
