"""A selector as a folder: boosters as LightGBM text, the rest as JSON, with checksums."""

import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selector.errors import SelectorError
from selector.files import of_plain, write_text
from selector.learning.boosters import check_settings
from selector.learning.table import NUMBERS

FORMAT_VERSION = 3
DESCRIPTION = "selector.json"
AGAIN = "copy the folder again, or fit the selector again"
DAMAGE = "damage.txt"
BOOSTER = re.compile(r"damage\.txt|regret_\d{1,3}\.txt")
"""Names of the boosters' files: nothing else is read."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Arguments of `SaliencySelector`."""

    folds: int
    trees: int
    leaves: int
    learning_rate: float
    caution: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_settings(**vars(self))


@dataclass(frozen=True, kw_only=True)
class IntervalNumbers:
    """`Intervals` as lists."""

    edges: tuple[float, ...]
    quantiles: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse bins that are not ascending, or without their quantiles."""
        if list(self.edges) != sorted(self.edges) or len(self.quantiles) != len(self.edges) + 1:
            raise SelectorError(
                f"intervals need ascending edges, and one pair of quantiles more than the "
                f"{len(self.edges)} edges, not {len(self.quantiles)}"
            )
        if any(low > high for low, high in self.quantiles):
            raise SelectorError("intervals need lower quantiles that are not above the upper ones")


@dataclass(frozen=True, kw_only=True)
class DistributionNumbers:
    """`TrainingDistribution` as lists."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    centres: tuple[tuple[float, ...], ...]
    radius: float

    def __post_init__(self) -> None:
        """Refuse numbers that do not describe decisions."""
        sizes = {len(self.mean), len(self.spread), *map(len, self.centres)}
        if len(sizes) > 1 or not self.mean or not self.centres:
            raise SelectorError(
                "familiar needs as many numbers in its mean, its spread and each centre, not "
                f"{sorted(sizes)}"
            )
        if not (self.radius > 0 and min(self.spread) > 0):
            raise SelectorError("familiar needs a radius and spreads above 0")


@dataclass(frozen=True, kw_only=True)
class Description:
    """All of a selector but its boosters, as it stands in JSON."""

    parameters: Parameters
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    features: tuple[str, ...]
    single_best: str
    networks: tuple[str, ...]
    damage_weight: float
    intervals: IntervalNumbers
    joint_errors: tuple[tuple[float, ...], ...]
    familiar: DistributionNumbers

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        for name in ("arms", "metrics", "features", "networks"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise SelectorError(f"{name} must be different names, at least one")
        for name in (*self.arms, self.single_best):
            if name not in self.metrics or self.single_best not in self.arms:
                raise SelectorError(f"{name!r} is not among its metrics or arms")
        if self.damage_weight < 0:
            raise SelectorError(f"damage_weight={self.damage_weight} must not be negative")
        if {len(row) for row in self.joint_errors} != {len(self.arms)}:
            raise SelectorError(f"joint_errors must be rows of {len(self.arms)} numbers")
        if len(self.familiar.mean) != len(NUMBERS):
            raise SelectorError(f"familiar must describe decisions by {len(NUMBERS)} numbers")


def write_artefact(
    folder: Path, description: Mapping[str, object], boosters: Mapping[str, str]
) -> None:
    """Write the boosters' texts, then the description, so that a folder with it is whole.

    Args:
        folder: Made where it is missing.
        description: `Description` as a dictionary.
        boosters: Names without suffix -> texts.

    Raises:
        SelectorError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelectorError(f"{folder} cannot be made: {error}") from error
    for name, text in boosters.items():
        write_text(folder / f"{name}.txt", text)
    # Lists for tuples: the checksum is that of what is read.
    body = json.loads(json.dumps({"format_version": FORMAT_VERSION, **description}))
    sums = {f"{name}.txt": _digest(text) for name, text in boosters.items()}
    body |= {"sha256": {**sums, "description": _digest(_canonical(body))}}
    write_text(folder / DESCRIPTION, json.dumps(body, indent=1) + "\n")


def read_artefact(folder: Path) -> tuple[Description, dict[str, str]]:
    """The description and the boosters' texts of a saved selector.

    Only the files that a selector is saved in are read, and only from its folder.

    Raises:
        SelectorError: Missing, damaged, or of another format; fields that are missing, unknown, of
            another type or do not fit each other.
    """
    body, sums = _body(folder)
    texts = {name: _text(folder / name) for name in _checked_names(folder, sums)}
    for name, text in texts.items():
        if _digest(text) != sums[name]:
            raise SelectorError(f"{folder / name} is damaged: its checksum does not fit; {AGAIN}")
    try:
        description = of_plain(body, Description, "a description of a selector")
    except SelectorError as error:
        raise SelectorError(
            f"{folder} was not saved by this version's save: {error}; fit the selector again"
        ) from error
    return description, {name.removesuffix(".txt"): text for name, text in texts.items()}


def _body(folder: Path) -> tuple[dict[str, object], dict[str, str]]:
    """The description as JSON, and the checksums of the boosters' files."""
    path = folder / DESCRIPTION
    try:
        body = json.loads(_text(path))
        version = body.pop("format_version")
        sums = body.pop("sha256") if version == FORMAT_VERSION else {}
        whole = version != FORMAT_VERSION or sums.pop("description") == _digest(
            _canonical({"format_version": version, **body})
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SelectorError(
            f"{folder} is not a saved selector: {path.name}: {type(error).__name__}: {error}; "
            "name a folder that save wrote, or fit the selector again"
        ) from error
    if version != FORMAT_VERSION:
        raise SelectorError(
            f"{folder} has format {version}, this version reads {FORMAT_VERSION}; "
            "fit the selector again"
        )
    if not whole:
        raise SelectorError(f"{path} is damaged: its checksum does not fit; {AGAIN}")
    return body, sums


def _checked_names(folder: Path, sums: Mapping[str, object]) -> Sequence[str]:
    """The boosters' files, once it is sure that their names are those that a selector has."""
    strange = [name for name in sums if not BOOSTER.fullmatch(name)]
    if strange:
        raise SelectorError(
            f"{folder} is not a saved selector: it lists {strange[0]!r}, which is none of its "
            "files; fit the selector again"
        )
    wanted = [DAMAGE, *(f"regret_{number}.txt" for number in range(max(1, len(sums) - 1)))]
    missing = [name for name in wanted if name not in sums]
    if missing:
        raise SelectorError(
            f"{folder} is not a saved selector: it lists no {missing[0]}; fit the selector again"
        )
    return list(sums)


def _text(path: Path) -> str:
    """The text of a regular file; byte by byte, since ends of lines must stay as they are.

    Raises:
        SelectorError: It is missing, no regular file, or no text.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(f"{path.name} is not a regular file; copy the file itself to its place")
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise SelectorError(
            f"{path.parent} is not a saved selector: {type(error).__name__}: {error}; name a "
            "folder that save wrote, or fit the selector again"
        ) from error


def shipped_file(name: str) -> Path:
    """A file or folder of `models/`: inside the installed package, else in the checkout.

    Raises:
        SelectorError: It is not there: a broken installation.
    """
    here = Path(__file__).resolve().parents[1]
    for root in (here / "models", here.parent / "models"):
        if (root / name).exists():
            return root / name
    raise SelectorError(f"the shipped {name!r} is missing; install saliency-selector again")


def _canonical(body: Mapping[str, object]) -> str:
    return json.dumps(body, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
