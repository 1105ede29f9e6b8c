"""Where a process stands among the ranks of its run: as torchrun's variables say, or SLURM's, or alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gengen.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LEADER = "GENGEN_LEADER"
"""Environment variable of a rank that our own rank 0 has started: that process's id."""
SPECIAL_STEPS = 0xFFFFFFF0  # step ids from here on are SLURM's own: the batch script, an interactive shell


@dataclass(frozen=True)
class Place:
    """A rank, and where it meets the others. Every node has equally many ranks."""

    rank: int = 0
    local_rank: int = 0  # among those of its node
    world: int = 1
    local_world: int = 1
    node: int = 0
    address: str = "127.0.0.1"  # of rank 0
    port: int = 0  # of the store that rank 0 serves; 0: any that is free
    launcher: Literal["gengen", "torchrun", "slurm"] = "gengen"
    agent_store: bool = False  # torchrun's agent serves the store

    @property
    def nodes(self) -> int:
        return self.world // self.local_world

    @property
    def is_launched(self) -> bool:
        """Whether another program has started the ranks, rank 0 included."""
        return self.launcher != "gengen"


def find_place(env: Mapping[str, str]) -> Place:
    """Return the place that the environment states. Raises UserError where it states half of one, or none there is."""
    if any(name in env for name in TORCHRUN):
        return torchrun_place(env)
    return slurm_place(env) if is_srun_task(env) else Place()


def torchrun_place(env: Mapping[str, str]) -> Place:
    """Return the place that torchrun states, or our own rank 0, which states it likewise."""
    rank, world, local_rank, local_world = (number(env, name, "torchrun") for name in TORCHRUN)
    return checked(
        Place(
            *(rank, local_rank, world, local_world),
            node=number(env, "GROUP_RANK", "torchrun", default=rank // max(local_world, 1)),
            address=text(env, "MASTER_ADDR", "torchrun"),
            port=number(env, "MASTER_PORT", "torchrun"),
            launcher="gengen" if LEADER in env else "torchrun",
            agent_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        ),
        TORCHRUN,
    )


def is_srun_task(env: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several. A batch script's variables say so of the script, too."""
    if "SLURM_PROCID" not in env or number(env, "SLURM_NTASKS", "srun", default=1) < 2:
        return False
    if "SLURM_STEP_ID" not in env:
        return env.get("ENVIRONMENT") != "BATCH"
    return number(env, "SLURM_STEP_ID", "srun") < SPECIAL_STEPS


def slurm_place(env: Mapping[str, str]) -> Place:
    """Return the place that srun states. MASTER_ADDR and MASTER_PORT say otherwise where ranks are to meet."""
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, world, local_rank = (number(env, name, "srun") for name in names)
    nodes = number(env, "SLURM_STEP_NUM_NODES", "srun", default=number(env, "SLURM_NNODES", "srun"))
    if nodes < 1 or world % nodes:
        raise UserError(f"SLURM_NTASKS={world} on SLURM_NNODES={nodes}: every node must have equally many tasks")
    hosts = env.get("SLURM_STEP_NODELIST") or text(env, "SLURM_JOB_NODELIST", "srun")
    job_port = 20_000 + number(env, "SLURM_JOB_ID", "srun") % 10_000  # below those that systems give out themselves
    return checked(
        Place(
            *(rank, local_rank, world, world // nodes),
            node=number(env, "SLURM_NODEID", "srun", default=rank // (world // nodes)),
            address=env.get("MASTER_ADDR") or first_host(hosts),
            port=number(env, "MASTER_PORT", "srun", default=job_port),
            launcher="slurm",
        ),
        (*names, "SLURM_NTASKS / SLURM_NNODES"),
    )


def checked(place: Place, names: tuple[str, str, str, str]) -> Place:
    """Return the place, if its numbers go together; names: the variables of rank, world, local rank, local world."""
    rank, world, local_rank, local_world = names
    if place.rank >= place.world:
        raise UserError(f"{rank}={place.rank} is none of {world}={place.world} ranks, which count from 0")
    if place.local_rank >= place.local_world:
        raise UserError(
            f"{local_rank}={place.local_rank} is none of {local_world}={place.local_world} ranks of its node"
        )
    if place.world % place.local_world:
        raise UserError(
            f"{world}={place.world} is no multiple of {local_world}={place.local_world}: "
            "every node must have equally many ranks"
        )
    if place.port > 65_535:
        raise UserError(f"MASTER_PORT={place.port}: ports end at 65535")
    return place


def first_host(hosts: str) -> str:
    """Return the first of SLURM's list of hosts: gpu[007-009,12],login1 begins with gpu007."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[\]])+", hosts)
    if first is None:
        raise UserError(f"SLURM_JOB_NODELIST={hosts}: no list of hosts; MASTER_ADDR=HOST names that of rank 0")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def text(env: Mapping[str, str], name: str, launcher: str) -> str:
    """Return a variable that the launcher must have set."""
    if not env.get(name):
        others = ", ".join(n for n in (*TORCHRUN, "SLURM_PROCID") if n in env)
        raise UserError(
            f"{name} is not set, though {others} {'are' if ',' in others else 'is'}: start the command by {launcher}, "
            f"or unset what another program has left"
        )
    return env[name]


def number(env: Mapping[str, str], name: str, launcher: str, default: int | None = None) -> int:
    """Return a variable that is a number, 0 or more; `default` where it is not set."""
    if default is not None and not env.get(name):
        return default
    value = text(env, name, launcher)
    if not value.isdecimal():
        raise UserError(f"{name}={value}: a number from 0 on is allowed; {launcher} sets it")
    return int(value)
