"""lm-eval's `local-completions` against a real process: its scores are those of `evaluate`'s own log-probabilities.

lm-eval brings some thirty packages, scikit-learn among them, so it is not one of the tests' own: without `pip install
'lm-eval[api]==0.4.13'` this is skipped.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gengen.cli import main
from gengen.evaluation.preference import sequence_log_probs
from gengen.generation.text.generator import TextGenerator
from helpers.served import both, new_process

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: its scores through the server are untested")
pytestmark = pytest.mark.slow

TEXTS = ["Once upon a time there was a fox.", "The bear said: go home, little bird!", "é and so on"]
QUESTIONS = [("The fox", [" ran", " sang a song", " ate"], 1), ("A bird", [" slept", " flew away"], 0)]


def test_scores_through_the_server_are_those_of_evaluate(runs: Path, story: TextGenerator, tmp_path: Path) -> None:
    """Bits per byte of texts, and which answers of a question are likeliest."""
    folder = tmp_path / "exported"
    assert main(["export", str(runs / "story"), "to=hf", f"out={folder}"]) == 0
    tasks = [rolling(tmp_path), choices(tmp_path)]
    with new_process(both(runs), tmp_path / "said.txt") as server:
        asked = {"model": "story", "base_url": f"{server.url}/v1/completions", "tokenizer": str(folder)}
        settings = {"tokenizer_backend": "huggingface", "max_length": story.context, "num_concurrent": 2}
        found = lm_eval.simple_evaluate(
            model="local-completions", model_args=asked | settings, tasks=tasks, bootstrap_iters=0
        )["results"]
    own = bits_per_byte(story)
    assert found["texts"]["bits_per_byte,none"] == pytest.approx(own, abs=1e-3)
    assert found["questions"]["acc,none"] == accuracy(story)
    assert own > 1, "a model of random weights would not be told from one whose scores are all 0"


def bits_per_byte(story: TextGenerator) -> float:
    """Of the texts, each after the token that begins one."""
    rows = [([story.tokenizer.start], story.tokenizer.encode(text)) for text in TEXTS]
    return -sequence_log_probs(story.model, rows).sum() / math.log(2) / sum(len(text.encode()) for text in TEXTS)


def accuracy(story: TextGenerator) -> float:
    right = []
    for question, answers, answer in QUESTIONS:
        rows = [(story.tokenizer.encode(question), story.tokenizer.encode(text)) for text in answers]
        right.append(int(np.argmax(sequence_log_probs(story.model, rows))) == answer)
    return sum(right) / len(right)


def task(folder: Path, name: str, documents: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """A task over a local file: nothing is fetched."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
    return {"task": name, "test_split": "test", **source, **settings}


def rolling(folder: Path) -> dict[str, Any]:
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    documents = [{"text": text} for text in TEXTS]
    texts = {"doc_to_text": "", "doc_to_target": "{{text}}"}
    return task(folder, "texts", documents, output_type="loglikelihood_rolling", metric_list=[metric], **texts)


def choices(folder: Path) -> dict[str, Any]:
    documents = [{"question": question, "answers": answers, "answer": i} for question, answers, i in QUESTIONS]
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    texts = {"doc_to_text": "question", "doc_to_choice": "answers", "doc_to_target": "answer", "target_delimiter": ""}
    return task(folder, "questions", documents, output_type="multiple_choice", metric_list=[metric], **texts)
