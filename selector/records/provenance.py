"""Where a network's records come from, and which records belong together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selector.errors import SelectorError

ORIGINS = ("own", "third_party", "foreign")
"""Networks of one's own; those that others trained, and that may be learnt from, too; and those
that are kept for testing."""
RECORDED = ("plain", "repaired")
"""Modes of removal that a network may be recorded in."""
LONGEST_NAME = 200
"""Bytes of a network's name."""


@dataclass(frozen=True)
class Provenance:
    """Where a network's records come from."""

    network: str
    family: str
    dataset: str
    origin: str
    """One of `ORIGINS`."""
    images: int
    """Images behind the signals, and in each of the two splits."""
    versions: str
    """Of this package, torch and the metrics, as JSON."""
    seed: int = 0
    """Of the drawn contexts and counts, and of the `random` metric."""
    device: str = ""
    """Where it was measured."""
    macs: float | None = None
    """Multiply-accumulates per image of the unpruned network."""
    parameters: float | None = None
    accuracy: float | None = None
    """Share of the images of both splits that the unpruned network classifies right."""
    mode: str = "plain"
    """One of `RECORDED`: what the loss changes are of."""
    unseen: bool | None = None
    """Whether the network was not trained on the images; None where nobody has said."""

    @property
    def for_tests(self) -> bool:
        """Whether it is kept for testing, so that no selector may learn from it."""
        return self.origin == "foreign"

    def __post_init__(self) -> None:
        """Refuse an origin that would be in no set of records."""
        if self.origin not in ORIGINS:
            raise SelectorError(
                f"{self.network}: unknown origin {self.origin!r}; known: {', '.join(ORIGINS)}"
            )
        if self.mode not in RECORDED:
            raise SelectorError(
                f"{self.network}: unknown mode {self.mode!r}; known: {', '.join(RECORDED)}"
            )

    def check_name(self) -> None:
        """Make sure that the network's name is that of a folder: its records are written there.

        Raises:
            SelectorError: It is empty, begins with a dot, or leads elsewhere.
        """
        check_network_name(self.network)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that it was recorded with, in order; empty where not stated."""
        found = json.loads(self.versions).get("metrics", ())
        return tuple(sorted(found))


def check_network_name(name: object) -> None:
    """Make sure that a network's name is that of a folder.

    Raises:
        SelectorError: It is not.
    """
    fine = isinstance(name, str) and 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
    text = str(name)
    if not fine or text.startswith(".") or not text.isprintable() or set(text) & {"/", "\\"}:
        raise SelectorError(
            f"network={name!r:.240} must be the name of a folder: not empty, no '/' or '\\', "
            f"nothing that cannot be printed, no leading '.', {LONGEST_NAME} bytes at most"
        )


def check_mixture(parts: Mapping[str, tuple[Provenance, str]]) -> None:
    """Make sure that the records of several folders belong together.

    Args:
        parts: Folder -> the network whose records it holds, and the version of their schema.

    Raises:
        SelectorError: Several schema versions, a network in two folders, or different metrics.
    """
    first, (_, version) = next(iter(parts.items()))
    places: dict[str, str] = {}
    for place, (provenance, other) in parts.items():
        if other != version:
            raise SelectorError(
                f"{first} has records schema {version} and {place} has {other}; they do not mix: "
                "record the older one again, or load them apart"
            )
        if provenance.network in places:
            raise SelectorError(
                f"network {provenance.network!r} is in {places[provenance.network]} and in "
                f"{place}; remove one of them"
            )
        places[provenance.network] = place
    check_metrics([provenance for provenance, _ in parts.values()])


def check_metrics(networks: Sequence[Provenance]) -> None:
    """Make sure that networks were recorded with the same metrics, in the same mode.

    A decision's regrets compare its arms; with other arms, the same choice has another regret.

    Raises:
        SelectorError: They were not, or in different modes of removal; two networks are named.
    """
    for other in networks[1:]:
        if other.mode != networks[0].mode:
            raise SelectorError(
                f"networks {networks[0].network!r} and {other.network!r} were recorded in "
                f"different modes, {networks[0].mode} and {other.mode}; load them apart"
            )
    stated = [(p.network, metrics) for p in networks if (metrics := p.metrics)]
    for network, metrics in stated[1:]:
        if metrics != stated[0][1]:
            differ = ", ".join(sorted({*metrics} ^ {*stated[0][1]}))
            raise SelectorError(
                f"networks {stated[0][0]!r} and {network!r} were recorded with different metrics: "
                f"only one of them has {differ}; record one of them again, or load them apart"
            )
