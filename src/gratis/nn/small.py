"""Small networks: the MNIST net of the papers and one that trains on 8x8 digits in seconds."""

from torch import nn


def mnist_net(classes: int, channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """The two-convolution MNIST net of Fast (Wong, Rice & Kolter 2020, section 5.1).

    [B, channels, 28, 28] -> logits [B, classes]. No normalisation layers.
    Raises ValueError for images of another size: its first full layer reads 32 x 7 x 7 numbers.
    """
    if image_size != 28:
        raise ValueError(
            f"mnist-net takes images of 28x28 pixels, these are {image_size}x{image_size}: "
            "use small-conv or preact-resnet18, which take any size"
        )
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def small_conv(classes: int, channels: int, image_size: int, width: int = 32) -> nn.Sequential:
    """Three 3x3 convolutions with BatchNorm, global pooling, one full layer; of no paper.

    [B, channels, image_size, image_size] -> logits [B, classes]. The layers have width,
    2 width and 4 width channels; the last two halve the image, and from 16 pixels on the first
    does too, so that larger images do not slow it down as much.
    """
    return nn.Sequential(
        *_conv(channels, width, stride=1 if image_size < 16 else 2),
        *_conv(width, 2 * width, stride=2),
        *_conv(2 * width, 4 * width, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def _conv(channels: int, out: int, stride: int) -> list[nn.Module]:
    # No bias: the normalisation behind it would subtract it again.
    conv = nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]
