"""`doctor`: check everything on the disk that a run or a checkpoint depends on. It changes nothing."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import being_written, find
from gengen.cli.import_weights import NO_DATA
from gengen.config.commands import DoctorConfig
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.help import flat_help
from gengen.config.model import ModelConfig
from gengen.config.schema import build, leaves, plain
from gengen.config.stage import weighted_reward
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.registry import MODELS, REWARDS


class Note(str):
    """Words on what needs no mending: the next `train` sees to it, or nothing has to."""


Checks = Iterator[tuple[str, Callable[[], str]]]
"""What is looked at, and how: a check returns words, or raises an error that says what is wrong and what to do."""


def main(argv: list[str]) -> int:
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help("doctor", DoctorConfig))
        return 0
    config: DoctorConfig = compose_flat(DoctorConfig, line)
    if not config.run:
        raise UserError("which run? python scripts/doctor.py runs/NAME")
    path = Path(config.run)
    if not any((path / part).exists() for part in ("manifest.json", "checkpoints")):  # config.json may be what is lost
        path = find(config.run, Path(config.runs_dir))
    alone = (path / "manifest.json").exists() or path.absolute().parent.name == "checkpoints"
    code = 0
    for thing, check in [(path.name, partial(sound, path))] if alone else Examination(path).checks():
        try:
            mark = "note" if isinstance(words := check(), Note) else "ok"
        except UserError as error:
            mark, words, code = "wrong", str(error), 1
        except Exception as error:  # made by anyone: one file that surprises us hides nothing of the others
            mark, words, code = "wrong", f"cannot be read ({type(error).__name__}: {error})", 1
        print(f"{mark:<6} {thing:<28} {' '.join(words.split())}")
    return code


def sound(directory: Path) -> str:
    """Check a checkpoint; returns what was found. Raises UserError for what is wrong.

    Every file must be as written, and the tensors finite and those of its config's model, the average's as well.
    """
    from gengen.checkpoints.layout import load_weights, meta_model, pack, read

    saved, moments = read(directory), dict[str, Any]()
    told, stage = build(ModelConfig, saved.config["model"]), saved.config.get("stage", {}).get("name", "")
    model = meta_model(MODELS[told.name].load_for("model", stage), told, len(saved.model))
    load_weights(model, saved.model, directory)
    load_weights(model, saved.model | (saved.ema or {}), directory)
    pack(saved.optimizer, moments)
    parts = {"model": saved.model, "ema": saved.ema or {}, "optimizer": moments}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(
                    f"{directory / part}.safetensors: {name} is not finite; "
                    "resume= and checkpoint= take an earlier one"
                )
    counts = ", ".join(f"{part} {len(tensors)}" for part, tensors in parts.items() if tensors)
    return f"step {saved.step}, files as written, tensors fit and are finite: {counts}"


def sentences(folder: Path) -> str:
    """Check a frozen text encoder; returns what was found. Raises UserError for what is wrong."""
    from gengen.generation.image.sentences import SentenceEncoder

    encoder = SentenceEncoder.load(folder)
    return f"files as written, {encoder.pieces.size:,} word pieces, {encoder.width} features"


class Examination:
    """The checks of one run.

    sound: the checkpoints that passed, newest first, as far as they were checked; config: once it is known to build.
    """

    def __init__(self, run: Path):
        self.run, self.root = run, run / "checkpoints"
        self.sound: list[Path] = []
        self.config: TrainConfig | None = None

    def checks(self) -> Checks:
        from gengen.checkpoints import store

        yield "run.lock", self.lock
        yield "config.json", self.settings
        steps = store.all_steps(self.root)
        for path in steps:
            yield path.name, partial(self.checkpoint, path)
        if not steps:
            yield "checkpoints", lambda: Note("none yet")
        for pointer in ("LATEST", "BEST") if steps else ():
            yield pointer, partial(self.pointer, pointer)
        aside = "set aside by a resume; delete it if it is not wanted"
        for path in sorted([*self.root.glob("damaged-*"), *self.root.glob("superseded-*")]):
            yield path.name, lambda: Note(aside)
        for path in sorted([*self.root.glob(".*"), *self.run.glob(".*")]):
            yield path.name, lambda: Note("being written, or left by a crash: then it can be deleted")
        yield "metrics.csv", self.metrics
        for name in self.kept():
            yield name, partial(self.needed, name)
        if self.config:
            yield "data", self.data
        yield "disk", self.disk

    def lock(self) -> str:
        if not (path := self.run / "run.lock").exists():
            return "not held"
        with path.open(encoding="utf8") as file:
            holder = json.loads(file.read() or "{}")
        who = f"pid {holder.get('pid')} on {holder.get('host')}"
        if being_written(path):
            return Note(f"held by {who}: the run is being written, and may change while it is looked at")
        return Note(f"left by {who}, which is gone; the next train takes it over") if holder else "not held"

    def settings(self) -> str:
        try:
            if (tree := read_config(self.run))["data"]["name"] == NO_DATA:
                return Note("of imported weights: a model without data")
            config = build(TrainConfig, tree)
        except UserError as error:
            raise UserError(f"{error}; each checkpoint has a copy of it") from None
        self.config = replace(config, run=self.run.name, runs_dir=str(self.run.parent))  # wherever it is by now
        kept = dict(leaves(tree))
        added = [key for key, _ in leaves(plain(config)) if key not in kept]
        return "builds" + (f"; not in it, and at their defaults: {', '.join(added)}" if added else "")

    def checkpoint(self, path: Path) -> str:
        try:
            words = sound(path)
        except UserError as error:
            raise UserError(f"{error}; the next train passes over a damaged one") from None
        self.sound.append(path)
        if self.config and len(self.sound) == 1:
            then, free = dict(leaves(read_config(path))), ("run", "runs_dir")
            now = [(key, value) for key, value in leaves(plain(self.config)) if key in then and key not in free]
            if changes := [f"{key} {then[key]} -> {value}" for key, value in now if value != then[key]]:
                words += f"; changed in config.json since: {', '.join(changes)}"
        return words

    def pointer(self, name: str) -> str:
        from gengen.checkpoints.store import pointed

        if name == "BEST" and not (self.root / name).exists():
            return Note("none yet")
        at = pointed(self.root, name)
        if at is None or at not in self.sound or (name == "LATEST" and at != self.sound[0]):
            what = (
                f"{at.name}, not the newest that is sound"
                if at in self.sound and at
                else at.name + ", damaged"
                if at
                else "nothing"
            )
            raise UserError(
                f"names {what}; the next train mends it"
                if name == "LATEST"
                else f"names {what}; checkpoint=latest is there"
            )
        return at.name

    def metrics(self) -> str:
        from gengen.checkpoints.metrics_csv import read_metrics

        rows, path = read_metrics(self.run / "metrics.csv"), self.run / "metrics.csv"
        steps = [int(row.get("step") or 0) for row in rows]
        if bad := [b for a, b in pairwise([-1, *steps]) if b <= a]:
            raise UserError(f"step {bad[0]} does not come after those above it; take the file back from a copy")
        if (lines := len(path.read_text("utf8").splitlines()) - 1 if path.exists() else 0) > len(rows) + 1:
            raise UserError(
                f"line {len(rows) + 2} of {lines + 1} cannot be read; the next train keeps the lines before it alone"
            )
        saved = int(self.sound[0].name.removeprefix("step-")) if self.sound else 0
        every = read_config(self.sound[0])["trainer"]["log_every"] if self.sound else 1
        if (end := steps[-1] if steps else 0) < saved - saved % every:
            raise UserError(
                f"ends at step {end}, the newest checkpoint is of {saved}; "
                "resume=CHECKPOINT of an earlier one fills the gap"
            )
        return f"{len(rows)} rows to step {end}" + (
            f"; those after {saved} are written anew by the next train" if end > saved else ""
        )

    def kept(self) -> list[str]:
        """The folders of other models that the run stands on."""
        if self.config is None:
            return []
        rewards = [name for _, name in map(weighted_reward, self.config.stage.rewards())]
        names = [f.name for f in fields(self.config.model) if f.metadata.get("run")] + [
            "reference"
        ] * self.config.stage.needs_reference
        names += ["text_encoder"] * (getattr(self.config.model, "text_encoder", "own") != "own")
        return names + [f"reward-{i}" for i, name in enumerate(rewards) if name not in REWARDS]

    def needed(self, name: str) -> str:
        try:
            return sentences(self.run / name) if name == "text_encoder" else sound(self.run / name)
        except UserError as error:
            raise UserError(
                f"{error}; bring the folder back from a copy of the run, which does not go on without it"
            ) from None

    def data(self) -> str:
        from gengen.checkpoints.layout import verify
        from gengen.data.prepared import NotPrepared
        from gengen.training.data import brought_tokenizer, prepare_data

        assert self.config is not None
        newest, tokenizer = next(iter(self.sound), None), brought_tokenizer(self.run)
        try:
            found = prepare_data(self.config, lambda line: None, tokenizer, newest, self.run, allow_build=False)
        except NotPrepared as missing:
            known = [verify(path)["data"][:16] for path in (newest, self.run / "codec") if path and path.exists()]
            if known and not any(name in missing.home.name for name in known):
                raise UserError(
                    f"its source is not what the run was trained on ({known[0]}); bring that back, or begin a new run"
                ) from None
            return Note(f"{missing}; the next train prepares it again")
        return f"{found.fingerprint[:16]}, what the run was trained on" if newest else f"{found.fingerprint[:16]}"

    def disk(self) -> str:
        from gengen.checkpoints.store import check_space

        size = sum(file.stat().st_size for file in self.sound[0].iterdir()) if self.sound else 0
        check_space(self.run, size, size)
        return f"{shutil.disk_usage(self.run).free:,} bytes free" + (f", a checkpoint takes {size:,}" if size else "")
