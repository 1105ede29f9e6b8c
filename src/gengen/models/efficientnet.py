"""EfficientNet-Lite0: an ImageNet classifier whose features compare images. Inference only; its weights come from
outside. Tan and Le 2019, in the "lite" variant: ReLU6 for swish and no squeeze-and-excitation. Strided convolutions
pad as TensorFlow does, where the weights were trained: the odd pixel of padding goes to the right and the bottom.
Modules bear the names that the published PyTorch weights have."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1], as the weights were trained
PERCEPTUAL = (0, 2, 4, 10)  # the last blocks before the scale halves again: 1/2, 1/4, 1/8, 1/16 of the input


class SameConv(nn.Conv2d):
    """A bias-free convolution to ceil(size / stride), padded as TensorFlow's SAME."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class MBConv(nn.Module):
    """Inverted bottleneck: expand, filter each channel by itself, project without activation; skipped where shapes
    allow.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.expands, self.skip = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(inputs, width, 1), norm(width)
        self._depthwise_conv, self._bn1 = SameConv(width, width, kernel, stride, groups=width), norm(width)
        self._project_conv, self._bn2 = SameConv(width, outputs, 1), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(h)))))
        return x + h if self.skip else h


class EfficientNetLite0(nn.Module):
    """4.65 million weights, 1,280 features, 1,000 ImageNet classes. Inputs are images as `normalise` returns them."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, stride=2), norm(32)
        self._blocks, inputs = nn.ModuleList(), 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                self._blocks.append(MBConv(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._conv_head, self._bn1 = SameConv(inputs, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 1280)
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> logits (B, 1000)
        return self._fc(self.features(x))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The outputs of the blocks in PERCEPTUAL: 16, 24, 40 and 112 channels at 1/2, 1/4, 1/8 and 1/16 of the size
        of x.
        """
        x, maps = F.relu6(self._bn0(self._conv_stem(x))), []
        for i, block in enumerate(self._blocks[: PERCEPTUAL[-1] + 1]):
            x = block(x)
            if i in PERCEPTUAL:
                maps.append(x)
        return maps

    def perceptual_features(self, images: Tensor) -> list[Tensor]:
        """Maps of images in [-1, 1], (B, 1 or 3, H, W), at their own size: for a perceptual loss, so gradients reach
        the images. Use the network in eval mode, its weights without gradients (`frozen`)."""
        return self.maps(normalise((images + 1) / 2))


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1], (B, 1 or 3, H, W) -> what the network was trained on, (B, 3, H, W). Grey is repeated."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def frozen(weights: dict[str, Tensor]) -> EfficientNetLite0:
    """The network with the published weights, in eval mode, none of them trainable. Raises on a missing or an unknown
    name.
    """
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
