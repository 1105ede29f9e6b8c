"""What ends training before its last step."""

from gengen.errors import UserError


class TrainingFailed(UserError):
    """Training cannot go on; the checkpoints are as they were."""

    exit_code = 1


class RollBack(TrainingFailed):
    """Training is to go on from the newest checkpoint, with other data than those of the steps since."""

    def __init__(self, step: int, skipped_batches: int, message: str):
        super().__init__(message)
        self.step, self.skipped_batches = step, skipped_batches
