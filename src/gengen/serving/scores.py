"""Reward runs that are served: they score answers."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gengen.config.serve import ServeConfig
from gengen.data.dialogue.template import prompt_tokens
from gengen.generation.text.rewards import Answer, Scorer, check_scale
from gengen.generation.text.row import Request
from gengen.serving.answers import encoded
from gengen.serving.calls import CallWorker, Progress
from gengen.serving.family_protocol import ScoreRequest
from gengen.serving.protocol import invalid
from gengen.serving.runs import facts


@dataclass
class ServedScorer:
    """A run of stage=reward."""

    name: str
    scorer: Scorer
    worker: CallWorker
    facts: dict[str, Any]
    does: ClassVar[str] = "scores answers: /gengen/v1/score"

    @property
    def summary(self) -> str:
        about = self.facts["gengen"]
        return f"step {about['step']}, scores answers, context {about['context']}"

    def room(self, prompt: list[int]) -> int:
        """Return how many tokens of an answer it can read after a prompt."""
        context: int = self.facts["gengen"]["context"]
        return context - len(prompt)

    def check_room(self, request: Request) -> None:
        """Raise ApiError for a text that may become longer than what it can read."""
        if request.settings.max_tokens > self.room(request.prompt):
            length = f"{len(request.prompt)} tokens of prompt and max_tokens={request.settings.max_tokens}"
            context = self.facts["gengen"]["context"]
            message = f"max_tokens: {length} are more than the {context} that reward {self.name} can read"
            raise invalid("max_tokens", message, "context_length_exceeded")

    def rewards(self, answers: list[Answer], progress: Progress) -> bytes:
        """Return the score of each answer, as JSON; null where damaged weights give none."""
        progress.check()
        scores = self.scorer(answers).tolist()
        return json.dumps([score if math.isfinite(score) else None for score in scores]).encode()

    def answers(self, asked: ScoreRequest) -> list[Answer]:
        """Return what is to be scored, as tokens. Raises ApiError for an answer that does not fit the context."""
        tokenizer, context = self.scorer.tokenizer, self.facts["gengen"]["context"]
        messages = asked.messages or [{"role": "user", "content": asked.prompt or ""}]
        prompt = prompt_tokens(tokenizer, messages)
        found = [Answer(prompt, tokenizer.encode(text), asked.ended, text=text) for text in asked.responses]
        for i, answer in enumerate(found):
            length = len(answer.prompt) + len(answer.tokens) + int(asked.ended)
            if length > context:
                message = f"responses[{i}] and what was asked are {length} tokens; the context has {context}"
                raise invalid(f"responses[{i}]", message, "context_length_exceeded")
            if length == len(prompt):
                raise invalid(
                    f"responses[{i}]", f"responses[{i}] is empty and has not ended: there is nothing to score"
                )
        return found

    def score(self, asked: ScoreRequest, progress: Progress) -> bytes:
        """Return the answer: of each response its score, and the network's own output."""
        answers = self.answers(asked)
        progress.check()
        raw = self.scorer.outputs(answers)
        scores = self.scorer.model.normalized(raw.to(self.scorer.model.gain.device)).tolist()
        rows = [
            {"index": i, "score": score, "raw": output, "tokens": len(answer.tokens)}
            for i, (answer, score, output) in enumerate(zip(answers, scores, raw.tolist(), strict=True))
        ]
        return encoded({"object": "list", "model": self.name, "data": rows})


def load_scorer(name: str, directory: Path, scorer: Scorer, config: ServeConfig) -> ServedScorer:
    """Return a reward run to be served. Raises UserError where its scores have no scale."""
    check_scale(name, dict(scorer.model.named_buffers()))
    about = {"context": scorer.model.config.context, "vocabulary": scorer.tokenizer.vocab_size}
    return ServedScorer(name, scorer, CallWorker(config.queue), facts(name, directory, about))
