"""What Lightning asks about the ranks of a run, answered by their place."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from gengen.training.place import Place


class PlaceEnvironment(ClusterEnvironment):
    """Never Lightning's own for SLURM or torchrun: ranks start, meet, end and are requeued in our way."""

    def __init__(self, place: Place):
        self.place = place

    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.world

    def set_world_size(self, size: int) -> None:
        """Leave it: the place knows."""

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """Leave it: SLURM may deal ranks out to nodes in any order, where Lightning would count node by node."""

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node
