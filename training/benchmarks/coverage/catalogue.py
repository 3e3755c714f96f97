"""All networks of the coverage benchmark, the quick ones first."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from selector.errors import SelectorError
from training.benchmarks.coverage import written_networks as written
from training.benchmarks.coverage import yolo_networks
from training.benchmarks.coverage.classifiers import timm_subjects, torchvision_subjects
from training.benchmarks.coverage.other_tasks import other_subjects
from training.benchmarks.coverage.subject import Subject
from training.zoo.shared_third_party import (
    load_third_party,
    missing_images,
    third_party_batches,
    third_party_folder,
    third_party_networks,
)

_CLASSES = {"cifar10": 10, "cifar100": 100, "gtsrb": 43, "fashion-mnist": 10, "mnist": 10}
_GREY = ("fashion-mnist", "mnist")


def every_subject() -> dict[str, Subject]:
    """Name -> network; third-party ones only where the shared folder has them."""
    subjects = {subject.name: subject for subject in _written()}
    if third_party_folder() is not None:
        subjects |= _third_party()
    return subjects | timm_subjects() | torchvision_subjects() | other_subjects()


def subject_named(name: str) -> Subject:
    """The network of that name.

    Raises:
        SelectorError: There is none.
    """
    subjects = every_subject()
    if name not in subjects:
        raise SelectorError(f"unknown network {name!r}; known: {', '.join(subjects)}")
    return subjects[name]


def _third_party() -> dict[str, Subject]:
    subjects = [
        Subject(
            name=f"third_party/{info.name}",
            source="third_party",
            family=info.name.split("_")[1],
            build=partial(load_third_party, info.name),
            shape=(1 if info.dataset in _GREY else 3, info.size, info.size),
            classes=_CLASSES.get(info.dataset, 1000),
            trained=True,
            real=None if missing_images(info.name) else partial(_images, info.name),
        )
        for info in third_party_networks().values()
    ]
    return {subject.name: subject for subject in subjects}


def _images(name: str, count: int, offset: int) -> tuple[Tensor, Tensor]:
    """A batch of training images of a third-party network, as it reads them."""
    batches = third_party_batches(name, "train", limit=count, offset=offset, batch_size=count)
    return next(iter(batches))


def _written() -> list[Subject]:
    image, yolo = (3, 64, 64), partial(yolo_networks.Yolo, classes=20)
    heads = tuple(f"{kind}.{scale}.1" for kind in ("boxes", "scores") for scale in range(3))
    return [
        _one("yolo_c2f", "yolo", yolo, image, None, heads),
        _one("yolo_c2f_split", "yolo", partial(yolo, yolo_networks.C2fSplit), image, None, heads),
        _one("yolo_c3", "yolo", partial(yolo, yolo_networks.C3), image, None, heads),
        _one("unet", "unet", written.UNet, (3, 32, 32), 5),
        _one("generator", "gan", written.generator, (64, 1, 1), None, ("9",)),
        _one(
            "spectral_discriminator",
            "gan",
            written.spectral_discriminator,
            (3, 32, 32),
            None,
            ("7",),
        ),
        _one("plain_1d", "plain", written.plain_1d, (4, 128), 10),
        _one("weight_normed_1d", "temporal", written.weight_normed_1d, (4, 128), 10),
        _one("plain_3d", "plain", written.plain_3d, (1, 16, 16, 16), 10),
        _one("convolution_then_lstm", "crnn", written.ConvolutionThenLSTM, (1, 32, 64), 12),
        _one("sub_pixel", "espcn", written.SubPixel, (3, 24, 24), None, ("last",)),
        _one("gated_convolutions", "glu", written.GatedConvolutions, (3, 32, 32), 10),
        _one("transformer", "vit", written.Transformer, image, 10),
        _one("option_a", "resnet", written.OptionA, (3, 32, 32), 10),
        _one("two_inputs", "joined", written.TwoInputs, (3, 32, 32), 10),
    ]


def _one(
    name: str,
    family: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    classes: int | None,
    outputs: tuple[str, ...] = (),
) -> Subject:
    return Subject(
        name=f"written/{name}",
        source="written",
        family=family,
        build=build,
        shape=shape,
        classes=classes,
        outputs=outputs,
    )
