"""Measured in the precision of the weights, whatever the caller's contexts and settings are."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.saliency.registry import METRICS
from selector.saliency.scoring import Scores, score
from selector.statistics.collect import measure_signals
from tests.networks import STYLES, data, small
from tests.scored import scores_of

NAMES = [name for name in METRICS if name != "batchnorm_scale"]
CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(images.float(), labels) for images, labels in data(9, 4)]


def same(one: Scores, other: Scores) -> None:
    assert one.keys() == other.keys()
    for group, found in one.items():
        assert found.keys() == other[group].keys()
        for metric, values in found.items():
            assert torch.equal(values, other[group][metric]), (group, metric)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", CONTEXTS)
def test_a_callers_context_changes_no_score(name: str, inside: bool) -> None:
    """Neither around the call, nor where the batches were made in it."""
    model = small("two_consumers", norm=True).float()
    expected = score(model, batches(), NAMES)
    with CONTEXTS[name]():
        made = batches()
        if inside:
            same(score(model, made, NAMES), expected)
    same(score(model, made, NAMES), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_products_changes_no_score(precision: str) -> None:
    model = small("flatten", norm=True).float()
    expected = score(model, batches(), NAMES)
    seen = []
    model.head.register_forward_pre_hook(lambda *_: seen.append(products_are_exact()))
    torch.set_float32_matmul_precision(precision)
    try:
        same(score(model, batches(), NAMES), expected)
        assert torch.get_float32_matmul_precision() == precision
        # On a GPU the numbers would differ; here the setting shows it. Tracing has no say.
        assert any(seen)
        assert not products_are_exact()
    finally:
        torch.set_float32_matmul_precision("highest")


def products_are_exact() -> bool:
    """Whether float32 is multiplied as such on a GPU, in the setting of this version of PyTorch."""
    matmul = torch.backends.cuda.matmul
    if hasattr(torch.backends.cudnn, "conv"):
        return bool(matmul.fp32_precision == "ieee")
    return not matmul.allow_tf32


@pytest.mark.parametrize("metric", ["l1", "apoz", "taylor"])
def test_weights_that_cannot_be_measured_are_named(metric: str) -> None:
    with torch.inference_mode():
        made_inside = small("plain")
    with pytest.raises(SelectorError, match=r"'stem.weight' .*inference_mode"):
        score(made_inside, data(), [metric])
    with pytest.raises(SelectorError, match=r"meta"):
        score(small("plain").to("meta"), data(), [metric])


class Inside(nn.Module):
    """A network whose forward runs under inference_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(images)).mean((2, 3)))


def test_a_forward_under_inference_mode_has_activations_and_no_gradient() -> None:
    class Plain(Inside):
        forward = Inside.forward.__wrapped__  # type: ignore[attr-defined]

    torch.manual_seed(0)
    plain, inside = Plain().double().eval(), Inside().double().eval()
    inside.load_state_dict(plain.state_dict())
    groups = find_groups(plain, data()[0][0]).required()
    one, other = (measure_signals(m, data(), groups, needs={"forward"}) for m in (plain, inside))
    assert torch.equal(one["stem"].positive_share, other["stem"].positive_share)
    with pytest.raises(SelectorError, match=r"no gradient exists; .*inference_mode"):
        measure_signals(inside, data(), groups)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("style", STYLES)
def test_half_precision_gives_finite_scores_in_double(style: str, dtype: torch.dtype) -> None:
    lower = [(images.to(dtype), labels) for images, labels in data(9, 4)]
    for found in scores_of(small(style, norm=True).to(dtype), lower).values():
        for metric, values in found.items():
            assert values.dtype == torch.float64, metric
            assert values.isfinite().all(), metric


def test_metrics_without_gradients_need_no_labels() -> None:
    model = small("residual", norm=True)
    unlabelled = [(images, None) for images, _ in data()]
    names = [n for n in NAMES if not METRICS[n].needs & {"backward", "second_order", "hessian"}]
    assert {"l1", "fpgm", "apoz", "wanda", "hrank", "chip", "synflow"} <= set(names)
    same(score(model, unlabelled, names), score(model, data(), names))
    with pytest.raises(SelectorError, match="hold no targets"):
        score(model, unlabelled, ["taylor"])
