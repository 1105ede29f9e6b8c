"""How sure one may be that a mark is there: counts of what chance alone would match half of the time."""

import math
from dataclasses import dataclass

import torch

FOUND = 4.0
"""z from which a text or picture is called marked: by chance, 3 in 100,000 are."""
LEAST = 24
"""Counts below which nothing is said: all of 16 would have to match for z = 4, and a few more let some be lost."""


@dataclass(frozen=True)
class Evidence:
    """matching of counted coins, each of which a secret key decided; without the mark they are fair and independent,
    whatever the text or picture, for the key is independent of it."""

    matching: int
    counted: int

    @property
    def z(self) -> float:
        """Standard deviations above what chance would match."""
        return (2 * self.matching - self.counted) / math.sqrt(self.counted) if self.counted else 0.0

    @property
    def p_value(self) -> float:
        """How likely so many or more match by chance: the tail of Binomial(counted, 1/2), exactly."""
        n = torch.tensor(self.counted, dtype=torch.float64)
        k = torch.arange(self.matching, self.counted + 1, dtype=torch.float64)
        log_ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return min(1.0, float((log_ways - n * math.log(2)).logsumexp(0).exp()))

    @property
    def verdict(self) -> str:
        """Return "marked", "not found", or "too little" where there is too little to count for either."""
        if self.counted < LEAST:
            return "too little"
        return "marked" if self.z >= FOUND else "not found"

    def __str__(self) -> str:
        return f"{self.verdict}: {self.matching} of {self.counted} match, z {self.z:.1f}, p {self.p_value:.1e}"
