"""What a generator is: the contracts between saved weights and those who draw from them (commands, evaluation, users).

A family registers a class that fulfils `GeneratorClass`; its instances are `Generator`s, and fulfil `GeneratesText` or
`GeneratesImages` (with prompts `GeneratesFromPrompts`) as well, unless they draw nothing (a reward model).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from gengen.config.commands import EvaluateConfig

Model = TypeVar("Model", bound=nn.Module, contravariant=True)
Labels = Tensor | Sequence[str | int]
"""Classes to draw. A number, in a tensor or a sequence, is a class's number, -1 for none; a text is its name."""


@runtime_checkable
class Generator(Protocol):
    """Saved weights, ready to be used: what `gengen.load` returns."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def command_hint(self) -> str:
        """Return a line that says how to use a run of this kind; {run} in it stands for the run's folder."""
        ...


class GeneratorClass(Protocol[Model]):
    """What a family registers as its `generator`."""

    command_hint: str

    def from_checkpoint(self, model: Model, directory: Path) -> Generator:
        """Wrap a model whose weights are loaded; what else it needs is read from the checkpoint's directory."""
        ...


@dataclass
class Sample:
    """One continuation of a prompt.

    finish_reason: "end" (the model ended its text), "stop" (a stop string came), "length" (max_tokens),
    "interrupted" or "filtered" (a filter refused what comes next).
    tokens: all that were drawn but what ended the text; they spell the text and, after "stop", the stop string too.
    logprobs: log-probability of each of them under the model itself, before any control; or after all (`logprobs_of`).
    """

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str
    index: int
    seed: int
    logprobs: list[float] = field(default_factory=list, compare=False)  # below fp32 the last bits depend on the batch


@runtime_checkable
class GeneratesText(Generator, Protocol):
    """Continues text. Sample i is a function of (weights, seed, i, settings) alone.

    A family takes further keyword-only settings, each with a default (`TextGenerator.generate` has them all).
    """

    def generate(
        self, prompts: str | Sequence[str | Sequence[int]], *, n: int = 1, seed: int = 0, max_tokens: int = 200
    ) -> list[Sample]:
        """Return n continuations of each prompt, those of one prompt side by side."""
        ...

    def stream(self, prompt: str, *, seed: int = 0, max_tokens: int = 200) -> Iterator[str]:
        """Yield the text of `generate(prompt, ...)[0]` in pieces as it comes."""
        ...


Wanted = Tensor | Sequence[str]
"""What each image is to show: labels (N,) int64, -1 for none; or N captions, of a model that reads those."""


@dataclass(frozen=True)
class ImageSampler:
    """Draws what `evaluate` measures: what each of N images is to show -> uint8 (N, C, H, W), image i from noise of
    sample i.

    captions: whether it is asked by captions, else by labels. settings: how the images are drawn, as evaluation.json
    records it.
    """

    draw: Callable[[Wanted], Tensor]
    captions: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, asked: Wanted) -> Tensor:
        return self.draw(asked)


@runtime_checkable
class GeneratesImages(Generator, Protocol):
    """Draws images. Image i is a function of (weights, seed, i, its label, settings) alone."""

    @property
    def classes(self) -> Sequence[str]:
        """Return the names of the classes, in the order of their labels; empty for a model without classes."""
        ...

    def generate(self, n: int = 16, labels: Labels = (), *, seed: int = 0, first: int = 0) -> Tensor:
        """Return samples number `first` to `first + n - 1`, uint8 (n, C, H, W).

        labels: classes to draw, in turn; none = all classes in turn. A family takes further keyword-only settings,
        each with a default.
        """
        ...

    def image_sampler(self, config: EvaluateConfig) -> ImageSampler | None:
        """Return what `evaluate` draws by; None where draws are not meant to be pictures, as of a mere codec."""
        ...


@runtime_checkable
class GeneratesFromPrompts(GeneratesImages, Protocol):
    """Draws images of what a text says, where the model was trained on captions. Image (p, i), of prompt p, is a
    function of (weights, seed, i, the prompt, settings) alone, and its noise is that of image i of every prompt.
    """

    @property
    def reads_prompts(self) -> bool:
        """Return whether this model was trained on captions; one that was not refuses prompts, one that was labels."""
        ...

    def generate(
        self,
        n: int = 16,
        labels: Labels = (),
        *,
        prompts: str | Sequence[str] = (),
        negative: str = "",
        seed: int = 0,
        first: int = 0,
    ) -> Tensor:
        """Return n images of each prompt, uint8 (prompts * n, C, H, W), those of one prompt side by side; without
        prompts, n of whatever comes, as of the prompt "". negative: a text to lead away from.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An autoencoder, which evaluation also measures by its reconstructions."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images, uint8 (N, C, H, W) -> uint8 (N, C, H, W)."""
        ...
