"""A server that marks its texts: they are the library's marked samples, its key is in no answer, and it finds them."""

from pathlib import Path
from typing import Any

import pytest

from gengen.cli import main
from gengen.generation.secret_key import new_key
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.watermark import Watermark
from gengen.serving.app import Application
from gengen.serving.runs import ServedRun
from helpers.served import during, process, served_here

MARK = Watermark(bytes(range(32)), 3.0)
SETTINGS: dict[str, Any] = {"max_tokens": 60, "temperature": 1.0, "seed": 3, "n": 2, "logit_bias": {"0": -100}}


def test_texts_are_the_library_s_marked_samples_and_are_found(runs: Path, story: TextGenerator) -> None:
    """As text and as tokens; the prompt is not counted, and another text is not called marked."""
    ours = SETTINGS | {"logit_bias": {0: -100.0}, "overflow": "end"}
    samples, plain = story.generate("12", **ours, processor=MARK), story.generate("12", **ours)
    start = story.prompt_tokens("12")

    async def test(post: Any, application: Application) -> None:
        answer = (await post("/v1/completions", model="story", prompt="12", **SETTINGS)).json()
        assert [choice["text"] for choice in answer["choices"]] == [sample.text for sample in samples]
        assert answer["system_fingerprint"].endswith(f"-marked3-{MARK.key_id}")
        for sample in (samples[0], plain[0]):
            tokens = sample.tokens
            expected = MARK.detect([*start, *tokens], len(start))
            found = (await post("/gengen/v1/watermark/detect", model="story", tokens=tokens, prompt="12")).json()
            assert found == {
                **{"model": "story", "tokens": len(tokens), "counted": expected.counted},
                **{"matching": expected.matching, "z": expected.z, "p_value": expected.p_value},
                "verdict": "marked" if sample is samples[0] else "not found",
            }
        text = {"model": "story", "text": "so " * 40}
        again = (await post("/gengen/v1/watermark/detect", **text)).json()
        expected = MARK.detect([*story.prompt_tokens(""), *story.tokenizer.encode("so " * 40)], 1)
        assert (again["counted"], again["verdict"]) == (expected.counted, "too little")

    during(served_here(runs, watermark=MARK), test)


def test_requests_of_all_runs_share_one_mark(runs: Path) -> None:
    """Rows with the same processor are drawn from at once; a copy a request would be a batch for each."""
    application = served_here(runs, watermark=MARK)
    for run in application.runs.values():
        assert isinstance(run, ServedRun) and run.watermark is MARK


@pytest.mark.parametrize(
    "body, code, param",
    [
        ({"model": "story", "text": "a"}, "no_watermark", None),
        ({"model": "story"}, "missing_required_parameter", "text"),
        ({"model": "story", "text": "a", "tokens": [1]}, "missing_required_parameter", "text"),
        ({"model": "story", "text": "a", "key": "0" * 64}, "unknown_parameter", "key"),
    ],
)
def test_what_cannot_be_looked_for(runs: Path, body: dict[str, Any], code: str, param: str | None) -> None:
    """Without a key on the command line there is nothing to look for; a key is never in a request."""

    async def test(post: Any, application: Application) -> None:
        answer = await post("/gengen/v1/watermark/detect", **body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error

    during(served_here(runs), test)


def test_the_command_reads_the_key_file_and_nobody_else_s(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "my.key"
    new_key(key)
    key.chmod(0o644)
    assert main(["serve", str(runs / "story"), f"watermark={key}"]) == 2
    assert "may be read by others" in capsys.readouterr().err
    key.chmod(0o600)
    with process([str(runs / "story"), f"watermark={key}", "watermark_delta=1"], tmp_path / "said.txt") as server:
        about = server.get("/v1/models/story").json()["gengen"]
        assert about["watermark"] is True and key.read_text().strip() not in str(about)
