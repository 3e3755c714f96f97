"""torchvision's networks for segmentation, detection and video."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn
from torchvision.models import get_model

from training.benchmarks.coverage.subject import Subject

SEGMENTATION = (
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
    "maskrcnn_resnet50_fpn",
)
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "swin3d_t")
_FRAMES = {"s3d": (3, 16, 224, 224), "mvit_v1_b": (3, 16, 224, 224)}
_SMALL = {"min_size": 96, "max_size": 96}
_OUTPUTS = (
    "classifier.4",
    "aux_classifier.4",
    "classifier.low_classifier",
    "classifier.high_classifier",
)


def other_subjects() -> dict[str, Subject]:
    """All of them."""
    subjects = [
        *(_segmentation(name) for name in SEGMENTATION),
        *(_detection(name) for name in DETECTION),
        *(_video(name) for name in VIDEO),
    ]
    return {subject.name: subject for subject in subjects}


def _segmentation(name: str) -> Subject:
    return Subject(
        name=f"segmentation/{name}",
        source="dense",
        family=name.split("_")[0],
        build=_maker(name, {"weights_backbone": None, "num_classes": 21}),
        shape=(3, 64, 64),
        outputs=_OUTPUTS,
        classes=21,
    )


def _detection(name: str) -> Subject:
    options = {} if name.startswith("ssd") else _SMALL
    return Subject(
        name=f"detection/{name}",
        source="dense",
        family=name.split("_")[0],
        build=_maker(name, {"weights_backbone": None, **options}),
        shape=(3, 96, 96),
        classes=None,
        detector=True,
        images=4,
    )


def _video(name: str) -> Subject:
    return Subject(
        name=f"video/{name}",
        source="video",
        family=name.split("_")[0].rstrip("0123456789"),
        build=_maker(name, {"num_classes": 400}),
        shape=_FRAMES.get(name, (3, 8, 64, 64)),
        classes=400,
        images=2 if name in _FRAMES else 4,
    )


def _maker(name: str, options: Mapping[str, object]) -> Callable[[], nn.Module]:
    return partial(_made, name, options)


def _made(name: str, options: Mapping[str, object]) -> nn.Module:
    model: nn.Module = get_model(name, weights=None, **options)
    return model
