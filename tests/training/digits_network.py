"""A small network of the zoo that is trained in seconds, on images that ship with scikit-learn."""

from training.benchmarks.common.subjects import OfZoo
from training.zoo.recipes import Recipe
from training.zoo.specs import NetworkSpec

DIGITS = NetworkSpec(
    name="digits-residual-test",
    family="residual",
    dataset="digits",
    width=8,
    depth=1,
    activation="relu",
    recipe=Recipe(epochs=10, learning_rate=0.1, batch_size=32),
    train_images=400,
    seed=3,
)
SUBJECT = OfZoo(DIGITS.name, DIGITS)
