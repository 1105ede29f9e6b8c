"""`train`: from a command line to a trained run. Everything that can be wrong is found before torch is imported."""

import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gengen.checkpoints.files import copy_folder, replace_text
from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import Run, check_name, create, find
from gengen.cli.launch import Job, handed_job, job, other_ranks
from gengen.config.compose import (
    CommandLine,
    compose_train,
    field_settings,
    import_plugins,
    plugins,
    read_command_line,
    selections,
)
from gengen.config.help import train_help
from gengen.config.resume import Change, policy, resumed, stored
from gengen.config.schema import build, plain, schema
from gengen.config.stage import TuningConfig, weighted_reward
from gengen.config.train import TrainConfig
from gengen.errors import NoCheckpoint, UserError
from gengen.registry import MODELS, REWARDS

if TYPE_CHECKING:
    from gengen.data.prepared import PreparedData
    from gengen.training.monitor.console import Console


def main(argv: list[str]) -> int:
    if (handed := handed_job()) is not None:
        return execute(handed, console=None)
    line = read_command_line(argv)
    if line.show == "help":
        print(train_help(line))
        return 0
    if line.multirun:
        from gengen.cli.sweep import sweep

        return sweep(line)
    config, run, changes = asked_run(line)
    if line.show == "cfg":
        import yaml

        print(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), end="")
        return 0
    if config.dry_run:
        from gengen.cli.dry_run import describe

        print(describe(config))
        return 0
    return begin(config, line) if run is None else go_on(run, config, changes)


def asked_run(line: CommandLine) -> tuple[TrainConfig, Run | None, list[Change]]:
    """What the command line asks for: a new run and its config, or an existing one, its config and what is to change
    of it.

    Raises UserError for a run that should exist and does not: one is meant where nothing says what a new one would be.
    """
    name, folder = line.run or line.last("run"), Path(line.last("runs_dir") or "runs")
    if not name:
        return compose_train(line), None, []
    if "/" in name:
        folder, name = Path(name).parent, Path(name).name
    check_name(name)
    run = Run(folder / name)
    if (run.path / "config.json").exists():
        import_plugins(plugins(line))
        config, changes = resumed(run.read_config(), line)
        if config.resume == "never":
            raise UserError(f"resume=never: {run.path} exists; choose another run=NAME, or remove it")
        return replace(config, run=name, runs_dir=str(folder)), run, changes
    config = compose_train(line)
    known = schema(TrainConfig, plain(config))
    if not selections(line) and all(policy(key, known) == "free" for key, _ in field_settings(line)):
        find(name, folder)
    return replace(config, run=name, runs_dir=str(folder)), None, []


def begin(config: TrainConfig, line: CommandLine) -> int:
    """A new run: settle what `auto` means, prepare the data, then make the directory."""
    source, checkpoint = None, None
    if config.resume == "must":
        raise NoCheckpoint(f"resume=must: {Path(config.runs_dir) / (config.run or '')} is no run with a checkpoint")
    if config.resume not in ("auto", "never"):
        checkpoint = find(config.resume, Path(config.runs_dir))
        if not (checkpoint / "manifest.json").exists():
            raise UserError(f"resume={config.resume}: not a checkpoint directory")
    check_paths(config)
    rewards = reward_runs(config)
    if config.init_from:
        source = find(config.init_from, Path(config.runs_dir))
        brought = read_config(source)["model"]["name"]
        if stated := [
            f"{k}={v}" for k, v in line.settings if k.split(".")[0] == "model" and (k, v) != ("model", brought)
        ]:
            raise UserError(
                f"init_from={config.init_from} brings its model along, a {brought}; leave out {' '.join(stated)}"
            )
    else:
        check_runs(config)
    from gengen.checkpoints.layout import copy_weights, read_tokenizer, read_weights
    from gengen.config.model import ModelConfig
    from gengen.generation.load import find_checkpoint
    from gengen.generation.text.rewards import check_scale
    from gengen.hardware import pick_device, pick_precision
    from gengen.training.build import fitted_to_budget
    from gengen.training.monitor.console import Console
    from gengen.training.monitor.interruption import Interruption

    console, tokenizer = Console(), None
    if source is not None:
        source = find_checkpoint(str(source), Path(config.runs_dir), "latest", console.say)
        config = replace(config, model=build(ModelConfig, read_config(source)["model"]), init_from=str(source))
        tokenizer = read_tokenizer(source)
    kept = {"reference": source} if config.stage.keeps and source else {}
    for name, path in rewards.items():
        kept[name] = find_checkpoint(str(path), Path(config.runs_dir), "latest", console.say)
        check_scale(str(path), read_weights(kept[name]))
    device = pick_device(config.trainer.device, config.trainer.devices)
    settled = replace(config.trainer, device=device, precision=pick_precision(config.trainer.precision, device))
    config = replace(config, trainer=settled, model=config.model.resolved())
    if not config.stage.drops and hasattr(config.model, "dropout"):
        config.model.dropout = 0.0
    prepared = prepare_data(config, console, tokenizer, checkpoint, source.parent.parent if source else None)
    config = replace(config, data=prepared.config, model=config.model.with_data(prepared.model_facts))
    config.model.check()  # now that it knows its data
    config = replace(config, optim=config.optim.for_model(config.model.largest_width()))
    if config.trainer.max_steps is None and isinstance(config.stage, TuningConfig):
        wanted = math.ceil(config.stage.epochs * len(prepared.train) / config.data.batch_size)
        config = replace(config, trainer=replace(config.trainer, max_steps=wanted))
    if config.trainer.max_steps is None:
        with Interruption() as interruption:
            config = fitted_to_budget(config, prepared, console.say, interruption)
        if interruption():
            return interruption.exit_code
        steps, compiled = config.trainer.max_steps, config.trainer.compile
        console.say(
            f"steps  {steps} fit in trainer.budget={config.trainer.budget} here; trainer.max_steps={steps} trainer.compile={compiled} "
            f"repeats this run"
        )
    assert config.trainer.max_steps
    config = replace(config, optim=config.optim.for_steps(config.trainer.max_steps))
    run = create(Path(config.runs_dir), config.run, f"{config.model.name}-{config.data.name}")
    empty = not any(run.path.iterdir())
    run.lock()
    if (run.path / "config.json").exists():
        raise UserError(f"{run.path} was begun by another process meanwhile; run={run.name} goes on with it")
    config = replace(config, run=run.name)
    try:
        for name, folder in prepared.dependencies.items():
            copy_folder(folder, run.path / name)
        for name, folder in kept.items():
            copy_weights(folder, run.path / name)
        if tokenizer is not None:
            replace_text(run.path / "tokenizer.json", tokenizer)
        run.write_config(stored(config))
        return execute(job(config, run.path, checkpoint, source), console, prepared, run)
    except BaseException:
        if empty and not has_begun(run):  # the mended command may have its name
            run.unlock()
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def has_begun(run: Run) -> bool:
    """Whether a run holds what training has made of it: a checkpoint or a row of its curve."""
    from gengen.checkpoints import store
    from gengen.checkpoints.metrics_csv import read_metrics

    return bool(store.all_steps(run.checkpoints) or read_metrics(run.path / "metrics.csv"))


def prepare_data(
    config: TrainConfig,
    console: "Console",
    tokenizer: str | None,
    checkpoint: Path | None,
    run: Path | None,
    allow_build: bool = True,
) -> "PreparedData":
    """The run's data, prepared, and encoded where its family is trained on what another model makes of it; `run` is
    the run that holds that model already. Raises UserError where a checkpoint was trained on other data; NotPrepared
    where something is missing and `allow_build` is off."""
    from gengen.checkpoints.layout import verify
    from gengen.data.prepared import PreparedData, PrepareRequest
    from gengen.data.prepared import prepare_data as prepare

    was = verify(checkpoint)["data"] if checkpoint else ""
    request = PrepareRequest(config.data, config.model, console.say, tokenizer, was, allow_build)
    prepared: PreparedData = prepare(request)
    if "encode" in (entry := MODELS[config.model.name]).builds:
        encode = entry.load("encode")
        prepared = encode(prepared, config.model, Path(config.runs_dir), run, console.say, allow_build=allow_build)
    if checkpoint and was != prepared.fingerprint:
        raise UserError(
            f"the data is not what {checkpoint} was trained on: its fingerprint was {was[:16]}, now {prepared.fingerprint[:16]}"
        )
    return prepared


def check_paths(config: TrainConfig) -> None:
    """A missing file or run of the user's is answered before anything slow."""
    path = getattr(config.data, "path", None)
    if path and not Path(path).exists():
        from gengen.errors import did_you_mean

        parent = Path(path).parent
        names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        raise UserError(
            f"data.path={path}: no such file or folder" + did_you_mean(Path(path).name, names, all_if_none=False)
        )
    if getattr(config.data, "source", None) == "files" and not path:
        raise UserError(f"data={config.data.name} needs data.path=FILE_OR_FOLDER")


def reward_runs(config: TrainConfig) -> dict[str, Path]:
    """The runs that are rewards, by the folder that a run keeps them in. Raises UserError for a reward that is
    nothing.
    """
    found = {}
    for i, (_, name) in enumerate(map(weighted_reward, config.stage.rewards())):
        if name not in REWARDS:
            try:
                found[f"reward-{i}"] = path = find(name, Path(config.runs_dir))
            except UserError as error:
                raise UserError(
                    f"stage.reward={name}: {error}\n  registered rewards are {', '.join(REWARDS)}"
                ) from None
            if (stage := read_config(path).get("stage", {}).get("name")) != "reward":
                raise UserError(f"stage.reward={name} is a run of stage={stage}: stage=reward trains a reward model")
    return found


def check_runs(config: TrainConfig) -> list[Path]:
    """The directories of the runs that a new run's model is built on: each must be named and be there."""
    found = []
    for f in fields(config.model):
        if f.metadata.get("run"):
            if (wanted := getattr(config.model, f.name)) is None:
                raise UserError(f"model={config.model.name} needs model.{f.name}=runs/NAME, {f.metadata['doc']}")
            found.append(find(wanted, Path(config.runs_dir)))
    return found


def go_on(run: Run, config: TrainConfig, changes: list[Change]) -> int:
    """An existing run with its changes, from its newest checkpoint that verifies."""
    check_paths(config)
    took_over = run.lock()
    from gengen.checkpoints import store
    from gengen.checkpoints.layout import verify
    from gengen.hardware import pick_device
    from gengen.training.monitor.console import Console

    console = Console()
    console.open(run.path / "log.txt")
    try:
        for change in [took_over, *(f"changed on resume: {change}" for change in changes)]:
            if change:
                console.say(str(change))
        device = pick_device(config.trainer.device, config.trainer.devices)
        resume, config = config.resume, replace(config, trainer=replace(config.trainer, device=device))
        store.sweep(run.checkpoints)
        if resume in ("auto", "must"):
            checkpoint = store.newest(run.checkpoints, console.say, quarantine=True)
        else:
            checkpoint = find(resume, run.checkpoints)
            verify(checkpoint)
        if checkpoint is None and resume == "must":
            raise NoCheckpoint(f"resume=must: {run.path} has no checkpoint that verifies")
        console.say(
            f"resume {checkpoint.name}, verified"
            if checkpoint
            else f"resume {run.path}: no checkpoint yet, from the start"
        )
        step = store.step_of(checkpoint) if checkpoint else 0
        if step >= (config.trainer.max_steps or 0):
            console.say(f"{run.path} is finished: step {step} of {config.trainer.max_steps}")
            run.unlock()
            return 0
        prepared = prepare_data(config, console, brought_tokenizer(run.path), checkpoint, run.path)
        if checkpoint:
            store.set_aside_after(run.checkpoints, step, console.say)
        run.write_config(stored(config))
    except UserError:
        run.unlock()
        raise
    return execute(job(config, run.path, checkpoint, config.init_from), console, prepared, run)


def brought_tokenizer(run: Path) -> str | None:
    """The tokenizer of the run that this one was started from, if any: kept beside the run's config."""
    from gengen.checkpoints.layout import read_tokenizer

    return read_tokenizer(run)


def execute(
    task: Job, console: "Console | None", prepared: "PreparedData | None" = None, run: Run | None = None
) -> int:
    """Train as this rank of a job. The exit code is 0, or 128 + the signal that stopped the run."""
    from gengen.checkpoints.store import SaveFailed
    from gengen.training.build import train, with_rollbacks
    from gengen.training.loop import TrainingFailed
    from gengen.training.monitor.console import Console
    from gengen.training.monitor.interruption import Interruption

    import_plugins(task.config["plugins"])
    config: TrainConfig = build(TrainConfig, task.config)
    if console is None:
        console = Console(quiet=True)
    checkpoint, init_from = (Path(path) if path else None for path in (task.checkpoint, task.init_from))
    if prepared is None:
        prepared = prepare_data(config, console, brought_tokenizer(Path(task.run)), checkpoint, Path(task.run))
    if run is None:
        try:
            with Interruption() as interruption:
                train(config, Run(Path(task.run)), prepared, console, interruption, init_from, checkpoint)
        except (TrainingFailed, SaveFailed) as failure:  # all ranks end so together, and rank 0 says it
            return failure.exit_code
        return 0
    console.open(run.path / "log.txt")
    introduce(config, run, prepared, console)
    try:
        with Interruption() as interruption:
            attempt = partial(train, config, run, prepared, console, interruption, init_from)
            with other_ranks(task, config.trainer.devices):
                cadence = with_rollbacks(attempt, run, console, checkpoint)
            conclude(config, run, cadence, interruption, console)
    finally:
        run.unlock()
    return interruption.exit_code if interruption() else 0


def introduce(config: TrainConfig, run: Run, prepared: "PreparedData", console: "Console") -> None:
    from gengen.cli.dry_run import size_line

    c = config.trainer
    console.say(f"run    {run.path}")
    console.say(f"model  {size_line(config)}")
    for line in prepared.describe():
        console.say(f"data   {line}")
    console.say(
        f"train  {c.max_steps} steps of {config.data.batch_size} rows on {c.devices} x {c.device}, {c.precision}, seed {config.seed}"
    )


def conclude(config: TrainConfig, run: Run, cadence: Any, interruption: Any, console: "Console") -> None:
    """The last words: what came out, the report, and what to type next."""
    from gengen.checkpoints import store
    from gengen.evaluation.report import write_report

    newest = store.all_steps(run.checkpoints)
    step = store.step_of(newest[0]) if newest else 0
    words = "interrupted" if interruption() else "done" if step >= cadence.max_steps else "stopped"
    figures = "  ".join(f"{name} {value:.4f}" for name, value in cadence.latest.items())
    console.say(f"{words}   step {step}/{cadence.max_steps}  {figures}  in {cadence.clock():.0f} s of training")
    if not interruption():
        console.say(f"report {write_report(run.path, cadence.prepared.describe())}")
    if step < cadence.max_steps:
        console.say(
            f"to go on:  python scripts/train.py run={run.name}"
            + ("" if config.runs_dir == "runs" else f" runs_dir={config.runs_dir}")
        )
    if interruption.exit_code == 75:
        requeue(console.say)
    if newest:
        generator = MODELS[config.model.name].load_for("generator", config.stage.name)
        console.say(generator.command_hint.format(run=run.path))


def requeue(say: Callable[[str], None]) -> None:
    """Have SLURM start this job again; of an array, this task alone. Does nothing where there is no SLURM."""
    where = os.environ
    own = (
        f"{where['SLURM_ARRAY_JOB_ID']}_{where['SLURM_ARRAY_TASK_ID']}"
        if "SLURM_ARRAY_TASK_ID" in where
        else where.get("SLURM_JOB_ID")
    )
    if own and (scontrol := shutil.which("scontrol")):
        done = subprocess.run([scontrol, "requeue", own], capture_output=True, encoding="utf8", errors="replace")
        failure = done.stderr.strip() or f"exit {done.returncode}"
        say(f"warning: scontrol requeue {own}: {failure}" if done.returncode else f"requeued as SLURM job {own}")
