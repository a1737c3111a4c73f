"""Images in files: torchvision's transforms recomputed, with the same numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from lthlab import images
from lthlab.draws import Stream
from lthlab.images import Files


def picture(height, width, grey=False, seed=0):
    shape = (height, width) if grey else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("size", [(40, 57), (90, 33), (16, 16), (300, 16), (13, 14), (5, 7)])
@pytest.mark.parametrize("grey", [False, True])
def test_images_are_resized_and_cut_as_by_torchvision(size, grey):
    image = picture(*size, grey)
    usual = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14)])
    assert np.array_equal(images.fitted(image, 14, 14), usual(image))


def test_the_size_of_evaluation_is_that_of_imagenet():
    assert images.fitted(picture(256, 256), 224, 224).tobytes() == picture(256, 256).crop((16, 16, 240, 240)).tobytes()
    whole = picture(224, 224)
    assert images.fitted(whole, 224, 224) is whole


@pytest.mark.parametrize("size", [(40, 57), (90, 33), (224, 224), (400, 12), (9, 200), (1, 1), (3, 2)])
def test_boxes_are_those_of_torchvision_for_the_same_numbers(size, monkeypatch):
    height, width = size
    found = set()
    monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor([int(next(places) * high)]))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, a, b: self.fill_(a + (b - a) * next(tries)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for numbers in Stream(0, "augmentation").uniform(200 * 24).reshape(200, 24):
            tries, places = iter(numbers[:20].tolist()), iter(numbers[20:].tolist())
            image = torch.empty(3, height, width)
            theirs = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            left, top, across, down = images.box(width, height, numbers)
            assert (top, left, down, across) == theirs
            found.add((left, top, across, down))
    finally:
        torch.set_default_dtype(before)
    assert len(found) > 100 or min(size) < 30
    assert all(x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in found)


@pytest.mark.parametrize("flip", [0.0, 0.499, 0.5, 0.9])
def test_resized_crops_are_those_of_torchvision(flip):
    image, numbers = picture(40, 57), Stream(3, "augmentation").uniform(24)
    numbers[22] = flip
    left, top, across, down = images.box(57, 40, numbers)
    bilinear = transforms.InterpolationMode.BILINEAR
    expected = functional.resized_crop(image, top, left, down, across, [20, 24], bilinear)
    expected = functional.hflip(expected) if flip >= 0.5 else expected
    assert np.array_equal(images.resized_crop(image, 20, 24, numbers), expected)


def test_files_are_decoded_as_grey_or_in_colours(tmp_path):
    colours, grey = picture(5, 4), picture(5, 4, grey=True)
    colours.save(tmp_path / "colours.png")
    grey.save(tmp_path / "grey.webp", lossless=True)
    paths = Files(tmp_path, ["colours.png", "grey.webp", "none"])[[1, 0]].paths([1, 0])
    assert paths == [str(tmp_path / "colours.png"), str(tmp_path / "grey.webp")]
    first, second = (images.array(images.decode(path, 3), 3) for path in paths)
    assert np.array_equal(first, np.asarray(colours).transpose(2, 0, 1))
    assert np.array_equal(second, np.stack([np.asarray(grey)] * 3))
    once = images.array(images.decode(paths[1], 1), 3)
    assert np.array_equal(once, second) and images.array(grey, 1).shape == (1, 5, 4)
    assert np.array_equal(images.array(images.picture(first), 3), first)
    assert np.array_equal(images.array(images.picture(first[:1]), 1), first[:1])
