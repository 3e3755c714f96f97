"""How far a network's outputs are from another's: no labels needed."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from selector.data.forward import float_tensors
from selector.errors import SelectorError

TEMPERATURE = 4.0
"""Logits are divided by this: what a network says of the wrong classes then counts, too."""


@dataclass(frozen=True)
class Divergence:
    """Distance between two networks' outputs on the same images, summed over the outputs."""

    variances: tuple[float | None, ...]
    """Of every float tensor among the outputs: None for logits, else the reference's variance
    over images, mean over positions."""
    temperature: float = TEMPERATURE

    @classmethod
    def measured(cls, reference: object, temperature: float = TEMPERATURE) -> "Divergence":
        """Tell logits, of shape (images, classes), from other outputs, and take their variance.

        Raises:
            SelectorError: The outputs hold no tensor of floats, or are not finite.
        """
        tensors = real_tensors(reference)
        if not tensors:
            raise SelectorError(
                "the unpruned network returns no tensor of floats for the images, so there is "
                "nothing to imitate; let it, or forward, return its outputs (a loss alone will not "
                "do)"
            )
        for tensor in tensors:
            if not bool(torch.isfinite(tensor).all()):
                raise SelectorError(
                    "the unpruned network's outputs are not all finite; check its weights and "
                    "the normalisation of the inputs"
                )
        variances = tuple(None if _are_logits(t) else _variance(t) for t in tensors)
        return cls(variances, temperature)

    def __call__(self, outputs: object, reference: object) -> Tensor:
        r"""Mean over images of the distance to the reference; a scalar that can be differentiated.

        .. math:: T^2 \, \mathrm{KL}\big(\mathrm{softmax}(z / T) \,\|\, \mathrm{softmax}(\hat z / T)
            \big) \quad \text{for logits}, \qquad
            \overline{(z - \hat z)^2} / \mathrm{Var}(z) \quad \text{for other outputs}

        Returns:
            Nats times T^2 for logits, a share of the variance for others.

        Source:
            Hinton et al., arXiv 1503.02531, section 2.
        """
        return self.each(outputs, reference).mean()

    def each(self, outputs: object, reference: object) -> Tensor:
        """The distance of every image, shape (images,)."""
        pairs = zip(real_tensors(outputs), real_tensors(reference), self.variances, strict=True)
        total = torch.zeros((), device=_device(outputs))
        for ours, theirs, variance in pairs:
            if variance is None:
                total = total + _softened(ours, theirs, self.temperature)
            else:
                gap = functional.mse_loss(ours, theirs, reduction="none")
                gap = gap.flatten(1).mean(1) if gap.ndim > 1 else gap
                total = total + gap / variance
        return total


def real_tensors(outputs: object) -> list[Tensor]:
    """The tensors of floats with an image dimension, in a fixed order."""
    return [x for x in float_tensors(outputs) if x.is_floating_point() and x.ndim]


def check_same_shapes(outputs: object, reference: object) -> None:
    """Make sure that two networks return tensors of the same shapes on the same images.

    Raises:
        SelectorError: The number of outputs or a shape differs; both are named.
    """
    ours, theirs = ([tuple(t.shape) for t in real_tensors(o)] for o in (outputs, reference))
    if ours != theirs:
        raise SelectorError(
            f"the pruned network returns {_shapes(ours)} where the unpruned one returns "
            f"{_shapes(theirs)}; pass a network and its pruned copy, with the outputs unpruned"
        )


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes)) or "no tensors"


def _softened(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    logs = functional.log_softmax(ours / temperature, 1)
    reference = functional.log_softmax(theirs / temperature, 1)
    divergence = functional.kl_div(logs, reference, reduction="none", log_target=True).sum(1)
    return temperature**2 * divergence


def _are_logits(tensor: Tensor) -> bool:
    # One column has no other class to compare with: its softmax is always 1.
    return tensor.ndim == 2 and tensor.shape[1] > 1


def _variance(tensor: Tensor) -> float:
    spread = float(tensor.double().var(0, unbiased=False).mean())
    # Outputs that are the same for all images are compared as they are.
    return spread if spread > 0 else 1.0


def _device(outputs: object) -> torch.device:
    tensors = real_tensors(outputs)
    return tensors[0].device if tensors else torch.device("cpu")
