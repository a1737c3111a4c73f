"""A network and a data set of one's own, for `lthlab run params/own.yaml --with notebooks/own.py`."""

import torch.nn.functional as F

from lthlab import data, nets
from lthlab.datasets import DataFacts
from lthlab.layers import BatchNorm2d, Conv2d, Linear

FACTS = DataFacts(
    (1, 8, 8), 2, 1297, 500, "7d381e2e3e20566d2f89c26a0808ff62", (4.886878373168851,), (6.014557028580646,),
    train_counts=(641, 656),
)  # fmt: skip


@nets.register("two_convolutions")
class TwoConvolutions(nets.Network):
    """Two convolutions with BatchNorm, averaged over the image, and a linear layer."""

    def __init__(self, net, shape, classes, replicas):
        super().__init__(replicas)
        self.conv1 = Conv2d(replicas, shape[0], 12, 3, 1, role="first")
        self.bn1 = BatchNorm2d(replicas, 12)
        self.conv2 = Conv2d(replicas, 12, 24, 3, 2)
        self.bn2 = BatchNorm2d(replicas, 24)
        self.fc = Linear(replicas, 24, classes, "head", "torch")

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(self.beside(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(self.apart(x.mean((2, 3))))


@data.register("odd_digits", FACTS)
def odd_digits():
    """Tell odd from even handwritten digits."""
    digits = data.load("digits", None)
    return {
        "train_x": digits.train_x.numpy(),
        "train_y": digits.train_y.numpy() % 2,
        "test_x": digits.test_x.numpy(),
        "test_y": digits.test_y.numpy() % 2,
    }
