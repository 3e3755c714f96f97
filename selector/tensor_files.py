"""Tensors in safetensors files: written whole, with a checksum that reading checks."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selector.errors import SelectorError
from selector.files import write_whole
from selector.serialisation import plain_json

CHECKSUM = "sha256"


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], section: str, about: Mapping[str, object]
) -> None:
    """Write tensors, and plain data that belongs to them, whole or not at all.

    Args:
        path: The file.
        tensors: Copied to the CPU.
        section: Key of the plain data in the file's metadata.
        about: What JSON can hold.

    Raises:
        SelectorError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(about)
    metadata = {section: text, CHECKSUM: checksum(copies, text)}
    try:
        write_whole(path, lambda partial: save_file(copies, partial, metadata))
    except SafetensorError as error:
        raise SelectorError(f"{path} cannot be written: {error}") from error


def read_tensor_file(path: str | Path, section: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and the plain data that was written with them, if any.

    Raises:
        SelectorError: No such file, no safetensors, plain data that is none, or a checksum that
            does not fit. Files of other programs have no checksum.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    where = Path(path)
    try:
        if where.exists() and not where.is_file():
            raise OSError("it is no regular file")
        with safe_open(where, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(where)
    except (OSError, ValueError, SafetensorError) as error:
        raise SelectorError(f"{path} cannot be read as safetensors: {error}") from error
    text = metadata.get(section, "{}")
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, text):
        raise SelectorError(
            f"{path} is damaged: its checksum does not fit; copy or write the file again"
        )
    try:
        about = plain_json(text, f"the metadata {section!r} of ours")
    except SelectorError as error:
        raise SelectorError(f"{path} is damaged: {error}") from error
    if not isinstance(about, dict):
        raise SelectorError(f"{path} is damaged: its metadata {section!r} is no JSON object")
    return tensors, about


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """A digest of tensors by name, whatever their order, and a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(json.dumps(name).encode())
        add_tensor(digest, tensors[name])
    return digest.hexdigest()


def add_tensor(digest: "hashlib._Hash", tensor: Tensor) -> None:
    """Add a tensor's type, shape and values to a digest."""
    values = tensor.detach().cpu().contiguous()
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
