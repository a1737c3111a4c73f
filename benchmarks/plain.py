"""The networks and the training loop that a user of plain torch would write."""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab.data import Dataset
from lthlab.datasets import DataFacts
from lthlab.parts import Net


class PlainLeNet(nn.Module):
    """LeNet-300-100."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(inputs, 300), nn.Linear(300, 100), nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


class PlainBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs
        self.downsample: nn.Module | None = None
        if shortcut == "B" and (stride > 1 or self.more):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            return torch.relu(out + self.downsample(x))
        if self.stride > 1 or self.more:
            front = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.more - front))
        return torch.relu(out + x)


class PlainResNet(nn.Module):
    """ResNet of 6n+2 layers for small images."""

    def __init__(self, depth: int, channels: int, classes: int, width: int = 16, shortcut: str = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(blocks, width, width, 1, shortcut)
        self.layer2 = _stage(blocks, width, 2 * width, 2, shortcut)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2, shortcut)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(blocks: int, inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Sequential:
    first = PlainBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(PlainBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


def plain(net: Net, facts: DataFacts) -> nn.Module:
    """Build an ordinary network of plain torch for images of a data set."""
    channels, height, width = facts.shape
    if net.name.startswith("lenet"):
        return PlainLeNet(channels * height * width, facts.classes)
    return PlainResNet(int(net.name.removeprefix("resnet")), channels, facts.classes, net.width, net.shortcut)


def bare_loop(net: Net, facts: DataFacts, dataset: Dataset, batch_size: int) -> Iterator[None]:
    """Train on tensors without end, as briefly as it can be written; one step for each `next`."""
    network = plain(net, facts).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (dataset.mean, dataset.std))
    while True:
        for chosen in torch.randperm(len(dataset.train_y)).split(batch_size):
            images = (dataset.train_x[chosen] - mean) / std
            loss = F.cross_entropy(network(images), dataset.train_y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def seconds(loop: Iterator[None], steps: int) -> float:
    """Take so many steps of a loop; returns the wall time."""
    began = time.perf_counter()
    for _ in range(steps):
        next(loop)
    return time.perf_counter() - began
