"""What a text must obey while it is drawn: which tokens may come next."""

from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """What one text must obey, and how far it has come; each sample has its own.

    The tokens that end a text are allowed exactly where the text so far is a whole answer. What cannot answer raises
    UserError, which ends this text alone, with the message as its error.
    """

    def allowed(self) -> Tensor:
        """Return which tokens may come next, (V,) bool on the CPU; one at least, unless it is complete."""
        ...

    def add(self, token: int) -> None:
        """Go on by a token that was drawn."""
        ...

    @property
    def complete(self) -> bool:
        """Return whether nothing but the end may follow: the text is then ended with "stop", and no token drawn."""
        ...
