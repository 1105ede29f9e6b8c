"""What follows a step whose loss or gradient is not finite, or a spike. Such a step changes no weight."""

from collections.abc import Callable

from gengen.config.train import TrainerConfig
from gengen.training.failures import RollBack, TrainingFailed

ADVICE = "A lower optim.lr, optim.clip or trainer.precision=fp32 may help"


class BadSteps:
    """Warns of bad steps when a row is logged, or ends training as trainer.on_bad_step says."""

    def __init__(self, config: TrainerConfig, say: Callable[[str], None]):
        self.config, self.say = config, say
        self.count = 0  # in all, at the last look

    def look(self, step: int, streak: int, count: int, skipped_batches: int) -> None:
        """Raise TrainingFailed or RollBack if the bad steps so far ask for it; warn of new ones.

        streak: bad steps in a row up to this one; count: bad steps in all.
        """
        c, new = self.config, count - self.count
        self.count = count
        what = f"step {step}: loss or gradient not finite" + (", or a spike" if c.spike else "")
        if streak > c.max_bad_steps:
            raise TrainingFailed(f"{what}, for {streak} steps in a row; no weight has changed since. {ADVICE}")
        if new and c.on_bad_step == "stop":
            raise TrainingFailed(f"{what}; no weight was changed by it, and trainer.on_bad_step=stop. {ADVICE}")
        if new and c.on_bad_step == "rollback":
            raise RollBack(step, skipped_batches, what)
        if new:
            self.say(f"warning: {what}; such a step changes no weight ({streak} in a row, {count} in all)")
