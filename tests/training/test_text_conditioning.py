"""Training on captions: which one each row is given, which rows get none, and what a run keeps of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gengen
from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import DiffusionConfig
from gengen.config.model.diffusion import PADDING, START
from gengen.data.image.captions import CaptionTokens, Description, caption_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.diffusion import Condition
from gengen.generation.image.diffusion import ImageGenerator
from gengen.models.dit import DiT
from gengen.models.layers import NO_CLASS
from gengen.models.unet import UNet
from gengen.training.objectives.diffusion import Diffusion
from helpers.runs import last_checkpoint, same_run

ROWS, SLOTS = 8, 6
FACTS: dict[str, Any] = {"resolution": 8, "channels": 1, "classes": [], "sigma_data": 0.5, "text_vocab_size": 30}
NETWORK = {
    "unet": ["model.widths=[32]", "model.blocks=1", "model.attention=[]", "model.text_attention=[0]"],
    "dit": ["model.layers=1", "model.width=32", "model.heads=2"],
}
SMALL = ["model.patch=2", "model.text_width=32", "model.text_heads=2", "model.text_context=12"]
PIXELS = SimpleNamespace(dependencies={})


def objective(model: str = "unet", *settings: str, text: bool = True) -> Diffusion:
    argv = [f"model={model}", "data=animals", "trainer.precision=fp32", *NETWORK[model], *SMALL, *settings]
    config = compose_train(read_command_line([*argv, f"model.text={text}".lower()]))
    config = replace(config, model=replace(cast(DiffusionConfig, config.model.resolved()), **FACTS))
    torch.manual_seed(0)
    net = (UNet if model == "unet" else DiT)(config.model)  # type: ignore[arg-type]
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return Diffusion(config, net, cast(Any, PIXELS))


def batch(rows: int = ROWS, counts: tuple[int, ...] = (1, 2, 3, 3)) -> dict[str, Tensor]:
    """Caption j of row i is START, i + 1, j + 1: told apart at a glance; and some padding."""
    generator = torch.Generator().manual_seed(3)
    captions = torch.full((rows, max(counts), SLOTS), PADDING)
    captions[:, :, 0] = START
    captions[:, :, 1] = torch.arange(rows)[:, None] % 20 + 1
    captions[:, :, 2] = torch.arange(max(counts)) + 1
    return {
        "images": torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1,
        "labels": torch.arange(rows) % 3,  # the data has classes, the model is told none
        "index": torch.arange(rows),
        "captions": captions,
        "caption_count": torch.tensor(counts).repeat(rows)[:rows],
    }


def drawn(o: Diffusion, rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    return batch(rows) | o.draws(rows, torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------- which caption


def test_each_row_is_given_one_of_its_captions_equally_often() -> None:
    o = objective("unet", "model.drop_condition=0")
    given = o.conditions(drawn(o, 6000))["text"]
    assert torch.equal(given[:, 1], batch(6000)["captions"][:, 0, 1])  # of its own picture
    for row, count in enumerate((1, 2, 3, 3)):
        shares = given[row::4, 2].bincount(minlength=count + 1)[1:] / 1500
        torch.testing.assert_close(shares, torch.full((count,), 1 / count), atol=0.04, rtol=0)
    last = drawn(o) | {"which_caption": torch.full((ROWS,), 1 - 2**-24)}  # the largest draw there is
    assert torch.equal(o.conditions(last)["text"][:, 2], batch()["caption_count"])


def test_the_choice_is_a_function_of_seed_and_step_however_a_batch_is_cut() -> None:
    o = objective()
    whole = drawn(o, 64)
    given = o.conditions(whole)["text"]
    assert torch.equal(given, o.conditions(drawn(o, 64))["text"])
    assert not torch.equal(given, o.conditions(drawn(o, 64, seed=1))["text"])
    for rows in (1, 16):  # of micro-batches, or of ranks
        parts = [{name: tensor[i : i + rows] for name, tensor in whole.items()} for i in range(0, 64, rows)]
        assert torch.equal(torch.cat([o.conditions(part)["text"] for part in parts]), given)


def test_the_gradient_does_not_depend_on_how_a_batch_is_cut() -> None:
    o = objective()
    whole, found = drawn(o), []
    for size in (8, 4, 1):
        o.model.zero_grad()
        for part in o.micro_batches(whole, size):
            (o.loss_sum(part) / 8).backward()
        found.append({name: p.grad.clone() for name, p in o.model.named_parameters() if p.grad is not None})
    assert any("text.encoder.tokens" in name for name in found[0])
    for cut in found[1:]:
        torch.testing.assert_close(cut, found[0], rtol=0, atol=1e-6)


def test_text_draws_behind_what_a_class_only_run_draws() -> None:
    plain, text = (objective(text=on).draws(ROWS, torch.Generator().manual_seed(0)) for on in (False, True))
    assert set(text) - set(plain) == {"which_caption"}
    assert all(torch.equal(plain[name], text[name]) for name in plain)


# ------------------------------------------------------------------------------------------------- dropped conditions


def heard_by(o: Diffusion) -> list[dict[str, Tensor]]:
    """Have the network answer its input, and return the list of what it is told from now on."""
    heard: list[dict[str, Tensor]] = []

    def network(x: Tensor, level: Tensor, **conditions: Tensor) -> Tensor:
        heard.append(conditions)
        return x

    o._network, o.model.forward = (cast(Any, network),), network  # type: ignore[method-assign]
    return heard


@pytest.mark.parametrize("model", ["unet", "dit"])
@torch.no_grad()
def test_a_dropped_row_is_what_sampling_gives_for_no_text(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    o = objective(model)
    o.model.eval()
    tokenizer = TextTokenizer.train(["a cat", "a dog"], 258)
    whole = drawn(o) | {"keep_condition": torch.arange(ROWS) > 2}
    dropped = o.conditions({name: tensor[:3] for name, tensor in whole.items()})["text"]
    assert torch.equal(dropped, caption_tokens(tokenizer, [""] * 3, SLOTS, "a prompt"))
    assert torch.equal(o.conditions(whole)["text"][3:, 1], whole["captions"][3:, 0, 1])

    x, level = whole["images"][:3], torch.rand(3)
    sampled = Condition(torch.zeros(3).long()).without(cast(Any, o.model))
    assert sampled.captions is not None and sampled.labels.tolist() == [NO_CLASS] * 3

    def difference(text: Tensor) -> float:
        in_sampling = o.model(x, level, text=sampled.captions[:, :SLOTS])  # type: ignore[index]
        return (o.model(x, level, text=text) - in_sampling).abs().max().item()

    assert difference(dropped) == 0
    assert difference(o.conditions(whole)["text"][3:6]) > 1e-3
    # the bug: no text at all where it is dropped (here its features as zeros), a null that sampling does not know
    empty = o.model.text(dropped, 3)  # type: ignore[operator]
    nothing = empty._replace(tokens=0 * empty.tokens, pooled=0 * empty.pooled)
    assert difference(cast(Any, nothing)) > 1e-3
    full = o.model(x, level, text=sampled.captions)  # 12 slots
    torch.testing.assert_close(o.model(x, level, text=dropped), full, atol=1e-5, rtol=1e-5)


def test_captions_are_dropped_row_by_row_in_training_and_never_in_evaluation() -> None:
    o = objective("unet", "model.drop_condition=0.3")
    heard = heard_by(o)
    rows = drawn(o, 2000)
    o.loss_sum(rows)
    dropped = heard[0]["text"][:, 1] == PADDING
    assert torch.equal(dropped, ~rows["keep_condition"])
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)
    together = (dropped[::2] == dropped[1::2]).float().mean().item()  # one coin for a batch would make this 1
    assert together == pytest.approx(0.3**2 + 0.7**2, abs=0.05)
    o.evaluation_sums(rows)  # even of a batch that says so
    assert torch.equal(heard[1]["text"], rows["captions"][:, 0])


def test_a_model_of_text_is_told_no_class() -> None:
    """The data's labels are numbers of classes that such a model has no embedding for."""
    o = objective()
    assert o.model.classes.num_embeddings == 1 and batch()["labels"].max() == 2  # type: ignore[union-attr]
    assert o.loss_sum(drawn(o)).isfinite() and o.evaluation_sums(batch()).isfinite().all()
    heard = heard_by(o)
    o.loss_sum(drawn(o))
    o.evaluation_sums(batch())
    assert all(told["labels"].tolist() == [NO_CLASS] * ROWS for told in heard)


# --------------------------------------------------------------------------------------------------------------- slots


def test_a_data_set_has_as_many_slots_as_its_longest_caption() -> None:
    """Padding costs what words cost: of 32 slots, captions of emoji fill 18 at most."""
    tokenizer = TextTokenizer.train(["a cat", "a dog"], 257)
    config = compose_train(read_command_line(["model=unet", "data=imagefolder"])).data
    parts = {"train": [Description(("a", "a cat"))], "val": [Description(("a dog!",)), Description(("b",))]}
    found = CaptionTokens.of(parts, tokenizer, 32, cast(Any, config))
    assert found.tokens["train"].shape == (1, 2, 7) and found.tokens["val"].shape == (2, 1, 7)
    wide = caption_tokens(tokenizer, ["a dog!", "b"], 32, "a caption")
    assert torch.equal(found.rows("val", torch.arange(2))["captions"][:, 0], wide[:, :7])
    assert (wide[:, 7:] == PADDING).all()


# --------------------------------------------------------------------------------------------------------------- a run


RHYTHM = ["max_steps=4", "save_every=4", "eval_every=4", "sample_every=4", "log_every=1"]
MACHINE = [f"trainer.{setting}" for setting in (*RHYTHM, "precision=fp32", "device=cpu", "threads=1")]
DATA = ["data=imagefolder", "data.resolution=16", "data.channels=1", "data.batch_size=12", "data.micro_batch_size=6"]


@pytest.mark.parametrize("model", ["unet", pytest.param("dit", marks=pytest.mark.slow)])
def test_a_run_keeps_its_encoder_and_tokenizer_and_goes_on_as_if_never_stopped(
    model: str,
    captioned_pictures: Path,
    shared_data: Path,
    tmp_path: Path,
    without_mfu: Callable[[], AbstractContextManager[None]],
) -> None:
    argv = ["train", f"model={model}", *NETWORK[model], *SMALL, "model.patch=4", "model.text=true", "optim.ema=0.9"]
    argv += [*DATA, f"data.path={captioned_pictures}", f"data.dir={shared_data}", *MACHINE, f"runs_dir={tmp_path}"]
    with without_mfu():
        assert main([*argv, "run=straight"]) == 0
        assert main([*argv, "run=stopped", "stop_at=2"]) == 0
        assert main(["train", "run=stopped", f"runs_dir={tmp_path}"]) == 0
    same_run(tmp_path / "straight", tmp_path / "stopped")

    checkpoint = last_checkpoint(tmp_path / "straight")
    weights, average = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "ema"))
    text = {name for name in weights if "text." in name or "reading." in name}
    assert {"text.encoder.tokens.weight", "text.pooled.weight"} < text and set(average) == set(weights)
    assert all(not torch.equal(weights[name], average[name]) for name in text)

    generator = gengen.load(str(tmp_path / "straight"))
    assert isinstance(generator, ImageGenerator)
    tokens = generator.tokens(["a circle"])
    tokenizer = TextTokenizer.from_json((checkpoint / "tokenizer.json").read_text())
    assert tokens[0, : 1 + len(tokenizer.encode("a circle"))].tolist() == [START, *tokenizer.encode("a circle")]
    same, other = (generator.generate(2, prompts=prompt, steps=3) for prompt in ("", "a circle"))
    assert torch.equal(same, generator.generate(2, steps=3)) and same.shape == other.shape == (2, 1, 16, 16)


def test_a_model_of_captions_spends_its_time_at_high_noise_unless_told_otherwise() -> None:
    """Half of the times of a class model are above .5; with captions above 3 * .5 / (1 + 2 * .5) = .75."""
    halfway = torch.tensor([0.5], dtype=torch.float64)
    for text, settings, expected in ((False, [], 0.5), (True, [], 0.75), (True, ["model.shift=1"], 0.5)):
        path = objective("unet", *settings, text=text).path
        assert float(path.time_from_quantile(halfway)) == pytest.approx(expected)
