"""What any rank wishes, asked after every step without waiting for the device."""

from collections.abc import Callable

import torch
import torch.distributed as dist


class LateVote:
    """Asks all ranks each time it is called, and answers what was asked the time before: the same on every rank.

    The answer of a step is on the host by the end of the next. Asked for at once, it would have the host wait for the
    device after every step, which then has nothing queued.
    """

    def __init__(self) -> None:
        self.answer: Callable[[], bool] = lambda: False

    def __call__(self, wish: bool, device: torch.device) -> bool:
        before, self.answer = self.answer, asked(wish, device)
        return before()


def asked(wish: bool, device: torch.device) -> Callable[[], bool]:
    """Ask whether any rank wishes it; what is returned waits for the answer."""
    wishes = torch.full((), float(wish), device=device)  # filled there: a copy to the device would wait for it
    work = dist.all_reduce(wishes, async_op=True)
    assert work is not None
    if device.type != "cuda":
        return lambda: bool(work.wait() and wishes > 0)
    work.wait()  # the stream does, not the host
    copied, done = wishes.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def answer() -> bool:
        done.synchronize()
        return bool(copied > 0)

    return answer
