"""How sure a share is that was counted."""

import math


def interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share of `right` in n (Wilson 1927):
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    """
    p = right / n
    middle, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - reach) / (1 + z * z / n)), min(1.0, (middle + reach) / (1 + z * z / n))
