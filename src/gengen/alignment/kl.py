"""How far a policy is from its reference: estimators from the tokens it drew, the weight that holds it near, a bound
for best-of-n.

Where an estimator stands decides what is minimized (beside each, what its gradient is in expectation over the policy's
own draws):

            in the reward, without gradient        in the loss
    k1      grad KL(pi || ref)                     0
    k2                                             grad KL(pi || ref)
    k3      grad KL(pi || ref) - KL(ref || pi)     grad KL(ref || pi)

So k1 belongs in a reward and k2 in a loss. k3 in a reward hardly holds a policy near its reference, and lets it
collapse.
"""

import math
from dataclasses import dataclass

from torch import Tensor


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """r = log pi - log ref of each token. Unbiased for KL(pi || ref) under pi, and often negative."""
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """r^2 / 2: biased, but never negative, and its gradient is the right one."""
    return (log_probs - ref_log_probs).square() / 2


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """e^-r - 1 + r (Schulman 2020): unbiased under pi and never negative, the one to look at."""
    r = log_probs - ref_log_probs
    return (-r).expm1() + r


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass
class KLController:
    """The weight beta of the KL: fixed, or steered so that the KL of a response nears `target` (Ziegler et al. 2019,
    sec. 2.2).

    target: nats of a whole response, not of a token; horizon: episodes. Its state is beta.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        """Once a rollout, of `episodes` over all ranks whose responses' k1 add up to `kl` each in the mean."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * episodes / self.horizon


def best_of_n_kl(n: int) -> float:
    """The most nats the best of n draws is from one draw: ln n - (n - 1) / n (Stiennon et al. 2020; Beirami et al.
    2024: a bound).
    """
    return math.log(n) - (n - 1) / n
