"""What watches a run and is told of it, built from its config."""

from dataclasses import dataclass, field

from gengen.training.monitor.bad_steps import BadSteps
from gengen.training.monitor.loggers import Loggers, build_loggers
from gengen.training.monitor.throughput import Clock, Laps, peak_flops
from gengen.training.plan import Plan, Session


@dataclass
class Monitors:
    """The instruments of one run in this process."""

    loggers: Loggers
    bad_steps: BadSteps
    peak_flops: float | None
    """Of one device; None where it is not known."""
    clock: Clock = field(default_factory=Clock)
    laps: Laps = field(default_factory=Laps)


def build_monitors(plan: Plan, session: Session, rank: int) -> Monitors:
    """Build the instruments of a rank; only rank 0 has loggers."""
    c, say = plan.config.trainer, session.console.say
    return Monitors(
        Loggers(build_loggers(plan.config, plan.run, say) if rank == 0 else [], say),
        BadSteps(c, say),
        peak_flops(c.device, c.precision),
    )
