"""The report's glossary: what its words mean, in a sentence or two."""

TERMS = {
    "accuracy": "The share of images whose highest output is their label (top-1).",
    "calibration images": "The images that the network was pruned with: metrics are computed on "
    "them, and BatchNorm and the repair are fitted to them.",
    "fallback": "A round in which the selector was not sure that another metric is better, and "
    "kept the one that is best on average.",
    "group": "Channels of several layers that must go together, for example along a residual "
    "connection. It is named after its first layer.",
    "halved": "How often a round was undone and done again with a step half as long, because the "
    "loss rose more than predicted or allowed.",
    "latency": "The time of one forward pass on the machine named below, timed in turns with that "
    "of the unpruned network. The ratio is the median of several pairs; in brackets, its 95 % "
    "interval. Other machines give other ratios.",
    "loss": "What training minimises, averaged over images; lower is better.",
    "MACs": "Multiply-accumulates: multiplications with their additions that the network needs for "
    "one image. The usual measure of computation.",
    "metric": "A saliency metric: a rule that scores channels. Those with the lowest scores are "
    "removed first.",
    "nats": "The unit of a cross-entropy loss with natural logarithms. Guessing among 10 classes "
    "costs 2.3 nats.",
    "oracle": "Measuring what a removal really does to the loss, instead of predicting it.",
    "parameters": "The numbers that training has set: weights, biases, scales.",
    "peak memory": "The most bytes of weights, inputs and outputs of layers that exist at once in "
    "a forward pass. What operators need inside themselves is not counted.",
    "predicted": "What the selector expected a removal to do to the loss. It learnt that from "
    "measurements on other networks; the shipped selector from networks that are repaired.",
    "repair": "After the cuts, each layer that is left is refitted so that it gives what the "
    "unpruned network gave. It needs no labels.",
    "round": "One cut. The network is scored again before each.",
    "runner-up": "The metric that was predicted to be second best.",
    "variance explained": "How much of the unpruned network's outputs of a layer the pruned "
    "network reproduces: 100 % is all of it, 0 % is no better than their mean.",
    "weights file": "The size of all tensors in a file that save_pruned writes.",
}
"""Term -> what it means."""


def anchor(term: str) -> str:
    """Where in the page a term is explained.

    >>> anchor("peak memory")
    'term-peak-memory'
    """
    return f"term-{term.lower().replace(' ', '-')}"
