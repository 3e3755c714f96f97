"""Images come out as they went in, only those asked for are decoded; errors name the culprit."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from selector.data.image_files import read_folder, read_images, read_parquet
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


def encoded(values: object, dtype: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype=dtype)).save(buffer, kind)
    return buffer.getvalue()


RAMP = np.linspace(0, 65535, 64).astype(int).reshape(8, 8)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "PPM"), ("<u2", "PPM")],
)
def test_images_of_16_bits_are_scaled(tmp_path: Path, dtype: str, kind: str) -> None:
    path = write(tmp_path / "x.parquet", [encoded(RAMP, dtype, kind)] * 2, [0, 1])
    right = torch.from_numpy((RAMP / 257).round().astype(np.uint8))
    read = read_images(path)
    for plane in read.images.flatten(0, 1):
        assert torch.equal(plane, right)
    assert read.labels.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["<i4", "<f4"])
def test_images_without_a_known_range_are_refused(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "x.parquet", [encoded(RAMP, dtype, "TIFF")], [0])
    with pytest.raises(SelectorError, match=r"row 0 has pixels that are .* scale them to 0\.\.255"):
        read_images(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "RGB"])
def test_images_of_8_bits_are_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pixels(1)[0].permute(1, 2, 0).numpy()).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    path = write(tmp_path / "x.parquet", [buffer.getvalue()], [0])
    right = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_images(path).images[0], right)


def test_what_is_no_image_of_a_class_is_ignored(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", {"cat": 2, "dogs": 3})
    right = read_images(root)
    rubbish = ("._0.png", ".DS_Store", "Thumbs.db", "notes.txt", ".hidden/a.png")
    thumbnails = ("@eaDir/0.png", "lost+found/0.png")
    for name in (*rubbish, *thumbnails, ".ipynb_checkpoints/0.png", "__MACOSX/._0.png"):
        for folder in ("", "cat", "dogs"):
            if folder or "/" in name or name.startswith("."):
                file = root / folder / name
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(b"rubbish")
    (root / "cat" / "of_images.png").mkdir()
    found = read_images(root)
    assert found.classes == right.classes
    assert torch.equal(found.images, right.images)
    assert torch.equal(found.labels, right.labels)


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "tiff", "PNG", "jfif", "bmp", "webp"])
def test_suffixes_of_images(tmp_path: Path, suffix: str) -> None:
    for name in ("cat", "dog.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"x.y.{suffix}").write_bytes(png(pixels(1)[0]))
        (tmp_path / name / "deeper").mkdir()
        (tmp_path / name / "deeper" / f"z.{suffix}").write_bytes(png(pixels(1)[0]))
    found = read_images(tmp_path)
    assert (found.classes, found.labels.tolist()) == (("cat", "dog.png"), [0, 1, 0, 1])


def test_links_are_followed_and_dangling_ones_named(tmp_path: Path) -> None:
    elsewhere = folder_of(tmp_path / "elsewhere", {"cat": 1})
    root = folder_of(tmp_path / "pets", {"dogs": 2})
    (root / "cat").symlink_to(elsewhere / "cat")
    (root / "dogs" / "2.png").symlink_to(elsewhere / "cat" / "0.png")
    assert read_images(root).labels.tolist() == [0, 1, 1, 1]
    (root / "dogs" / "3.png").symlink_to(tmp_path / "nowhere.png")
    assert len(read_images(root, limit=4)) == 4
    with pytest.raises(SelectorError, match=r"dogs.3\.png cannot be read: a link to a file that"):
        read_images(root)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pets", {"cat": 1})
    (root / "birds").mkdir()
    (root / "birds" / "owl.heic").write_bytes(b"of another kind")
    with pytest.raises(SelectorError, match="the folder 'birds' holds no images"):
        read_images(root)


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    table = pa.table({"image": [png(pixels(1)[0])], "label": pa.array([2**60], pa.int64())})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SelectorError, match="labels reach 1152921504606846976"):
        read_images(tmp_path / "x.parquet")


def test_nothing_is_run_or_decoded_for_a_format_that_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nquit\n"
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("it runs a program"))
    for number, content in enumerate((eps, b"8BPS\0\1" + bytes(20), b"%PDF-1.4\n")):
        path = write(tmp_path / f"{number}.parquet", [content], [0])
        with pytest.raises(SelectorError, match="row 0 is not a readable image"):
            read_images(path)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says that it is large."""
    whole = bytearray(png(pixels(1)[0]))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


@pytest.mark.parametrize(("width", "height"), [(10**5, 10**4), (60_000, 60_000), (2**26, 2)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_not_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = write(tmp_path / "x.parquet", [bomb(width, height)], [0])
    with pytest.raises(SelectorError, match=r"pixels, and 67108864 are the most|not a readable"):
        read_images(path, size=32)


def test_too_many_pixels_do_not_come_of_resizing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20_000, 1)).save(buffer, "PNG")
    path = write(tmp_path / "x.parquet", [buffer.getvalue()], [0])
    with pytest.raises(SelectorError, match=r"row 0, resized, has 4480000x224 pixels"):
        read_images(path, size=224)


def test_more_images_than_memory_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selector.data.decoding.MOST_BYTES", 2**20)
    path = write(tmp_path / "x.parquet", [png(pixels(1)[0])] * 2, [0, 1])
    read_images(path)
    with pytest.raises(SelectorError, match=r"2 images of 1024x1024 pixels take more than"):
        read_images(path, size=1024)
