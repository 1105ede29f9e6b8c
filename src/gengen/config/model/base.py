"""What the configs of all model families share. Dimensions left at null come from the family's size table."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from gengen.config.fields import option, positive
from gengen.errors import UserError

Dimension = bool | int | list[int]
SizeTable = dict[str, dict[str, Any]]
"""Size name -> the dimensions it stands for, by field name."""
Facts = dict[str, Any]
"""Values of fields, as JSON holds them, by field name."""
Shape = TypeVar("Shape")


def size_table(columns: str, **rows: tuple[Dimension, ...]) -> SizeTable:
    """Return a size table from the names of its columns, with spaces between them, and a row for each size."""
    return {size: dict(zip(columns.split(), row, strict=True)) for size, row in rows.items()}


@dataclass
class ModelConfig:
    """What every model family has."""

    name: str = option("", "registered name of the model family")

    sizes: ClassVar[SizeTable] = {}
    hidden_maps: ClassVar[str] = ""
    """A regular expression for the names of weights that map features to features, which optim=muon is for; "" refuses
    it.
    """
    measured: ClassVar[tuple[str, ...]] = ()
    """Fields that are measured on the data where they are null."""

    def largest_width(self) -> int | None:
        """Return the features of the widest layer, which a recipe's learning rate depends on; None if the data must be
        known first.
        """
        return None

    def with_data(self, facts: Facts) -> Self:
        """Return the config with what the data fixes of it, and with what is measured on the data where that is
        null.
        """
        given = {name for name in self.measured if getattr(self, name) is not None}
        own = {f.name for f in fields(self)} - given
        return replace(self, **{name: value for name, value in facts.items() if name in own})

    def resolved(self) -> Self:
        """Return the config with every null dimension filled from the size table; explicit values win."""
        table = self.sizes.get(getattr(self, "size", ""), {})
        empty = {f.name for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **{key: value for key, value in table.items() if key in empty})

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is trained, and the weights it started from are not."""
        return False

    def size_name(self) -> str:
        """Return the size that has these dimensions, whatever the tokenizer and the context; "" if no size has."""
        mine, stated = self.resolved(), getattr(self, "size", "")

        def fits(row: Facts) -> bool:
            return all(getattr(mine, key) == row[key] for key in row.keys() - {"vocab_size", "context"})

        names = sorted(self.sizes, key=lambda name: name != stated)  # of equal ones the stated
        return next((name for name in names if fits(self.sizes[name])), "")

    def latents(self) -> Facts:
        """Return the resolution and channels of the latents that this model encodes images to; {} if it encodes
        none.
        """
        return {}

    def check(self) -> None:
        """Raise UserError where fields do not go together."""


@dataclass
class ImageModelConfig(ModelConfig):
    """What every model of images has. A run records what its data has."""

    resolution: int | None = positive(None, "pixels (or latents) a side")
    channels: int | None = positive(None, "colours (or latent channels)")
    classes: list[str] = option([], "names of the classes, in the order of their labels; none = unlabelled")

    def largest_width(self) -> int | None:
        widths = getattr(self.resolved(), "widths", None)
        return max(widths) if widths else None


@dataclass(frozen=True)
class ImageShape:
    """Dimensions of an image model that are known; a network's adds its own (`shape_of`)."""

    channels: int
    resolution: int


def shape_of(config: ModelConfig, shape: type[Shape]) -> Shape:
    """Return the fields of a resolved config that the dataclass `shape` names, none of them null.

    A config's dimensions may be null until its size table and its data have been read; a network is built of a shape.
    """
    values = {name: getattr(config, name) for name in get_type_hints(shape)}
    if missing := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{type(config).__name__} has no {missing[0]} yet: resolved() and with_data() fill it in")
    return shape(**values)


def check_levels(resolution: int | None, patch: int, widths: list[int]) -> None:
    """Raise UserError unless there are levels, and a resolution, where it is known, that can be halved from each to
    the next.
    """
    if not widths or min(widths) < 1:
        raise UserError(f"model.widths={widths}: at least one level is needed, each of one channel or more")
    least = patch * 2 ** (len(widths) - 1)
    if resolution and resolution % least:
        raise UserError(
            f"resolution {resolution} is no multiple of {least}: model.patch={patch}, halved {len(widths) - 1} times"
        )
