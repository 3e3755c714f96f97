"""Train the network of the demo, which no selector learns from."""

from pathlib import Path

import torch
from torch.nn import functional as F

from selector.cli.demo import DigitsNetwork, batched, digits
from selector.data.loss import evaluate
from selector.network.checkpoint import save_pruned

EPOCHS = 40
BATCH = 32


def train_demo_network(path: Path) -> float:
    """Train on 897 digits, save as safetensors, and give the accuracy on the 500 test digits."""
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsNetwork()
    images, labels = data.train
    chance = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=chance)
        for index in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
            shift = torch.randint(-1, 2, (2,), generator=chance).tolist()
            moved = torch.roll(images[index], shift, (2, 3))
            optimizer.zero_grad()
            F.cross_entropy(model(moved), labels[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_pruned(model, path)
    return evaluate(model, batched(data.test, 250)).accuracy or 0.0
