"""The adversarial term of an autoencoder: when it plays, what it moves, and that its penalties are those of its own
logits.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_autoencoding import SMALL, config_of, objective_of

from gengen.checkpoints import store
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.training.objectives.patch_adversary import GAMMA, PatchAdversary


def adversary() -> PatchAdversary:
    torch.manual_seed(0)
    made = PatchAdversary(
        config_of("model.adversarial=0.1", "model.adversarial_from=0.25", model="autoencoder_kl").model
    )  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(4, 1, 16, 16, generator=draw) * 2 - 1, torch.rand(4, 1, 16, 16, generator=draw) * 2 - 1


def test_it_plays_from_a_share_of_the_steps_on() -> None:
    assert [adversary().plays(step, 100) for step in (0, 24, 25, 99)] == [False, False, True, True]


def test_an_equal_reconstruction_costs_ln_2_a_pixel_times_the_weight() -> None:
    """A logit against itself is a coin toss; a reconstruction that looks more real than its image costs less."""
    made, (images, others) = adversary(), pair()
    torch.testing.assert_close(made.cost(images, images), torch.full((4,), 0.1 * 256 * 0.6931472))
    ahead = made.network(others).mean(1) > made.network(images).mean(1)
    assert ((made.cost(images, others) < made.cost(images, images)) == ahead).all()


def test_its_loss_is_the_relativistic_one_and_both_slopes() -> None:
    made, (images, others) = adversary(), pair()
    loss = made.loss(images.clone(), others.clone())
    expected = []
    for a, b in zip(images, others, strict=True):
        a, b = a[None].requires_grad_(), b[None].requires_grad_()
        real, fake = made.network(a), made.network(b)
        slopes = [
            torch.autograd.grad(x.mean(), at, retain_graph=True)[0].square().sum() for x, at in ((real, a), (fake, b))
        ]
        expected.append(torch.log1p((fake - real).exp()).mean() + GAMMA / 2 * sum(slopes))
    torch.testing.assert_close(loss, torch.stack(expected))
    assert real.shape == (1, 16)  # 16 pixels a side, in patches of 2, halved once


def test_the_autoencoder_is_moved_by_it_and_it_only_by_its_own_loss() -> None:
    made, (images, others) = adversary(), pair()
    others.requires_grad_()
    made.network.requires_grad_(False)
    made.cost(images, others).sum().backward()
    assert others.grad is not None and others.grad.abs().max() > 0
    made.network.requires_grad_(True)
    made.loss(images, others.detach()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.network.parameters() if p.dim() > 1)


def test_a_run_has_it_in_the_log_in_the_checkpoint_and_in_no_weights(picture_data: list[str], tmp_path: Path) -> None:
    settings = [
        "model.adversarial=0.1",
        "model.adversarial_from=0.5",
        "trainer.max_steps=8",
        "trainer.log_every=1",
        "data.batch_size=12",
    ]
    machine = ["trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1", f"runs_dir={tmp_path}", "run=r"]
    assert main(["train", "model=autoencoder_kl", *picture_data, *SMALL, *settings, *machine]) == 0
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    assert [row["d_loss"] > 0 for row in rows] == [False] * 4 + [True] * 4
    newest = store.all_steps(tmp_path / "r" / "checkpoints")[0]
    kept, weights = load_file(newest / "optimizer.safetensors"), load_file(newest / "model.safetensors")
    assert {t.item() for name, t in kept.items() if "adversary.optimizer" in name and name.endswith(".step")} == {4.0}
    assert any("adversary.weights" in name for name in kept) and not any("adversary" in name for name in weights)


def test_a_checkpoint_without_it_is_answered(
    picture_data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "trainer.max_steps=2",
        "data.batch_size=12",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "trainer.threads=1",
    ]
    argv = ["train", "model=autoencoder_kl", *picture_data, *SMALL, *settings, f"runs_dir={tmp_path}"]
    assert main([*argv, "run=plain", "stop_at=1"]) == 0
    checkpoint = tmp_path / "plain" / "checkpoints" / "step-000000001"
    assert main([*argv, "run=contested", "model.adversarial=0.1", f"resume={checkpoint}"]) == 2
    assert "model.adversarial=0.1" in capsys.readouterr().err


def test_a_budget_counts_its_steps_by_their_share() -> None:
    objective = objective_of("model.adversarial=0.1", "model.adversarial_from=0.75", model="autoencoder_kl")
    assert objective.seconds_a_step([9.0] * 4 + [1.0] * 8 + [5.0] * 4) == 2.0


def test_a_likelihood_has_no_such_term(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model=vae", "data=animals", "model.adversarial=0.1"]) == 2
    assert "model.loss=l1_l2" in capsys.readouterr().err
