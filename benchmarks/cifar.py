"""ResNet-20 on CIFAR-10 by the engine and by a loop of plain torch, with one recipe: accuracy and seconds per epoch.

Run as `python -m benchmarks.cifar --epochs 5`, once `cifar10` is installed by `lthlab data`.
"""

import argparse
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.plain import plain
from lthlab import data, devices, nets
from lthlab.data import Dataset
from lthlab.engine import Job, Training
from lthlab.parts import Data, Net, Recipe
from lthlab.values import Fresh, Train

NET = Net(name="resnet20")
RECIPE = {"batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
PAD = 4


def engine(described: Data, dataset: Dataset, epochs: int, device: torch.device) -> Iterator[float]:
    """Train one replica with the engine; yields the test accuracy after each epoch."""
    train = Train(NET, described, Recipe.model_validate({"epochs": epochs, **RECIPE}), Fresh(0), 0)
    training = Training([Job(train, nets.fresh(NET, described, 0))], dataset, device)
    while training.iteration < train.end:
        training.advance(train.end)
        yield training.progress[0].metrics[-1]["test_accuracy"]


def loop(described: Data, dataset: Dataset, epochs: int, device: torch.device) -> Iterator[float]:
    """Train from the same weights as briefly as plain torch can be written; yields the same."""
    network = plain(NET, described.facts)
    network.load_state_dict(nets.fresh(NET, described, 0))
    network.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), RECIPE["lr"], RECIPE["momentum"], weight_decay=RECIPE["weight_decay"]
    )
    mean, std = (torch.tensor(numbers, device=device).view(3, 1, 1) for numbers in (dataset.mean, dataset.std))
    padded, labels = F.pad(dataset.train_x, (PAD,) * 4).to(device), dataset.train_y.to(device)
    test_x, test_y, side = dataset.test_x.to(device), dataset.test_y.to(device), dataset.train_x.shape[-1]
    for _ in range(epochs):
        network.train()
        for chosen in torch.randperm(len(labels)).split(int(RECIPE["batch_size"])):
            places = torch.randint(2 * PAD + 1, (len(chosen), 2)).tolist()
            crops = [padded[i, :, t : t + side, x : x + side] for i, (t, x) in zip(chosen, places, strict=True)]
            flip = torch.rand(len(chosen), 1, 1, 1, device=device) < 0.5
            images = torch.stack(crops)
            images = (torch.where(flip, images.flip(3), images) - mean) / std
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels[chosen.to(device)]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            right = [
                (network((x - mean) / std).argmax(1) == y).sum()
                for x, y in zip(test_x.split(1000), test_y.split(1000), strict=True)
            ]
        yield sum(found.item() for found in right) / len(test_y)


def main() -> None:
    """Train with both, one after the other, and print a line per epoch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar", description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, help="training images, for a quick look")
    parser.add_argument("--device", default="cpu", type=torch.device)
    given = parser.parse_args()
    described = Data(name="cifar10", train_size=given.images, augment="crop_flip")
    dataset = data.load(described, None)
    torch.manual_seed(0)
    for name, train in (("engine", engine), ("plain torch", loop)):
        with devices.settings(given.device):
            began = time.perf_counter()
            for epoch, accuracy in enumerate(train(described, dataset, given.epochs, given.device), start=1):
                seconds = time.perf_counter() - began
                print(f"{name:11}  epoch {epoch}  test accuracy {accuracy:.4f}  {seconds:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
