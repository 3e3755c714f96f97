"""Networks weigh alike in what is learnt, though some are recorded twice."""

from collections import Counter
from collections.abc import Iterable

from training.campaign.tasks import TRAINED


def network_of(recording: str) -> str:
    """The network of a recording: on images that it was trained on, it has the same name."""
    return recording.removesuffix(TRAINED)


def weights_of(recordings: Iterable[str]) -> dict[str, float]:
    """Recording -> its weight: those of a network share one."""
    names = list(recordings)
    count = Counter(map(network_of, names))
    return {name: 1 / count[network_of(name)] for name in names}
