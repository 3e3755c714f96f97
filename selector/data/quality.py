"""What is suspicious about a network on its data, said before anything is cut."""

import math

from selector.data.loss import Evaluation
from selector.data.units import BY_BATCH

FEW_IMAGES = 100
NEAR_ZERO_NATS = 0.01
"""Cross-entropy below this is rarely that of images that a network was not trained on."""
ERRORS = 3.0
"""An accuracy counts as that of guessing up to this many standard errors above it."""


def data_warnings(
    evaluation: Evaluation, images_from: str, *, cross_entropy: bool
) -> tuple[str, ...]:
    """What a caller should look at before trusting what is measured on these images.

    Args:
        evaluation: Of the unpruned network.
        images_from: What to call the images, as in `calibration images`.
        cross_entropy: Whether the loss is the default one, in nats.

    Returns:
        Whole sentences, the most alarming first; empty where nothing is suspicious.
    """
    found = [*_about_guessing(evaluation, images_from)]
    images, loss = evaluation.images, evaluation.loss
    if evaluation.labels == 1 and images > 1:
        found.append(
            f"all {images} {images_from} have the same label; take images of all classes (a file "
            "that is sorted by label has to be shuffled)"
        )
    if cross_entropy and loss < NEAR_ZERO_NATS and evaluation.labels != 1:
        found.append(
            f"the loss on the {images_from} is nearly zero ({loss:.4f} nats): the network was "
            "probably trained on them, so that scores are mostly noise and the forecast of loss "
            "and accuracy is too good; take images that it was not trained on"
        )
    if images < FEW_IMAGES:
        found.append(
            f"only {images} {images_from}: scores, losses and BatchNorm statistics are uncertain; "
            f"take {FEW_IMAGES} or more"
        )
    if evaluation.unit == "batch":
        found.append(BY_BATCH)
    return tuple(found)


def _about_guessing(evaluation: Evaluation, images_from: str) -> list[str]:
    guessing, accuracy, images = evaluation.guessing, evaluation.accuracy, evaluation.images
    if guessing is None or accuracy is None or guessing == 1:
        return []
    error = math.sqrt(guessing * (1 - guessing) / images)
    if accuracy > guessing + ERRORS * error:
        return []
    return [
        f"the unpruned network's accuracy on the {images_from} is near chance ({accuracy:.1%}; "
        f"guessing gives {guessing:.1%}): are the weights, the classes, and the mean and std of "
        "the images right? (--weights, --mean and --std on the command line)"
    ]
