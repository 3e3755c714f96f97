"""Encoded images with their labels, row by row, wherever they lie; and those of folders."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selector.errors import SelectorError
from selector.files import read_bytes

LARGEST_FILE = 2**28
"""Bytes of an image's file."""

IMAGE_SUFFIXES = frozenset(
    [
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
IGNORED_FOLDERS = frozenset({"__MACOSX", "__pycache__", "@eaDir", "lost+found"})
"""Left by archives and programs; whatever begins with a dot is ignored as well."""

Files = list[tuple[Path, int | None]]
"""Files with the numbers of their classes."""


@dataclass(frozen=True)
class Row:
    """One image, as it was stored."""

    where: str
    """What errors call it."""
    encoded: object
    """The content of an image file, or what stands in its place."""
    label: object
    """A class number or name; None where there are no labels."""


@dataclass(frozen=True)
class ImageRows:
    """Images that can be read from any row on.

    Attributes:
        source: The file or folder, for errors.
        count: Number of images.
        read: Gives the rows from a first one to one before a last one.
        classes: Names of the classes, in the order of their numbers; None where nothing names them.
        labelled: Whether rows have labels.
    """

    source: str
    count: int
    read: Callable[[int, int], Iterator[Row]]
    classes: tuple[str, ...] | None = None
    labelled: bool = True


def folder_rows(root: Path) -> ImageRows:
    """The images of a folder that holds one folder of images for each class.

    Classes are sorted by name and files by name within a class; the images then take turns, one
    of each class, so that the first ones, and every batch, hold all classes.

    Raises:
        SelectorError: If the folder, or a class, is unusable.
    """
    if not root.is_dir():
        raise SelectorError(f"{root}: no such folder")
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not _is_ignored(p.name))
        files = [_image_files(folder) for folder in folders]
    except OSError as error:
        raise SelectorError(f"{root} cannot be read: {error}") from error
    if not any(files):
        raise SelectorError(f"{root}: no images; expected one folder of images for each class")
    for folder, some in zip(folders, files, strict=True):
        if not some:
            raise SelectorError(
                f"{root}: the folder {folder.name!r} holds no images, and every folder is a class; "
                f"images are files ending in {', '.join(sorted(IMAGE_SUFFIXES))}; fill or move it"
            )
    turns = sorted(
        (turn, label, file) for label, some in enumerate(files) for turn, file in enumerate(some)
    )
    labelled: Files = [(file, label) for _, label, file in turns]
    return _of_files(root, labelled, tuple(folder.name for folder in folders))


def flat_rows(root: Path) -> ImageRows | None:
    """The images that lie in a folder itself, without labels; None where it holds none.

    Raises:
        SelectorError: The folder holds folders of images as well.
    """
    try:
        entries = sorted(path for path in root.iterdir() if not _is_ignored(path.name))
        files = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]
        folders = [path for path in entries if path.is_dir()] if files else []
        deeper = next((folder for folder in folders if _image_files(folder)), None)
    except OSError as error:
        raise SelectorError(f"{root} cannot be read: {error}") from error
    if not files:
        return None
    if deeper is not None:
        raise SelectorError(
            f"{root} holds images, such as {files[0].name}, beside the folder {deeper.name!r}; "
            "either all lie in a folder for each class, or none does (then there are no labels)"
        )
    return _of_files(root, [(file, None) for file in files], None)


def _of_files(root: Path, files: Files, classes: tuple[str, ...] | None) -> ImageRows:
    def read(start: int, stop: int) -> Iterator[Row]:
        for file, label in files[start:stop]:
            yield Row(str(file.relative_to(root)), content(file, str(root)), label)

    return ImageRows(str(root), len(files), read, classes, classes is not None)


def content(file: Path, source: str) -> bytes:
    """What is in an image file.

    Raises:
        SelectorError: It cannot be read; it and the source that names it are named.
    """
    try:
        return read_bytes(file, LARGEST_FILE)
    except OSError as error:
        why = "a link to a file that is not there" if file.is_symlink() else str(error)
        try:
            name = file.relative_to(source)
        except ValueError:
            name = file
        raise SelectorError(f"{source}: {name} cannot be read: {why}") from error


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED_FOLDERS


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.is_dir()
        and not any(map(_is_ignored, path.relative_to(folder).parts))
    )
