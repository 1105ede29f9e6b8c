"""Images of what prompts say: what an image depends on, the way between two prompts, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gengen
from gengen.checkpoints import store
from gengen.cli.sample_images import sample_images
from gengen.config.commands import DiffusionSampling
from gengen.errors import UserError
from gengen.generation.base import GeneratesFromPrompts
from gengen.generation.image import prompts
from gengen.generation.image.diffusion import ImageGenerator

RED, BLUE = "a red circle", "a blue square"
FEW = {"steps": 3, "sampler": "ddim"}


@pytest.fixture(scope="module")
def gen(text_run: Path) -> ImageGenerator:
    """Words change its images much: what begins as zero is awake."""
    loaded = gengen.load(text_run, device="cpu")
    assert isinstance(loaded, ImageGenerator)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "text.pooled" in name or "reading.attention.out" in name or "conv_out" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / parameter[0].numel() ** 0.5)
    return loaded


def estimates(gen: ImageGenerator, rows: range, n: int, texts: list[str], **how: object) -> torch.Tensor:
    """Some of the images in fp32, before they are rounded to pixels."""
    asked = gen.asked(n, (), texts, "")
    return gen.draw(asked.rows(rows), 0, DiffusionSampling(**FEW | how))  # type: ignore[arg-type]


def test_image_j_of_a_prompt_does_not_depend_on_what_else_is_drawn(gen: ImageGenerator) -> None:
    both = estimates(gen, range(8), 4, [RED, BLUE])
    alone = estimates(gen, range(4), 4, [BLUE])
    many = estimates(gen, range(16), 16, [BLUE])
    torch.testing.assert_close(both[4:], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(many[:4], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(estimates(gen, range(6, 7), 4, [RED, BLUE])[0], alone[2], atol=1e-4, rtol=0)
    images = gen.generate(4, prompts=[RED, BLUE], **FEW)
    assert (images.int() - gen.generate(4, prompts=[RED, BLUE], batch_size=3, **FEW).int()).abs().max() <= 1
    assert (both[:4] - both[4:]).abs().amax(dim=(1, 2, 3)).min() > 0.01, "the prompts are read"


def test_noise_that_goes_on_from_prompt_to_prompt_would_be_noticed(
    gen: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prompts.Asked.rows

    def numbered_through(self: prompts.Asked, part: range) -> prompts.Request:
        return prompts.Request(rows(self, part).condition, part)

    alone = estimates(gen, range(4), 4, [BLUE])
    monkeypatch.setattr(prompts.Asked, "rows", numbered_through)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(estimates(gen, range(8), 4, [RED, BLUE])[4:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_empty_prompt_is_no_prompt_bit_for_bit(gen: ImageGenerator, guidance: float) -> None:
    """And so it is whatever the guidance: what it leads away from is the same estimate."""
    none = gen.generate(3, guidance=guidance, **FEW)
    assert torch.equal(gen.generate(3, prompts=[""], guidance=guidance, **FEW), none)
    assert torch.equal(gen.generate(3, prompts="", guidance=guidance, **FEW), none)
    assert not torch.equal(gen.generate(3, prompts=RED, guidance=guidance, **FEW), none)


def test_guidance_leads_from_the_negative_through_the_prompt_and_beyond(gen: ImageGenerator) -> None:
    """With one Euler step a sample is the estimate at pure noise, which guidance moves on a straight line."""
    one = {"steps": 1, "sampler": "ddim"}

    def drawn(texts: list[str], negative: str, guidance: float) -> torch.Tensor:
        request = gen.asked(2, (), texts, negative).rows(range(2))
        return gen.draw(request, 0, DiffusionSampling(**one, guidance=guidance))  # type: ignore[arg-type]

    red, blue, empty = drawn([RED], "", 1.0), drawn([BLUE], "", 1.0), drawn([], "", 1.0)
    torch.testing.assert_close(drawn([RED], BLUE, 3.0), blue.lerp(red, 3.0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn([RED], "", 3.0), empty.lerp(red, 3.0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn([RED], BLUE, 1.0), red)
    interval = gen.generate(2, prompts=RED, negative=BLUE, guidance=3.0, guide_from=0.999, guide_to=0.9991, **FEW)
    assert torch.equal(interval, gen.generate(2, prompts=RED, guidance=1.0, **FEW))


def test_the_ends_of_a_remix_are_the_prompts_bit_for_bit(gen: ImageGenerator) -> None:
    """Whichever is longer, with a negative, in more than one batch; and the way between is neither."""
    for a, b in ((RED, "a small blue square"), ("a small blue square", RED), (RED, "")):
        how = FEW | {"negative": "green", "batch_size": 2, "seed": 3}
        way = gen.remix(a, b, 3, pictures=3, **how)
        assert way.shape == (3, 3, 3, 16, 16)
        ends = [gen.generate(3, prompts=text, **how) for text in (a, b)]
        assert torch.equal(way[:, 0], ends[0]) and torch.equal(way[:, 2], ends[1])
        assert not torch.equal(way[:, 1], ends[0]) and not torch.equal(way[:, 1], ends[1])


def test_a_checkpoint_alone_draws_from_prompts(text_run: Path, tmp_path: Path) -> None:
    """Its tokenizer is in it; another tokenizer would read other tokens."""
    checkpoint = store.newest(text_run / "checkpoints")
    assert checkpoint is not None
    shutil.copytree(checkpoint, tmp_path / "alone")
    alone, run = (gengen.load(where, device="cpu") for where in (tmp_path / "alone", text_run))
    assert isinstance(alone, GeneratesFromPrompts) and alone.reads_prompts
    assert torch.equal(alone.generate(2, prompts=[RED], **FEW), run.generate(2, prompts=[RED], **FEW))


def test_a_guide_reads_with_the_same_tokenizer(
    gen: ImageGenerator, text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autoguidance from an earlier checkpoint, told the same prompt; one that reads other tokens is refused."""
    first = store.all_steps(text_run / "checkpoints")[-1]
    early = gengen.load(first, device="cpu")
    how = {"steps": 1, "sampler": "ddim"}
    request = gen.asked(2, (), [RED], "").rows(range(2))
    ours, theirs = (g.draw(request, 0, DiffusionSampling(**how, guidance=1.0)) for g in (gen, early))
    guided = gen.draw(request, 0, DiffusionSampling(**how, guidance=1.5), early)
    torch.testing.assert_close(guided, theirs.lerp(ours, 1.5), atol=1e-5, rtol=1e-5)
    assert len(gen.generate(2, prompts=RED, guide=early, **how)) == 2
    with pytest.raises(UserError, match=r"negative='dull' and guide: .* leave out one"):
        gen.generate(2, prompts=RED, negative="dull", guide=early, **how)
    assert early.tokenizer
    monkeypatch.setattr(early, "tokenizer", type(early.tokenizer).of(["another caption"], 300))
    with pytest.raises(UserError, match="another tokenizer"):
        gen.generate(2, prompts=RED, guide=early, **how)


def test_what_a_text_run_cannot_draw_is_one_message(gen: ImageGenerator) -> None:
    with pytest.raises(UserError, match=r'labels=cat: this run knows texts and no classes: prompt="a cat"'):
        gen.generate(1, ["cat"])
    assert gen.tokenizer
    long = "red circle " * 40
    tokens = len(gen.tokenizer.encode(long))
    with pytest.raises(UserError, match=rf"a prompt is too long: {tokens} tokens, the model reads .* = 31"):
        gen.generate(1, prompts=long)
    for wrong in ({"negative": long}, {"prompts": [RED, long]}):
        with pytest.raises(UserError, match="too long"):
            gen.generate(1, **wrong)  # type: ignore[arg-type]


def test_what_sample_writes_of_prompts(gen: ImageGenerator, tmp_path: Path) -> None:
    """Prompt by prompt, a row each; the single files are what Python draws."""
    said: list[str] = []
    out = tmp_path / "drawn"
    config = DiffusionSampling(
        run="r", n=3, prompt=[RED, "a crimson square"], negative=BLUE, seed=5, out=str(out), **FEW
    )  # type: ignore[arg-type]
    sample_images(gen, config, said.append)
    facts = json.loads((out / "samples.json").read_text())
    assert [(f["prompt"], f["negative"], f["index"], f["seed"]) for f in facts] == [
        *((RED, BLUE, i, 5) for i in range(3)),
        *(("a crimson square", BLUE, i, 5) for i in range(3)),
    ]
    assert said[0].startswith("never seen in training: crimson")
    assert grid_size(out / "grid.png") == (3, 2) == grid_size(out / "denoising.gif")


def test_a_word_that_was_never_seen_is_named_with_the_nearest(gen: ImageGenerator) -> None:
    assert prompts.unseen_words(gen.tokenizer, ["a redd circle", "Blue zzz", RED]) == [
        "never seen in training: redd (near: red), zzz"
    ]
    assert prompts.unseen_words(gen.tokenizer, [RED, ""]) == []


def test_a_remix_and_guidances_are_grids(gen: ImageGenerator, tmp_path: Path) -> None:
    """A row a sample; each picture is that of the command, and of Python, for it alone."""
    common: dict[str, Any] = {"run": "r", "n": 2, "prompt": [RED, BLUE], **FEW}
    remix = DiffusionSampling(what="remix", pictures=3, out=str(tmp_path / "remix"), **common)
    scales = DiffusionSampling(what="guidance", guidances=[1.0, 4.0], out=str(tmp_path / "scales"), **common)
    for config in (remix, scales):
        sample_images(gen, config, lambda line: None)
    assert grid_size(tmp_path / "remix" / "grid.png") == (3, 2)
    assert (tmp_path / "remix" / "remix.gif").exists() and not (tmp_path / "remix" / "denoising.gif").exists()
    assert grid_size(tmp_path / "scales" / "grid.png") == (2, 4)
    way = [(f["index"], f["prompt"], f["to"], f["at"]) for f in read(tmp_path / "remix")]
    assert way == [(i, RED, BLUE, at) for i in range(2) for at in (0.0, 0.5, 1.0)]
    rows = [(f["prompt"], f["index"], f["guidance"]) for f in read(tmp_path / "scales")]
    assert rows == [(text, i, g) for text in (RED, BLUE) for i in range(2) for g in (1.0, 4.0)]
    drawn = next(part for part in gen.drawn(scales))
    for column, scale in enumerate(scales.guidances):
        expected = gen.generate(2, prompts=[RED, BLUE], guidance=scale, **FEW)
        assert torch.equal(drawn.images[column::2], expected)


def read(folder: Path) -> list[dict[str, object]]:
    facts: list[dict[str, object]] = json.loads((folder / "samples.json").read_text())
    return facts


def grid_size(path: Path) -> tuple[int, int]:
    """Columns and rows of a grid of images that are shown 64 pixels wide, with gaps of 2."""
    from PIL import Image

    with Image.open(path) as image:
        return (image.width - 2) // 66, (image.height - 2) // 66
