"""The methods that `founding` compares: the paper's, its additions one at a time, and ours."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from selector.planning.composition.myopic import FOUNDING_METRICS, Myopic
from selector.saliency.registry import Metric


@dataclass(frozen=True)
class FoundingMethod:
    """One way to prune."""

    myopic: Myopic
    held_out: bool = False
    """Draw from the first half of the test images instead of from training images."""


WIDER: tuple[str | Metric, ...] = (
    *FOUNDING_METRICS,
    "taylor",
    "fisher",
    "taylor_elementwise",
    "weight_taylor_squared",
    "activation_rms",
    "fpgm",
)
SINGLES = dict(
    zip(("weight", "activation", "gradient", "taylor", "fisher"), FOUNDING_METRICS, strict=True)
)
_PER_WEIGHT = Myopic(per_weight_scores=True, per_weight_loss=True, mode="compensated")
_FEWER = replace(_PER_WEIGHT, images=64, scoring_images=128, candidates=8, channels_per_step=2)
_ALONE = Myopic((SINGLES["taylor"],), candidates=1)
METHODS: Mapping[str, FoundingMethod] = {
    **{name: FoundingMethod(Myopic((metric,), candidates=1)) for name, metric in SINGLES.items()},
    "composition": FoundingMethod(Myopic()),
    "+ loss per weight": FoundingMethod(Myopic(per_weight_loss=True)),
    "+ scores per weight": FoundingMethod(Myopic(per_weight_scores=True)),
    "+ compensated": FoundingMethod(Myopic(mode="compensated")),
    "+ wider pool": FoundingMethod(Myopic(WIDER)),
    "+ held-out": FoundingMethod(Myopic(), held_out=True),
    "+ four a step": FoundingMethod(Myopic(channels_per_step=4)),
    "taylor at consumers": FoundingMethod(Myopic(("taylor",), candidates=1)),
    "taylor per weight": FoundingMethod(replace(_ALONE, per_weight_scores=True)),
    "taylor compensated": FoundingMethod(replace(_ALONE, mode="compensated")),
    "taylor per weight, compensated": FoundingMethod(
        replace(_ALONE, per_weight_scores=True, mode="compensated")
    ),
    "every channel": FoundingMethod(Myopic(candidates=10_000)),
    "every channel, loss per weight": FoundingMethod(
        Myopic(candidates=10_000, per_weight_loss=True)
    ),
    "ours": FoundingMethod(replace(_FEWER, metrics=WIDER)),
    "trial A": FoundingMethod(replace(_PER_WEIGHT, images=64, channels_per_step=4)),
    "trial B": FoundingMethod(replace(_FEWER, images=32, candidates=16)),
    "trial C": FoundingMethod(_FEWER),
    "trial D": FoundingMethod(replace(_PER_WEIGHT, metrics=WIDER, images=64, channels_per_step=4)),
    "trial E": FoundingMethod(
        Myopic(images=64, channels_per_step=4, per_weight_loss=True, mode="compensated")
    ),
    "trial F": FoundingMethod(replace(_FEWER, metrics=WIDER, images=32, candidates=16)),
}
"""Name -> method. What begins with + is the composition with one thing changed; `ours` has the most
removed on `founding_lenet-5` of seven settings, itself and the trials, and is fixed since."""
