"""Images come out as they went in, only those asked for are decoded; errors name the culprit."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from selector.data.image_files import read_folder, read_parquet
from selector.errors import SelectorError


def pixels(count: int, *, height: int = 5, width: int = 6, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=chance, dtype=torch.uint8)


def png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path,
    files: list[bytes | None],
    labels: list[int | None],
    *,
    classes: str | None = None,
    rows_per_group: int = 4,
) -> Path:
    table = pa.table({"image": pa.array(files, pa.binary()), "label": pa.array(labels, pa.int16())})
    if classes is not None:
        table = table.replace_schema_metadata({"classes": classes})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def test_parquet_round_trip(tmp_path: Path) -> None:
    images = pixels(10)
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    path = write(tmp_path / "x.parquet", [png(i) for i in images], [*labels], classes="a\nb\nc")
    read = read_parquet(path)
    assert torch.equal(read.images, images)
    assert read.labels.tolist() == labels
    assert read.classes == ("a", "b", "c")


def test_parquet_without_class_names_uses_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [png(i) for i in pixels(3)], [0, 2, 1])
    assert read_parquet(path).classes == ("0", "1", "2")


def test_parquet_takes_structs_of_bytes(tmp_path: Path) -> None:
    images = pixels(2)
    table = pa.table({"image": [{"bytes": png(i), "path": "x"} for i in images], "label": [0, 1]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert torch.equal(read_parquet(tmp_path / "x.parquet").images, images)


@pytest.mark.parametrize(("offset", "limit"), [(0, 3), (3, 3), (4, 4), (5, 100), (9, 1), (2, None)])
def test_parquet_range(tmp_path: Path, offset: int, limit: int | None) -> None:
    images = pixels(10)
    path = write(tmp_path / "x.parquet", [png(i) for i in images], list(range(10)))
    read = read_parquet(path, limit=limit, offset=offset)
    stop = 10 if limit is None else offset + limit
    assert torch.equal(read.images, images[offset:stop])
    assert read.labels.tolist() == list(range(10))[offset:stop]


def test_parquet_decodes_only_the_rows_asked_for(tmp_path: Path) -> None:
    files: list[bytes | None] = [png(i) for i in pixels(6)]
    files[0] = files[5] = b"not an image"
    path = write(tmp_path / "x.parquet", files, [0] * 6)
    assert len(read_parquet(path, offset=1, limit=4)) == 4


def test_size_resizes_and_crops_the_centre(tmp_path: Path) -> None:
    wide = torch.zeros(3, 8, 24, dtype=torch.uint8)
    wide[:, :, 8:16] = 200
    path = write(tmp_path / "x.parquet", [png(wide), png(pixels(1)[0])], [0, 1])
    images = read_parquet(path, size=8).images
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(images[0], torch.full((3, 8, 8), 200, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("files", "labels", "classes", "message"),
    [
        ([b"rubbish"], [0], None, "row 0 is not a readable image"),
        ([None], [0], None, "row 0 holds no image bytes"),
        ([png(pixels(1)[0])], [None], None, "row 0 has label None"),
        ([png(pixels(1)[0])], [-1], None, "row 0 has label -1"),
        ([png(pixels(1)[0])], [3], "a\nb", "labels reach 3"),
        ([], [], None, "no rows from 0"),
        (
            [png(pixels(1)[0]), png(pixels(1, height=9)[0])],
            [0, 0],
            None,
            r"row 1 is 6x9 pixels but the first image is 6x5; give size=",
        ),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path,
    files: list[bytes | None],
    labels: list[int | None],
    classes: str | None,
    message: str,
) -> None:
    path = write(tmp_path / "x.parquet", files, labels, classes=classes)
    with pytest.raises(SelectorError, match=message) as caught:
        read_parquet(path)
    assert "x.parquet" in str(caught.value)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    noise = pixels(1, height=64, width=64)[0]
    path = write(tmp_path / "x.parquet", [png(noise), png(noise)[:2000]], [0, 1])
    with pytest.raises(SelectorError, match="row 1 is not a readable image"):
        read_parquet(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match=r"absent\.parquet: no such file"):
        read_parquet(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(SelectorError, match=r"text\.parquet is not a Parquet file"):
        read_parquet(tmp_path / "text.parquet")
    pq.write_table(pa.table({"image": [b""], "target": [0]}), tmp_path / "other.parquet")
    with pytest.raises(SelectorError, match=r"no column label; it has: image, target"):
        read_parquet(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("limit", "offset", "size", "message"),
    [
        (0, 0, None, "limit is 0"),
        (None, -1, None, "offset is -1"),
        (None, 0, 0, "size is 0"),
        (None, 5, None, "no rows from 5 on; it has 2"),
    ],
)
def test_bad_ranges_are_refused(
    tmp_path: Path, limit: int | None, offset: int, size: int | None, message: str
) -> None:
    path = write(tmp_path / "x.parquet", [png(i) for i in pixels(2)], [0, 1])
    with pytest.raises(SelectorError, match=message):
        read_parquet(path, limit=limit, offset=offset, size=size)


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(pixels(count, seed=len(name))):
            (root / name / f"{number}.png").write_bytes(png(image))
    return root


def test_folder_classes_take_turns(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", {"dogs": 3, "cat": 2})
    (root / "cat" / "notes.txt").write_text("not an image")
    read = read_folder(root)
    assert read.classes == ("cat", "dogs")
    assert read.labels.tolist() == [0, 1, 0, 1, 1]
    assert torch.equal(read.images[read.labels == 1], pixels(3, seed=len("dogs")))
    assert read_folder(root, limit=2).labels.tolist() == [0, 1]


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match="nowhere: no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(SelectorError, match="one folder of images for each class"):
        read_folder(tmp_path)
    root = folder_of(tmp_path / "pets", {"cat": 2})
    (root / "cat" / "1.png").write_bytes(b"rubbish")
    with pytest.raises(SelectorError, match=r"1\.png is not a readable image"):
        read_folder(root)
