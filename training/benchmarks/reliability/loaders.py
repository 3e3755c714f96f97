"""All that reads files of others: what is changed of a file, how it is sealed again and read."""

import functools
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import selector
from selector.cli.weights import load_weights
from selector.network.checkpoint import ABOUT
from selector.pruning.resume import HEADER
from selector.recording.journal import Journal
from selector.records.measurement import GroupRecord
from selector.repair.distillation.state import SECTION, read_progress
from selector.tensor_files import CHECKSUM, checksum
from training.benchmarks.reliability.mutations import VALUES, mutated
from training.benchmarks.reliability.samples import batches, store, tiny

Reseal = Callable[[Path, random.Random], None]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A reader and the files that it reads."""

    place: str
    """Of the sample, below the folder of samples."""
    pattern: str
    """Files of it that are changed."""
    load: Callable[[Path], str]
    """Read the sample in a folder; what was read, as a digest."""
    sealed: bool
    """Whether a checksum notices every change."""
    reseal: Reseal | None = None
    """Change a file as somebody does who knows the checksums."""


def digest(*parts: object) -> str:
    """What tells one content from another."""
    return hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:16]


def _selector(place: Path) -> str:
    return selector.SaliencySelector.load(place).digest


def _records(place: Path) -> str:
    found = selector.Records.load(place)
    rows = [
        (
            *(g.network, g.context, g.group, g.channels, astuple(g.facts), astuple(g.state)),
            *((name, x.tolist()) for name, x in g.scores.items()),
            *((m, p.first.tolist(), p.scale.tolist()) for m, p in g.pairs.items()),
        )
        for g in found.groups
    ]
    return digest(found.networks, rows, found.candidates)


def _plan(place: Path) -> str:
    plan = selector.Plan.load(place)
    for choice in plan.choices:
        str(choice.explanation)
    str(plan)
    try:
        selector.apply_plan(tiny(), plan)
        if int(digest(plan), 16) % 8 == 0:  # Following the channels takes longer than all else.
            selector.apply_plan(tiny(), plan, batches(count=1))
    except selector.SelectorError:
        pass  # It is of another network, and says so.
    return digest(plan)


def _checkpoint(place: Path) -> str:
    found = store(SAMPLES / "checkpoint")
    found._file = place / "state.safetensors"
    loaded = found.load()
    assert loaded is not None
    return digest(loaded[0], checksum(loaded[1], ""))


def _pruned(place: Path) -> str:
    return checksum(selector.load_pruned(tiny, place).state_dict(), "")


def _weights(place: Path) -> str:
    return checksum(load_weights(tiny(3), place).state_dict(), "")


def _journal(place: Path) -> str:
    groups = _groups(SAMPLES / "records")
    mark = (SAMPLES / "journal" / "net0-0" / "fingerprint").read_text()
    with Journal(place.parent, place.name, mark).opened() as journal:
        return digest([journal.kept(g) for g in groups if g.network == "net0"])


@functools.cache
def _groups(place: Path) -> tuple[GroupRecord, ...]:
    return selector.Records.load(place).groups


def _distillation(place: Path) -> str:
    mark = json.loads((SAMPLES / "distillation" / "state.json").read_text())["fingerprint"]
    found = read_progress(place, mark)
    return digest(None if found is None else (found[0], checksum(found[1], "")))


def _images(place: Path) -> str:
    found = selector.read_images(place, size=12)
    return digest(found.images.numpy().tobytes(), found.labels.tolist(), found.classes)


def _reseal_selector(place: Path, chance: random.Random) -> None:
    """A text or a value changed, and all checksums made anew."""
    about = json.loads((place / "selector.json").read_text())
    file = chance.choice(sorted(place.glob("*.txt")))
    if chance.random() < 0.7:
        changed = mutated(file.read_bytes(), chance)
        file.write_bytes(changed)
        about["sha256"][file.name] = hashlib.sha256(changed).hexdigest()
    else:
        about = _changed_json({k: v for k, v in about.items() if k != "sha256"}, chance) | {
            "sha256": about["sha256"]
        }
    body = {name: value for name, value in about.items() if name != "sha256"}
    text = json.dumps(body, sort_keys=True)
    about["sha256"]["description"] = hashlib.sha256(text.encode()).hexdigest()
    (place / "selector.json").write_text(json.dumps(about))


def _changed_json(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same with a value changed; as it is where that leaves no JSON object."""
    try:
        found = json.loads(mutated(json.dumps(value).encode(), chance))
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _reseal_tensors(section: str) -> Reseal:
    def reseal(place: Path, chance: random.Random) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        file = place if place.is_file() else sorted(place.glob("*.safetensors"))[0]
        with safe_open(file, "pt") as opened:
            metadata = dict(opened.metadata())
        tensors = load_file(file)
        text = mutated(metadata[section].encode(), chance).decode(errors="replace")
        name = chance.choice(sorted(tensors))
        if chance.random() < 0.3:
            tensors[name] = tensors[name].flatten()[: chance.randrange(9)].clone()
        save_file(tensors, file, {section: text, CHECKSUM: checksum(tensors, text)})

    return reseal


def _reseal_records(place: Path, chance: random.Random) -> None:
    """A column, a value or the provenance changed, and the file written anew."""
    file = chance.choice(sorted(place.rglob("*.parquet")))
    table = pq.read_table(file)
    how = chance.randrange(5)
    names = table.column_names
    column = chance.randrange(len(names))
    if how == 0:
        about = json.loads(table.schema.metadata[b"provenance"])
        text = json.dumps(_changed_json(about, chance)).encode()
        seal = hashlib.sha256(text).hexdigest().encode()
        metadata = {**table.schema.metadata, b"provenance": text, b"sha256": seal}
        table = table.replace_schema_metadata(metadata)
    elif how == 1:
        table = table.drop_columns([names[column]])
    elif how == 2:
        metadata = table.schema.metadata
        table = pa.concat_tables([table, table.slice(chance.randrange(table.num_rows), 1)])
        table = table.replace_schema_metadata(metadata)
    else:
        values = table.column(column).to_pylist()
        values[chance.randrange(len(values))] = chance.choice(
            (*VALUES, [1.0], [float("nan")] * 6, list(np.arange(6.0)))
        )
        try:
            changed = pa.array(values)
            if pa.types.is_struct(changed.type):
                raise pa.ArrowInvalid("Parquet has no empty structures")
            table = table.set_column(column, names[column], changed)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            values = [str(value)[:50].encode(errors="replace").decode() for value in values]
            table = table.set_column(column, names[column], pa.array(values))
    pq.write_table(table, file, write_page_checksum=True)


SAMPLES = Path()
"""Set by the worker."""

LOADERS: dict[str, Loader] = {
    "selector": Loader(
        place="selector", pattern="*", load=_selector, sealed=True, reseal=_reseal_selector
    ),
    "records": Loader(
        place="records", pattern="**/*.parquet", load=_records, sealed=False, reseal=_reseal_records
    ),
    "plan": Loader(place="plan.json", pattern="", load=_plan, sealed=False),
    "checkpoint": Loader(
        place="checkpoint",
        pattern="*",
        load=_checkpoint,
        sealed=True,
        reseal=_reseal_tensors(HEADER),
    ),
    "pruned": Loader(
        place="pruned.safetensors",
        pattern="",
        load=_pruned,
        sealed=True,
        reseal=_reseal_tensors(ABOUT),
    ),
    "distillation": Loader(
        place="distillation",
        pattern="*",
        load=_distillation,
        sealed=False,
        reseal=_reseal_tensors(SECTION),
    ),
    "weights": Loader(place="weights.pt", pattern="", load=_weights, sealed=False),
    "pickle": Loader(place="pickle.pt", pattern="", load=_weights, sealed=False),
    "journal": Loader(place="journal/net0-0", pattern="*.json", load=_journal, sealed=False),
    "image table": Loader(place="images.parquet", pattern="", load=_images, sealed=False),
    "images": Loader(place="images", pattern="**/*.*", load=_images, sealed=False),
}
