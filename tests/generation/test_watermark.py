"""The watermark of text against its own formula, chance against theory, and the commands that make and find it."""

import hashlib
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gengen.cli import main
from gengen.errors import UserError
from gengen.generation.evidence import Evidence
from gengen.generation.secret_key import new_key, read_key
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.watermark import Watermark, examine

KEY = bytes(range(32))


def bit(before: int, token: int) -> int:
    """Whether a token is green, read from the digest by hand."""
    digest = hashlib.shake_256(b"gengen text watermark" + KEY + before.to_bytes(8)).digest(1000)
    return digest[token // 8] >> (7 - token % 8) & 1


def test_green_tokens_get_delta_and_depend_on_the_last_token_alone() -> None:
    logits, mark = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)), Watermark(KEY, 1.5)
    marked = mark(logits, [[9, 9, 7], [7]])
    expected = torch.tensor([1.5 * bit(7, token) for token in range(300)])
    torch.testing.assert_close(marked - logits, expected.expand(2, -1), atol=1e-6, rtol=0)
    seven, eight = mark.green([7, 8], 300)
    assert (mark.green([7], 100) == seven[:100]).all()  # whatever the size of the vocabulary
    assert 0.4 < eight.mean() < 0.6 and (seven != eight).mean() > 0.4


def test_the_detector_counts_each_pair_once_and_no_prompt() -> None:
    mark, tokens = Watermark(KEY), [0, 5, 6, 7, 6, 7, 6, 7, 250]
    drawn = {(6, 7), (7, 6), (7, 250)}
    assert mark.detect(tokens, prompt=3) == Evidence(sum(bit(*pair) for pair in drawn), 3)
    assert mark.detect(tokens, prompt=1).counted == 5
    assert mark.detect([4], prompt=1) == mark.detect([], prompt=0) == Evidence(0, 0)
    assert mark.detect(tokens, prompt=0) == mark.detect(tokens, prompt=1)  # the first has no token before it


def test_the_evidence_by_hand() -> None:
    assert Evidence(64, 100).z == pytest.approx(2.8)
    assert Evidence(3, 4).p_value == pytest.approx(5 / 16)
    assert Evidence(90, 100).p_value == pytest.approx(sum(math.comb(100, k) for k in range(90, 101)) / 2**100)
    assert Evidence(50_000, 100_000).p_value == pytest.approx(0.5012615, abs=1e-6)  # 1/2 + half the middle term
    assert (Evidence(0, 0).z, Evidence(0, 0).p_value) == (0, 1)
    verdicts = {(16, 16): "too little", (24, 24): "marked", (60, 100): "not found", (70, 100): "marked"}
    assert {counts: Evidence(*counts).verdict for counts in verdicts} == verdicts


@pytest.mark.parametrize(("texts", "within"), [(400, 0.15), pytest.param(10_000, 0.05, marks=pytest.mark.slow)])
def test_unmarked_texts_score_as_chance_would(texts: int, within: float) -> None:
    """Texts of 60 tokens by Zipf's law, with a phrase that repeats, each looked at with a key of its own: z has mean 0
    and deviation 1. Were each repetition counted, the deviation would be far above 1."""
    draw = np.random.default_rng(0)
    law = 1 / np.arange(1, 501)
    tokens = draw.choice(500, (texts, 60), p=law / law.sum())
    tokens[:, 40:60] = tokens[:, 20:40] = tokens[:, :20]
    z, repeated = np.zeros(texts), np.zeros(texts)
    for i, text in enumerate(tokens.tolist()):
        mark = Watermark(i.to_bytes(32))
        z[i] = mark.detect(text, prompt=0).z
        repeated[i] = sum(2 * int(mark.green([a], b + 1)[0, b]) - 1 for a, b in pairwise(text)) / 59**0.5
    assert abs(z.mean()) < within and abs(z.std() - 1) < within and z.max() < 4
    assert repeated.std() > 1.4


def test_a_marked_sample_is_found_by_its_key_alone_and_is_still_its_own(generator: TextGenerator) -> None:
    mark = Watermark(KEY, 2.0)
    marked = generator.generate(["a", "b"], n=4, max_tokens=100, temperature=1, seed=3, processor=mark)
    alone = generator.generate(["a"], n=2, max_tokens=100, temperature=1, seed=3, processor=mark)
    assert [sample.tokens for sample in alone] == [sample.tokens for sample in marked[:2]]
    assert len({tuple(sample.tokens) for sample in marked[:4]}) == 4  # one context does not make them one text
    whole = [sample for sample in marked if len(sample.tokens) == 100]
    texts = [[*generator.prompt_tokens(sample.prompt), *sample.tokens] for sample in whole]
    found = np.array([mark.detect(text, prompt=2).z for text in texts])
    others = np.array([Watermark(bytes(32)).detect(text, prompt=2).z for text in texts])
    assert len(whole) > 4 and found.mean() > 6 and abs(others.mean()) < 2


def test_the_z_to_expect_is_what_marked_texts_have() -> None:
    """Draws from known distributions, marked: the mean z of many is that which `expected_z` says of their logits; of a
    text that had no choice it is what its one token is worth."""
    generator, mark = torch.Generator().manual_seed(0), Watermark(KEY, 2.0)
    found, expected = [], []
    for _ in range(40):
        tokens, all_logits = [1], []
        for _ in range(60):
            logits = 1.5 * torch.randn(64, generator=generator)
            all_logits.append(logits)
            probabilities = mark(logits[None], [tokens])[0].softmax(-1)
            tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        all_logits.append(torch.zeros(64))
        found.append(mark.detect(tokens).z)
        expected.append(mark.expected_z(torch.stack(all_logits), tokens))
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.35)
    forced = torch.full((61, 64), -1e4).scatter(1, torch.tensor([[*tokens[1:], 0]]).T, 0.0)
    assert mark.expected_z(forced, tokens) == pytest.approx(mark.detect(tokens).z, abs=1e-6)
    assert mark.expected_z(forced[:1], [1]) == 0


def test_a_text_longer_than_the_context_is_examined(generator: TextGenerator) -> None:
    evidence, expected = examine(generator, Watermark(KEY), "so " * 40, "on")
    assert evidence.counted == 4 and evidence.verdict == "too little" and abs(expected) < 2


# --- the key and the commands


def test_a_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    new_key(path)
    assert path.stat().st_mode & 0o777 == 0o600 and len(read_key(path)) == 32
    with pytest.raises(UserError, match="exists"):
        new_key(path)
    path.chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640.*chmod 600"):
        read_key(path)
    path.chmod(0o600)
    path.write_text("abc")
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        read_key(path)
    for there, message in {tmp_path / "none": "no such file.*new_key=FILE", tmp_path: "not a plain file"}.items():
        with pytest.raises(UserError, match=message):
            read_key(there)


def test_sample_marks_and_detect_finds(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, other, out = tmp_path / "my.key", tmp_path / "other.key", tmp_path / "out.jsonl"
    assert main(["detect", f"new_key={key}"]) == main(["detect", f"new_key={other}"]) == 0
    argv = ["sample", str(base), f"watermark={key}", "watermark_delta=5", "temperature=1.5", "max_tokens=90"]
    assert main([*argv, f"out={out}", "n=2", "prompt=the", "logit_bias=0:-inf"]) == 0
    capsys.readouterr()
    assert main(["detect", str(base), f"key={key}", f"file={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("marked: " in line and "if it were marked" in line for line in lines)
    assert main(["detect", str(base), f"key={other}", f"file={out}", "text=a"]) == 0
    said = capsys.readouterr().out
    assert said.count("not found: ") == 2 and said.count("too little: ") == 1
    assert main([*argv, "stream=true"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "what is looked at"),
        (["text=a", "key=k"], "which run drew it"),
        (["{base}", "text=a"], "key=FILE says which key"),
        (["{base}", "text=a", "key={no}"], "no such file"),
        (["{base}", "file=a.pdf", "key={no}"], "a .txt or a .jsonl"),
    ],
)
def test_what_detect_cannot_do(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    words = [word.format(base=base, no=tmp_path / "none") for word in argv]
    assert main(["detect", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_key_that_is_missing_marks_nothing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(base), f"watermark={tmp_path / 'none'}"]) == 2
    assert "new_key=FILE makes one" in capsys.readouterr().err
