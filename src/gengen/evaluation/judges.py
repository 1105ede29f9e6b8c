"""The judge of a data set: a small classifier whose features and decisions other models' images are measured by.

It is trained once on the training split, with a seed and an architecture of its own (convolutions, batch norm,
max-pooling), and is used in no training. It is kept in <data.dir>/judges/smallcnn-<fingerprint>/ and always used as it
was written there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.data.image.prepare import PreparedImages
from gengen.evaluation.kept import kept
from gengen.generation.image.files import to_float
from gengen.hardware import has_bf16
from gengen.io import Say

NAME, VERSION, SEED = "smallcnn", 3, 7919
FEATURES = 128
SEEN = 80_000  # training images in all, but 8 to 40 epochs: 10 on 8,700, which is right on 98 % of held-out animals
BATCH = 128
NOISE, BLUR = 10.0, 0.75  # levels of 255 and pixels: how much of either it learns to overlook, as an eye does


class ImageClassifierJudge(nn.Module):
    """Images of 28 to 64 pixels a side -> 128 features -> logits. `facts` says how it was made and how often it is
    right.
    """

    def __init__(self, channels: int, classes: int, facts: dict[str, Any] | None = None):
        super().__init__()
        self.facts = facts or {}

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        shallow = [*block(channels, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2)]
        deep = [*block(64, 128), *block(128, 128), nn.MaxPool2d(2), *block(128, FEATURES)]
        self.trunk = nn.Sequential(*shallow, *deep, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) in [-1, 1] -> (B, classes)
        return self.head(self.dropout(self.trunk(x)))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> fp32 (N, 128). Needs eval mode, in which `judge_for` returns it."""
        return torch.cat([self.trunk(to_float(part)) for part in images.split(2 * BATCH)])

    @torch.inference_mode()
    def classify(self, features: Tensor) -> Tensor:
        """Features (N, 128) -> logits (N, classes)."""
        return self.head(features)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, classes)."""
        return self.classify(self.features(images))


def judge_for(prepared: PreparedImages, say: Say) -> ImageClassifierJudge | None:
    """Return the judge of this data, in eval mode on the CPU; trained first where there is none. None, with a line
    that says so, for data without classes."""
    classes, channels = len(prepared.classes), prepared.train.images.shape[1]
    if classes < 2:
        say(
            f"judge: the data has {classes or 'no'} class{'es' if not classes else ''}; a judge needs two, "
            "so nothing is measured by one"
        )
        return None
    home = Path(prepared.config.dir) / "judges" / f"{NAME}-{prepared.fingerprint[:16]}"
    recipe = {"name": NAME, "version": VERSION, "seed": SEED, "seen": SEEN, "noise": NOISE, "blur": BLUR}
    recipe |= {"flip": prepared.config.flip, "data": prepared.fingerprint}

    def build() -> ImageClassifierJudge:
        with torch.random.fork_rng(devices=[]):
            return ImageClassifierJudge(channels, classes)

    def trained() -> tuple[ImageClassifierJudge, dict[str, Any]]:
        say(f"judge: training a small classifier on {len(prepared.train):,} images, once")
        judge, labels = train(prepared), prepared.val.labels
        right, held_out = accuracy(judge.logits(prepared.val.images), labels), int((labels >= 0).sum())
        say(f"judge: right on {right:.1%} of {held_out:,} held-out images; kept in {home}")
        return judge, {"accuracy": right, "held_out": held_out}

    judge, facts = kept(home, recipe, build, trained, say)
    judge.facts = facts
    return judge


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images, among those with a label, whose largest logit (N, K) is their label (N,); 0 where
    none has one."""
    right = (logits.argmax(1) == labels)[labels >= 0]
    return right.double().mean().item() if len(right) else 0.0


def train(prepared: PreparedImages) -> ImageClassifierJudge:
    """Train a judge on the training split's labelled images. Draws from its own seed; leaves the process's generators
    as they were."""
    data, labelled = prepared.train, (prepared.train.labels >= 0).nonzero()[:, 0]
    epochs = min(max(-(-SEEN // len(labelled)), 8), 40)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        judge = ImageClassifierJudge(data.images.shape[1], len(prepared.classes)).to(memory_format=torch.channels_last)

        def loss(rows: Tensor) -> Tensor:
            logits = predicted(judge, augmented(data.images.index_select(0, rows), prepared.config.flip))
            return F.cross_entropy(logits, data.labels[rows], label_smoothing=0.1)

        fit(judge, labelled, epochs, loss)
    return judge.eval()


def predicted(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a network for uint8 images (N, C, H, W), in fp32; computed as fast as the CPU can."""
    x = to_float(images).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16("cpu")):
        logits: Tensor = network(x)
    return logits.float()


def fit(network: nn.Module, rows: Tensor, epochs: int, loss: Callable[[Tensor], Tensor]) -> None:
    """Train a network by AdamW through one cycle of its rate, in batches of rows (N,) in a new order each epoch.

    loss(rows (B,)) -> the mean loss of those.
    """
    n = len(rows)
    batch = min(BATCH, n)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * (n // batch), pct_start=0.2)
    for _ in range(epochs):
        for part in rows[torch.randperm(n)][: n // batch * batch].split(batch):
            value = loss(part)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()


def augmented(images: Tensor, flip: bool) -> Tensor:
    """Shift each uint8 image of (N, C, H, W) by up to a sixteenth of its side, edges repeated; mirror half of them if
    `flip`; then blur them and add noise, to each in a degree of its own, so that what cannot be seen changes no
    decision. Returns uint8."""
    n, _, height, width = images.shape
    reach = max(height, width) // 16
    down, right = torch.randint(-reach, reach + 1, (2, n, 1))
    y = (torch.arange(height) + down).clamp(0, height - 1)
    x = (torch.arange(width) + right).clamp(0, width - 1)
    if flip:
        x = torch.where(torch.rand(n, 1) < 0.5, x.flip(1), x)
    each = torch.arange(n)[:, None, None]
    return worsened(images.permute(0, 2, 3, 1)[each, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2))


def worsened(images: Tensor) -> Tensor:
    """Blur each uint8 image of (N, C, H, W) and add noise, to each in a degree of its own. Returns uint8."""
    n = len(images)
    noise = NOISE * torch.rand(n, 1, 1, 1) * torch.randn(images.shape)
    return (blurred(images, BLUR * torch.rand(n)) + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image of (N, C, H, W) by a Gaussian of its own deviation (N,) in pixels, at most 1; edges repeated;
    fp32.
    """
    n, c, height, width = images.shape
    weights = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma.clamp(min=1e-3)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(c, 0)  # (N C, 7)
    x = F.pad(images.float().reshape(1, n * c, height, width), (3, 3, 3, 3), mode="replicate")
    x = F.conv2d(F.conv2d(x, weights[:, None, :, None], groups=n * c), weights[:, None, None, :], groups=n * c)
    return x.view(n, c, height, width)
