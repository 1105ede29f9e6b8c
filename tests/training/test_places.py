"""Where ranks stand: what torchrun's and SLURM's variables say, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.resume import resumed, stored
from gengen.errors import UserError
from gengen.training.place import Place, find_place, first_host
from gengen.training.ranks import own_address
from gengen.training.request import placed

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
TORCHRUN |= {"MASTER_ADDR": "head", "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
SRUN |= {"SLURM_JOB_NODELIST": "gpu[007-008]", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0"}
IN_TORCHRUN = Place(5, 1, 8, 4, 1, "head", 29400, "torchrun", agent_store=True)
IN_SRUN = Place(3, 1, 4, 2, 1, "gpu007", 24567, "slurm")


WITHOUT_STEP = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
STATED: dict[str, tuple[dict[str, str], Place]] = {
    "alone": ({}, Place()),
    "a port left over": ({"MASTER_ADDR": "head", "MASTER_PORT": "1"}, Place()),
    "torchrun": (TORCHRUN, IN_TORCHRUN),
    "srun": (SRUN, IN_SRUN),
    "torchrun in srun": (SRUN | TORCHRUN, IN_TORCHRUN),
    "another address": (SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "5"}, replace(IN_SRUN, address="a", port=5)),
    "a step on one node of two": (
        SRUN | {"SLURM_STEP_NODELIST": "gpu008", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"},
        replace(IN_SRUN, local_world=4, node=0, address="gpu008"),
    ),
    "one task": (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Place()),
    "a shell of salloc": ({name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}, Place()),
    "an interactive step": (SRUN | {"SLURM_STEP_ID": "4294967290"}, Place()),
    "a batch script": (WITHOUT_STEP | {"ENVIRONMENT": "BATCH"}, Place()),
    "no step id": (WITHOUT_STEP, IN_SRUN),
    "our own rank": (TORCHRUN | {"GENGEN_LEADER": "7"}, replace(IN_TORCHRUN, launcher="gengen")),
}


@pytest.mark.parametrize("case", STATED)
def test_a_place_is_what_the_environment_says(case: str) -> None:
    env, place = STATED[case]
    assert find_place(env) == place


def test_nodes_are_those_of_equally_many_ranks() -> None:
    assert [place.nodes for place in (Place(), IN_TORCHRUN, IN_SRUN)] == [1, 2, 2]
    assert [place.is_launched for place in (Place(), IN_TORCHRUN, IN_SRUN)] == [False, True, True]


@pytest.mark.parametrize(
    "env, said",
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set, though RANK is: start the command by torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set, though RANK, WORLD_SIZE are"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8 is none of WORLD_SIZE=8 ranks"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4 is none of LOCAL_WORLD_SIZE=4 ranks of its node"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE=8 is no multiple of LOCAL_WORLD_SIZE=3"),
        (TORCHRUN | {"WORLD_SIZE": "eight"}, "WORLD_SIZE=eight: a number from 0 on is allowed; torchrun sets it"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000: ports end at 65535"),
        (SRUN | {"SLURM_NTASKS": "3"}, "SLURM_NTASKS=3 on SLURM_NNODES=2: every node must have equally many tasks"),
        (SRUN | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 is none of SLURM_NTASKS=4 ranks"),
        (SRUN | {"SLURM_LOCALID": "2"}, "SLURM_LOCALID=2 is none of SLURM_NTASKS / SLURM_NNODES=2 ranks of its node"),
        (SRUN | {"SLURM_JOB_NODELIST": ""}, "SLURM_JOB_NODELIST is not set, though SLURM_PROCID is"),
        (SRUN | {"SLURM_JOB_NODELIST": "]["}, "SLURM_JOB_NODELIST=][: no list of hosts; MASTER_ADDR=HOST names"),
    ],
)
def test_half_a_place_and_one_that_contradicts_itself_are_refused(env: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        find_place(env)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "hosts, first",
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("gpu[12,7-9]", "gpu12"),
        ("rack[1-2]-node[03-04]", "rack1-node03"),
        ("127.0.0.[2-3]", "127.0.0.2"),
        ("a.b[1-2].c,d", "a.b1.c"),
    ],
)
def test_the_first_of_slurms_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    "settings, said",
    [
        (["model=gpt"], "torchrun starts a command again after a failure, and then it must go on with its run"),
        (["run=r", "trainer.devices=2"], "trainer.devices=2: torchrun has started 4"),
        (["run=r", "trainer.nodes=3"], "trainer.nodes=3: torchrun has started 2"),
        (["-m", "run=r"], "-m starts a process for each run by itself; start it without torchrun"),
    ],
)
def test_a_launched_command_says_its_run_and_nothing_else_of_its_ranks(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        placed(read_command_line(settings), IN_TORCHRUN)


def test_the_devices_and_nodes_of_a_launched_command_are_those_that_were_started() -> None:
    for settings in (["run=r"], ["runs/r", "trainer.devices=4"], ["run=r", "trainer.nodes=null"]):
        line = placed(read_command_line(settings), IN_TORCHRUN)
        assert (line.last("trainer.devices"), line.last("trainer.nodes")) == ("4", "2")
    line = read_command_line(["model=gpt", "trainer.devices=3"])
    assert placed(line, Place()) is line


def test_one_command_starts_the_ranks_of_one_node(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny, "trainer.nodes=2", f"runs_dir={tmp_path}", "run=r"]) == 2
    assert (
        "trainer.nodes=2: this starts ranks on one node; torchrun and srun do so on several" in capsys.readouterr().err
    )
    assert main(["train", *tiny, "trainer.nodes=3", f"runs_dir={tmp_path}", "run=r"]) == 2
    assert "data.batch_size=8 cannot be shared by trainer.devices=1 on trainer.nodes=3" in capsys.readouterr().err


def test_the_number_of_nodes_is_of_one_command_and_never_stored() -> None:
    config = compose_train(read_command_line(["model=gpt", "trainer.max_steps=4", "trainer.nodes=2"]))
    assert config.trainer.world == 2 and stored(config)["trainer"]["nodes"] is None
    assert config.trainer.nodes == 2
    kept = stored(config)
    kept["trainer"]["nodes"] = 4  # somebody else's
    assert resumed(kept, read_command_line(["run=r"]))[0].trainer.nodes is None
    assert resumed(kept, read_command_line(["run=r", "trainer.nodes=2"]))[0].trainer.world == 2


def test_rank_0_is_where_the_store_is_unless_an_agent_serves_it() -> None:
    """Then an address of its own; loopback tells others nothing, and the agent is on the same machine."""
    assert own_address(IN_SRUN) == "gpu007"
    assert own_address(replace(IN_TORCHRUN, address="127.0.0.1")) == "127.0.0.1"
