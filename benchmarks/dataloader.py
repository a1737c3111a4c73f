"""One ResNet-20 by the engine, against plain torch with PIL transforms and a DataLoader, in processes of their own."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.record import Row, machine, ratios, row
from benchmarks.rounds import PAUSE_S, interleave
from benchmarks.worker import Worker
from lthlab.kernels import SPIN

Turn = Callable[[int], dict[str, Any]]


def plain(net: str, images: int, batch_size: int, workers: int) -> Turn:
    """Train as a user of torch and torchvision would; what is returned does so many steps."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from benchmarks import ours
    from benchmarks import plain as networks
    from lthlab.parts import Net

    described = ours.describe("synthetic_32", train_size=images)
    made = ours.synthetic(described)
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.29] * 3),
        ]
    )

    class Images(Dataset):
        """As torchvision's CIFAR10: arrays in memory, each image through PIL."""

        def __init__(self) -> None:
            self.data = np.ascontiguousarray(made.train_x.permute(0, 2, 3, 1).numpy())
            self.targets = made.train_y.tolist()

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return change(Image.fromarray(self.data[index])), self.targets[index]

        def __len__(self) -> int:
            return len(self.data)

    def steps() -> Iterator[None]:
        network = networks.plain(Net(name=net), described.facts).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        while True:
            for x, y in DataLoader(Images(), batch_size, shuffle=True, num_workers=workers):
                optimizer.zero_grad()
                loss = F.cross_entropy(network(x), y)
                loss.backward()
                optimizer.step()
                yield

    going = steps()

    def turn(steps: int) -> dict[str, Any]:
        began = time.perf_counter()
        for _ in range(steps):
            next(going)
        return {"seconds": time.perf_counter() - began, "threads": torch.get_num_threads()}

    return turn


def engine(net: str, images: int, batch_size: int, precision: str) -> Turn:
    """Train as `lthlab compute` does; what is returned does so many steps."""
    import torch

    from benchmarks import ours
    from lthlab import devices
    from lthlab.parts import Net

    described = ours.describe("synthetic_32", train_size=images, augment="crop_flip")
    settings = ExitStack()
    settings.enter_context(devices.settings(torch.device("cpu")))
    training = ours.training(
        Net(name=net), described, ours.synthetic(described), range(1), batch_size=batch_size, precision=precision
    )

    def turn(steps: int) -> dict[str, Any]:
        return {"seconds": ours.seconds(training, steps), "threads": torch.get_num_threads()}

    return turn


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    precisions = [p for p in ("fp32", "bf16") if any(p in name for name in chosen)]
    ratio = any(name.endswith("_vs_dataloader") for name in chosen)
    loaders = [workers for workers in (0, 2) if ratio or f"dataloader_workers{workers}_images_per_second" in chosen]
    net, images, batch, rounds = ("resnet8", 64, 16, 2) if quick else ("resnet20", 50_000, 128, 9)
    steps = 1 if quick else 6
    threads: set[int] = set()
    with ExitStack() as stack:
        sizes: dict[str, Any] = {"net": net, "images": images, "batch_size": batch}
        workers = {}
        for number in loaders:
            worker = Worker("dataloader:plain", dict.fromkeys(SPIN), workers=number, **sizes)
            workers[f"dataloader_workers{number}"] = stack.enter_context(worker)
        for precision in precisions:
            worker = Worker("dataloader:engine", SPIN, precision=precision, **sizes)
            workers[f"resnet20_{precision}"] = stack.enter_context(worker)

        def speed(worker: Worker) -> float:
            answer = worker(steps=steps)
            threads.add(answer["threads"])
            return steps * batch / answer["seconds"]

        sides = {name: partial(speed, worker) for name, worker in workers.items()}
        measured = interleave(sides, rounds, warm=1 if quick else 2, pause=PAUSE_S)
    (same,) = threads
    place = machine(same)
    baselines = {name: speeds for name, speeds in measured.items() if name.startswith("dataloader")}
    fastest = max(baselines.values(), key=lambda speeds: sorted(speeds)[len(speeds) // 2], default=[])
    for name, speeds in measured.items():
        if f"{name}_vs_dataloader" in chosen:
            yield row(f"{name}_vs_dataloader", "times", ratios(speeds, fastest), place)
        if f"{name}_images_per_second" in chosen or f"{name}_vs_dataloader" in chosen or name in baselines:
            yield row(f"{name}_images_per_second", "images/s", speeds, place)
