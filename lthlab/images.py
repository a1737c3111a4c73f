"""Images that are read from files: decoded, brought to one size, cropped at random."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

NUMBERS = 24
"""Random numbers that a resized crop of an image takes."""
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_TRIES = 10
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Files:
    """Images in files, which are read when they are used; a stand-in for a tensor of all of them.

    Attributes
    ----------
    root : Path
        Folder that the names are relative to.
    names : sequence of str
        Paths below it, of the images in their order.
    """

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, places: Sequence[int]) -> Self:
        return replace(self, names=[self.names[place] for place in places])

    def paths(self, places: Sequence[int]) -> list[str]:
        """Paths of some of the images."""
        return [str(self.root / self.names[place]) for place in places]


def decode(path: str | Path, channels: int) -> "Image":
    """Read an image as grey (1 channel) or as red, green and blue (3); transparency is dropped.

    Raises
    ------
    OSError, SyntaxError, ValueError, EOFError or PIL.Image.DecompressionBombError
        If it cannot be read, or has more than 8 bits a channel.
    """
    from PIL import Image

    with Image.open(path) as found:
        if found.mode not in _MODES:
            raise ValueError(f"mode {found.mode}, which has more than 8 bits a channel")
        return found.convert("L" if channels == 1 else "RGB")


def fitted(image: "Image", height: int, width: int) -> "Image":
    """Bring an image to a size, the same for each use.

    One that has the size stays as it is. Of any other, the shorter side becomes 256/224 of the shorter side of the
    result, by bilinear interpolation, and the centre is cut out: the usual evaluation on ImageNet, rounded as by
    torchvision's `Resize` and `CenterCrop`.
    """
    from PIL import Image

    if image.size == (width, height):
        return image
    shorter = round(min(height, width) * 256 / 224)
    across, down = (int(shorter * side / min(image.size)) for side in image.size)
    image = image.resize((across, down), Image.Resampling.BILINEAR)
    left, top = round((across - width) / 2), round((down - height) / 2)
    return image.crop((left, top, left + width, top + height))


def box(width: int, height: int, numbers: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Choose a part of random area and aspect of an image.

    Parameters
    ----------
    width, height : int
        Size of the image.
    numbers : array
        At least 22 random numbers from [0, 1): two for each of ten tries, then row and column.

    Returns
    -------
    tuple of int
        Left and top edge, width and height.

    Notes
    -----
    Szegedy et al. 2015, section 6, with the bounds in use: 8 to 100 % of the area, aspect 3/4 to 4/3, uniform in its
    logarithm. The first try that fits is taken; where none does, the largest part in the centre within the bounds.
    """
    (least, most), (narrow, wide) = _AREA, _ASPECT
    for area, aspect in numbers[: 2 * _TRIES].reshape(-1, 2):
        target = width * height * (least + (most - least) * area)
        ratio = math.exp(math.log(narrow) + math.log(wide / narrow) * aspect)
        across, down = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = (int(numbers[20] * (height - down + 1)), int(numbers[21] * (width - across + 1)))
            return left, top, across, down
    across, down = min(width, round(height * wide)), min(height, round(width / narrow))
    return (width - across) // 2, (height - down) // 2, across, down


def resized_crop(image: "Image", height: int, width: int, numbers: NDArray[np.float64]) -> "Image":
    """Cut out a part as by `box`, bring it to a size, and flip it left to right at random.

    Parameters
    ----------
    image : PIL.Image.Image
        Of any size.
    height, width : int
        Size of the result.
    numbers : array
        `NUMBERS` random numbers from [0, 1); those after the first 22 are for the flip, and spare.
    """
    from PIL import Image

    left, top, across, down = box(*image.size, numbers)
    part = image.crop((left, top, left + across, top + down)).resize((width, height), Image.Resampling.BILINEAR)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if numbers[22] >= 0.5 else part


def array(image: "Image", channels: int) -> NDArray[np.uint8]:
    """Turn an image into an array, uint8 [channel, y, x], grey repeated in several channels."""
    pixels = np.asarray(image)
    return np.broadcast_to(np.atleast_3d(pixels).transpose(2, 0, 1), (channels, *pixels.shape[:2]))


def picture(pixels: NDArray[np.uint8]) -> "Image":
    """Turn an array, uint8 [channel, y, x] with 1 or 3 channels, into an image."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
