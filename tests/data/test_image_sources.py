"""Images come from tables, lists and folders of every usual kind, always the same ones."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from selector.data.image_data import ImageData, UnlabelledBatches
from selector.data.image_files import decode, find_rows, read_images
from selector.data.image_tables import Columns
from selector.errors import SelectorError

CLASSES = ("cat", "dog", "owl")
LABELS = [2, 0, 1, 1, 0, 2, 0]


def encoded() -> list[bytes]:
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(LABELS), 6, 5, 3), generator=chance, dtype=torch.uint8)
    found = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image.numpy()).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def right() -> ImageData:
    planes = [torch.from_numpy(np.array(Image.open(io.BytesIO(e)))) for e in encoded()]
    return ImageData(torch.stack(planes).permute(0, 3, 1, 2), torch.tensor(LABELS), CLASSES)


def features() -> dict[bytes, bytes]:
    about = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    return {b"huggingface": json.dumps(about).encode()}


def table(name: str = "image", label: str = "label") -> pa.Table:
    structs = [{"bytes": one, "path": None} for one in encoded()]
    return pa.table({name: structs, label: LABELS}).replace_schema_metadata(features())


def shards(root: Path) -> Path:
    for number, part in enumerate((table().slice(0, 3), table().slice(3))):
        pq.write_table(part, root / f"train-{number:05}-of-00002.parquet")
    return root


def pattern(root: Path) -> str:
    pq.write_table(table(), root / "test-00000-of-00001.parquet")
    return f"{shards(root)}/train-*.parquet"


def saved(root: Path) -> Path:
    """As `datasets.Dataset.save_to_disk` writes it, in two Arrow files."""
    files = []
    for number, part in enumerate((table().slice(0, 4), table().slice(4))):
        name = f"data-{number:05}-of-00002.arrow"
        with pa.ipc.new_stream(root / name, part.schema) as writer:
            writer.write_table(part)
        files.append({"filename": name})
    (root / "state.json").write_text(json.dumps({"_data_files": files}))
    return root


def names_as_labels(root: Path) -> Path:
    named = pa.table({"image": encoded(), "label": [CLASSES[label] for label in LABELS]})
    pq.write_table(named, root / "named.parquet")
    return root / "named.parquet"


def listed(suffix: str, comma: str, names: bool) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        (root / "files").mkdir()
        lines = [comma.join(("path", "label"))]
        for number, (one, label) in enumerate(zip(encoded(), LABELS, strict=True)):
            (root / "files" / f"{number}.png").write_bytes(one)
            lines.append(
                comma.join((f"files/{number}.png", CLASSES[label] if names else str(label)))
            )
        (root / f"list.{suffix}").write_text("\n".join(lines) + "\n")
        return root / f"list.{suffix}"

    return write


def paths_in_a_table(root: Path) -> Path:
    (root / "files").mkdir()
    rows = []
    for number, (one, label) in enumerate(zip(encoded(), LABELS, strict=True)):
        (root / "files" / f"{number}.png").write_bytes(one)
        rows.append({"image": {"bytes": None, "path": f"files/{number}.png"}, "label": label})
    pq.write_table(
        pa.Table.from_pylist(rows).replace_schema_metadata(features()), root / "p.parquet"
    )
    return root / "p.parquet"


SOURCES: dict[str, Callable[[Path], Path | str]] = {
    "shards": shards,
    "pattern": pattern,
    "saved": saved,
    "named": names_as_labels,
    "csv": listed("csv", ",", True),
    "tsv": listed("tsv", "\t", True),
    "paths": paths_in_a_table,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("limit", [None, 5])
def test_every_source_gives_the_same_images(name: str, limit: int | None, tmp_path: Path) -> None:
    found = read_images(SOURCES[name](tmp_path), limit=limit)
    count = len(LABELS) if limit is None else limit
    assert torch.equal(found.images, right().images[:count])
    assert found.labels.tolist() == LABELS[:count]
    assert found.classes == CLASSES


def test_numbers_in_a_list_are_classes(tmp_path: Path) -> None:
    found = read_images(listed("csv", ",", False)(tmp_path))
    assert found.labels.tolist() == LABELS
    assert found.classes == ("0", "1", "2")


def test_columns_of_other_names(tmp_path: Path) -> None:
    pq.write_table(table("picture", "kind"), tmp_path / "x.parquet")
    with pytest.raises(SelectorError, match=r"no column image; it has: picture, kind; name the r"):
        read_images(tmp_path / "x.parquet")
    found = read_images(tmp_path / "x.parquet", image_column="picture", label_column="kind")
    assert torch.equal(found.images, right().images)
    with pytest.raises(SelectorError, match="no column photo; it has: picture, kind"):
        read_images(tmp_path / "x.parquet", image_column="photo")
    pq.write_table(table("img", "labels"), tmp_path / "y.parquet")
    assert read_images(tmp_path / "y.parquet").labels.tolist() == LABELS


def test_brightness_alone(tmp_path: Path) -> None:
    found = read_images(shards(tmp_path), channels=1)
    expected = [list(Image.open(io.BytesIO(one)).convert("L").tobytes()) for one in encoded()]
    assert found.images.shape == (len(LABELS), 1, 6, 5)
    assert found.images.flatten(1).tolist() == expected


def flat(root: Path) -> Path:
    for number, one in enumerate(encoded()):
        (root / f"{number}.png").write_bytes(one)
    (root / ".hidden.png").write_bytes(b"rubbish")
    (root / "notes.txt").write_text("not an image")
    return root


def without_labels(root: Path) -> Path:
    pq.write_table(table().drop_columns(["label"]), root / "x.parquet")
    return root / "x.parquet"


@pytest.mark.parametrize("source", [flat, without_labels])
def test_images_without_labels(source: Callable[[Path], Path], tmp_path: Path) -> None:
    place = source(tmp_path)
    rows = find_rows(place, Columns(), needed=False)
    found = decode(rows, 0, None, None)
    assert found.labels is None
    assert torch.equal(found.images, right().images)
    batches = UnlabelledBatches(found.images, batch_size=4, mean=(0.5,), std=(0.5,))
    first, last = list(batches)
    assert (len(batches), first[1], last[1]) == (2, None, None)
    torch.testing.assert_close(last[0], (right().images[4:] / 255 - 0.5) / 0.5)
    with pytest.raises(SelectorError, match=r"no images|no column label"):
        read_images(place)


def folder_with_both(root: Path) -> Path:
    flat(root)
    (root / "cat").mkdir()
    (root / "cat" / "0.png").write_bytes(encoded()[0])
    return root


def dictionary(root: Path) -> Path:
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        (root / split).mkdir()
        saved(root / split)
    return root


def two_splits(root: Path) -> Path:
    pattern(root)
    return root


def torn_state(root: Path) -> Path:
    saved(root)
    (root / "data-00001-of-00002.arrow").write_bytes(b"rubbish")
    return root


def absent_file(root: Path) -> Path:
    path = listed("csv", ",", True)(root)
    (root / "files" / "3.png").unlink()
    return path


def other_heading(root: Path) -> Path:
    (root / "x.csv").write_text("a,b\n1,2\n")
    return root / "x.csv"


def unknown_class(root: Path) -> Path:
    rows = pa.table({"image": encoded()[:1], "label": ["yak"]}).replace_schema_metadata(features())
    pq.write_table(rows, root / "x.parquet")
    return root / "x.parquet"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "both": (folder_with_both, r"holds images, such as 0\.png, beside the folder 'cat'"),
    "dictionary": (dictionary, r"in several parts; name one of them: .*test, .*train"),
    "splits": (two_splits, r"files of test and train; name one part by a pattern: '.*test\*"),
    "torn": (torn_state, "cannot be read as a saved data set"),
    "absent": (absent_file, r"files.3\.png cannot be read"),
    "heading": (other_heading, "no column path or image; its first line names: a, b"),
    "class": (unknown_class, "row 0 has label 'yak'"),
    "pattern": (lambda root: root / "no-*.parquet", "no file has such a name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    source, message = REFUSED[name]
    place = source(tmp_path)
    with pytest.raises(SelectorError, match=message):
        decode(find_rows(place, Columns(), needed=False), 0, None, None)


def test_data_sets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    images = [{"bytes": one, "path": None} for one in encoded()]
    data = datasets.Dataset.from_dict({"image": images, "label": LABELS}, features=kinds)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "x.parquet"))
    for place in (tmp_path / "saved", tmp_path / "x.parquet"):
        found = read_images(place)
        assert torch.equal(found.images, right().images)
        assert (found.labels.tolist(), found.classes) == (LABELS, CLASSES)
