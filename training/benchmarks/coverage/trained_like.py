"""Random weights made like trained ones, so that nothing that a cut breaks can hide.

Fresh networks have BatchNorm statistics of no data, scales of exactly one, biases of zero, and
layer scales of a millionth: errors of a cut would be invisible or nil. So weights are trained for a
few steps on noise, constant parameters get noise, and BatchNorm the statistics of a batch.
"""

import torch
from torch import nn
from torch.nn import functional

from training.benchmarks.coverage.subject import Subject, energy, first_tensor

STEPS = 2
BATCHNORM = nn.modules.batchnorm._BatchNorm


def trained_like(subject: Subject, seed: int = 0) -> nn.Module:
    """Build the network, in evaluation mode; published weights stay as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = subject.build()
        if not subject.trained:
            vary_constants(model, torch.Generator().manual_seed(seed))
            if not subject.detector:
                _train(model, subject)
            _gather_statistics(model, subject)
    return model.eval()


@torch.no_grad()
def vary_constants(model: nn.Module, generator: torch.Generator) -> None:
    """Give noise to every parameter of equal values: 0.1 normal where zero, else times 0.5 to 1.5.

    Values under a tenth, as those of layer scales, are a tenth afterwards, or they would hide what
    they scale.
    """
    for parameter in model.parameters():
        if parameter.numel() < 2 or not parameter.is_floating_point():
            continue
        value = parameter.flatten()[0]
        if not bool((parameter == value).all()):
            continue
        if value == 0:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        else:
            factors = 0.5 + torch.rand(parameter.shape, generator=generator)
            parameter.copy_(value.sign() * value.abs().clamp(min=0.1) * factors)


def _train(model: nn.Module, subject: Subject) -> None:
    """A few steps on noise and random labels; gradients are clipped, so that none runs away."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.train()
    for step in range(STEPS):
        inputs = subject.inputs(subject.images, 100 + step)
        outputs = model(inputs)
        if subject.classes is None:
            loss = energy(outputs, None)
        else:
            scores = first_tensor(outputs)
            shape = (scores.shape[0], *scores.shape[2:])
            loss = functional.cross_entropy(scores, torch.randint(subject.classes, shape))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def _gather_statistics(model: nn.Module, subject: Subject) -> None:
    """Running statistics of BatchNorm from one batch.

    Layer by layer in evaluation mode: a layer's statistics are those of its input as it will be.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BATCHNORM)]

    def gather(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, BATCHNORM)
        values = args[0].transpose(0, 1).flatten(1)
        if layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(values.mean(1))
            layer.running_var.copy_(
                values.var(1) if values.shape[1] > 1 else values.new_ones(len(values))
            )

    handles = [layer.register_forward_pre_hook(gather) for layer in layers]
    model.eval()
    try:
        model(subject.inputs(subject.statistics or subject.images, 99))
    finally:
        for handle in handles:
            handle.remove()
