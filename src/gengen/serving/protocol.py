"""What may be asked of the text API, one dataclass an endpoint with the range of each parameter; and all its errors.

Pure: JSON trees in, dataclasses or an `ApiError` out. null means that a parameter is absent, as OpenAI's clients send
it. Defaults are OpenAI's, so temperature is 1 here and not gengen's 0.8.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Protocol, TypeVar

from gengen.config.commands import DecodingSettings
from gengen.config.fields import choice, option
from gengen.config.limits import parse_json
from gengen.config.schema import Kind, coerce, schema, unwrap, wrong_value
from gengen.data.text.tokenizer import ROLES
from gengen.errors import UserError, did_you_mean
from gengen.io import Json


class Asked(Protocol):
    """A dataclass of what a request asks for."""

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        ...


R = TypeVar("R", bound=Asked)

MAX_N, MAX_PROMPTS, MAX_TOP = 16, 64, 20
MAX_STOPS, MAX_STOP_LENGTH = 16, 256  # stop strings of a request, characters of each
MAX_DRAWN = 16_384  # tokens that one request may draw, over all its choices
MAX_SEED = 2**63 - 1

HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("reasoning_effort", "verbosity", "parallel_tool_calls"),
}
"""Parameters of OpenAI's API that change no text of ours: taken, and ignored."""

REFUSED = {
    "suffix": "text is only ever continued: nothing is filled in before a suffix",
    "functions": "functions were replaced by tools",
    "function_call": "functions were replaced by tools",
    "audio": "these models speak no audio",
    "modalities": "these models write text alone",
    "prediction": "predicted output is not taken; it would change no text",
    "web_search_options": "the server fetches nothing",
}
"""Parameters of OpenAI's API that would change the answer, and why they are not taken."""

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form.

    param: the parameter that is wrong; code: a word for programs; retry_after: seconds.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code, param)


# --- how parameters of several types are read: (key, value) -> the value that the request keeps


def read_stop(key: str, value: Json) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid(key, f"{key} is a text or a list of texts, none of them empty")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise invalid(key, f"{key} takes at most {MAX_STOPS} texts of at most {MAX_STOP_LENGTH} characters each")
    return stops


def read_logit_bias(key: str, value: Json) -> dict[int, float]:
    if not isinstance(value, dict):
        raise invalid(key, f'{key} is an object of numbers by token id, such as {{"50": -2.5}}')
    found = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise invalid(key, f"{key}: {token[:60]!r} is no token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise invalid(key, f"{key}: {str(bias)[:60]} for token {token} is no number from -100 to 100")
        found[int(token)] = float(bias)
    return found


MISSING = "missing_required_parameter"


def check_model(name: str) -> None:
    if not name:
        raise invalid("model", "model is missing: the name of a run; GET /v1/models lists them", MISSING)


def is_tokens(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def read_prompts(key: str, value: Json) -> "list[str | list[int]]":
    """A text, texts, tokens, or several lists of tokens -> the prompts, each a text or tokens."""
    if isinstance(value, str) or is_tokens(value):
        return [value]
    if (
        not isinstance(value, list)
        or not value
        or not (all(isinstance(p, str) for p in value) or all(map(is_tokens, value)))
    ):
        raise invalid(
            key, f"{key} is a text, a list of texts, a list of token ids, or a list of such lists, and not empty"
        )
    if len(value) > MAX_PROMPTS:
        raise invalid(key, f"{key} holds {len(value)} prompts; a request takes at most {MAX_PROMPTS}")
    return value


def read_token_ids(key: str, value: Json) -> list[int]:
    if value != [] and not is_tokens(value):
        raise invalid(key, f"{key} is a list of token ids")
    return value


def read_messages(key: str, value: Json) -> list[dict[str, str]]:
    """Messages -> [{"role", "content"}], content being text; `developer` is OpenAI's newer word for `system`."""
    if not isinstance(value, list) or not value:
        raise invalid(key, f"{key} is a list of messages, and not empty")
    return [_read_message(f"{key}[{i}]", message) for i, message in enumerate(value)]


def _read_message(key: str, message: Json) -> dict[str, str]:
    if not isinstance(message, dict):
        raise invalid(key, f"{key} is an object with role and content")
    role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
    if role not in ROLES:
        raise invalid(f"{key}.role", f"{key}.role={str(role)[:60]!r} is not one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_read_part(f"{key}.content[{i}]", part) for i, part in enumerate(content))
    if not isinstance(content, str):
        raise invalid(f"{key}.content", f"{key}.content is a text, or a list of parts of text")
    return {"role": role, "content": content}


def _read_part(key: str, part: Json) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise invalid(
            key, f'{key}: only {{"type": "text", "text": ...}} is read; no image, sound or file, and no URL is fetched'
        )
    return part["text"]


def read_stream_options(key: str, value: Json) -> dict[str, bool]:
    known = ("include_usage", "include_obfuscation")
    if not isinstance(value, dict) or not all(isinstance(flag, bool) for flag in value.values()):
        raise invalid(key, f"{key} is an object of true and false: {', '.join(known)}")
    if unknown := value.keys() - set(known):
        name = min(unknown)
        raise invalid(
            f"{key}.{name}", f"unknown parameter {key}.{name}" + did_you_mean(name, known), "unknown_parameter"
        )
    return value


def read_any(key: str, value: Json) -> Json:
    """What `grammar_of` reads."""
    return value


def parameter(read: Callable[[str, Json], Json], doc: str, default: Json = None) -> Any:
    """A parameter of several types, which a function reads."""
    metadata = {"doc": doc, "read": read}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# --- the requests


@dataclass
class Controls:
    """How the next token is drawn."""

    temperature: float = option(1.0, "divides the logits; 0 takes the likeliest token", low=0, high=2)
    top_k: int | None = option(None, "draw from the k likeliest tokens only", above=0)
    top_p: float | None = option(None, "draw from the fewest tokens that hold this much", above=0, high=1)
    min_p: float | None = option(None, "draw from tokens this much as likely as the likeliest", low=0, high=1)
    logit_bias: dict[int, float] = parameter(read_logit_bias, "added to a token's logit", {})
    repetition_penalty: float = option(1.0, "divides positive logits of tokens that are there", above=0, high=10)
    presence_penalty: float = option(0.0, "taken from the logits of tokens in the text", low=-2, high=2)
    frequency_penalty: float = option(0.0, "likewise, as often as they are there", low=-2, high=2)

    def controls(self) -> dict[str, Any]:
        """Return them as `DecodingSettings` has them."""
        found = {f.name: getattr(self, f.name) for f in fields(Controls)}
        return found | {"logit_bias": [f"{token}:{number!r}" for token, number in self.logit_bias.items()]}


@dataclass
class TextRequest(Controls):
    """What completions and chat completions share."""

    model: str = option("", "the run, by its name")
    max_tokens: int | None = option(None, "new tokens at most", low=0, high=MAX_DRAWN)
    n: int = option(1, "choices; choice j is sample j", low=1, high=MAX_N)
    seed: int | None = option(
        None, "choice j is a function of seed and j alone; null = a new one", low=0, high=MAX_SEED
    )
    stop: list[str] = parameter(read_stop, "texts that end a choice, and are left out of it", [])
    stream: bool = option(False, "answer by server-sent events")
    stream_options: dict[str, bool] = parameter(read_stream_options, "include_usage: end with the usage", {})
    stop_ids: list[int] = parameter(read_token_ids, "tokens that end a choice, and are left out of it", [])
    prompt_logprobs: bool = option(False, "also return log-probabilities of the prompt's tokens")
    overflow: str = choice(
        "end", ["end", "slide"], "when the context is full: end with length, or go on from its last half"
    )
    logprobs_of: str = choice("model", ["model", "drawn"], "log-probabilities: the model's own, or after all controls")
    response_format: Json = parameter(read_any, "text")
    tools: Json = parameter(read_any, "functions to call")
    tool_choice: Json = parameter(read_any, "which")
    regex: Json = parameter(read_any, "what the text must match")
    choice: Json = parameter(read_any, "the texts to choose from")
    lark: Json = parameter(read_any, "a grammar of the text")
    best_of: int | None = option(None, "draw so many, and return the n that reward likes best", low=1, high=MAX_N)
    reward: str | None = option(None, "what best_of goes by: a run of stage=reward that is served, by its name")

    @property
    def drawn(self) -> int:
        """Return how many texts are drawn for each prompt."""
        return self.best_of if self.reward and self.best_of else self.n

    @property
    def include_usage(self) -> bool:
        return self.stream_options.get("include_usage", False)

    @property
    def top(self) -> int:
        """How many of the likeliest tokens are returned with each."""
        return 0

    @property
    def logprobs_key(self) -> str | None:
        """Return which parameter asks for log-probabilities, None if none does."""
        return "prompt_logprobs" if self.prompt_logprobs else None

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
        if len(self.stop_ids) > MAX_STOPS:
            raise invalid("stop_ids", f"stop_ids takes at most {MAX_STOPS} tokens")
        if self.stream_options and not self.stream:
            raise invalid("stream_options", "stream_options is for stream=true")
        if self.logprobs_of == "drawn" and not self.logprobs_key:
            raise invalid("logprobs_of", "logprobs_of=drawn goes with logprobs")
        self.check_best_of()

    def check_best_of(self) -> None:
        """Raise ApiError where the best of several texts cannot be chosen."""
        if self.reward is None:
            if self.best_of not in (None, self.n):
                message = f"best_of={self.best_of} needs reward, which says what the n={self.n} best are"
                raise invalid("best_of", message)
            return
        if self.best_of is None or self.best_of < self.n:
            raise invalid("best_of", f"best_of={self.best_of}: reward chooses n={self.n} of as many or more")
        if self.stream:
            raise invalid("stream", "stream=true tells a text while it is drawn; reward chooses among whole ones")

    def settings(self, seed: int, max_tokens: int) -> DecodingSettings:
        """Return how the choices are drawn."""
        return DecodingSettings(
            seed=seed, max_tokens=max_tokens, stop=self.stop, stop_ids=self.stop_ids, overflow=self.overflow,
            logprobs_of=self.logprobs_of, **self.controls(),
        )  # fmt: skip


@dataclass
class CompletionRequest(TextRequest):
    """The body of POST /v1/completions."""

    prompt: list[str | list[int]] = parameter(read_prompts, "what to go on from", [])
    max_tokens: int | None = option(16, "new tokens at most; 0 only with echo", low=0, high=MAX_DRAWN)
    echo: bool = option(False, "begin each choice with its prompt")
    logprobs: int | None = option(None, "log-probabilities, with as many of the likeliest tokens", low=0, high=MAX_TOP)

    @property
    def top(self) -> int:
        return self.logprobs or 0

    @property
    def logprobs_key(self) -> str | None:
        return super().logprobs_key if self.logprobs is None else "logprobs"

    def check(self) -> None:
        super().check()
        if not self.prompt:
            raise invalid("prompt", "prompt is missing: a text, which may be empty", MISSING)
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens", "max_tokens=0 draws nothing, which only echo=true makes sense of")


@dataclass
class ChatRequest(TextRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[dict[str, str]] = parameter(read_messages, "the conversation so far", [])
    max_completion_tokens: int | None = option(None, "OpenAI's newer word for max_tokens", low=1, high=MAX_DRAWN)
    max_tokens: int | None = option(None, "new tokens at most; null = what the context holds", low=1, high=MAX_DRAWN)
    logprobs: bool = option(False, "return log-probabilities")
    top_logprobs: int | None = option(None, "with as many of the likeliest tokens", low=0, high=MAX_TOP)

    @property
    def top(self) -> int:
        return self.top_logprobs or 0

    @property
    def logprobs_key(self) -> str | None:
        return "logprobs" if self.logprobs else super().logprobs_key

    def check(self) -> None:
        super().check()
        if not self.messages:
            raise invalid("messages", "messages is missing: a list of {role, content}", MISSING)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "top_logprobs goes with logprobs=true")
        if self.max_completion_tokens and self.max_tokens not in (None, self.max_completion_tokens):
            raise invalid("max_tokens", "max_tokens and max_completion_tokens are two words for one thing: give one")
        self.max_tokens = self.max_completion_tokens or self.max_tokens


# --- from bytes to a request


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the object that a body spells. Raises ApiError where it is none."""
    try:
        text = body.decode("utf-8")
        tree = parse_json(text, strict=True)
        if "\\ud" in text.lower():  # half a surrogate pair may hide in an escape, and no UTF-8 can hold it
            _encode_all(tree)
    except UnicodeError as error:
        raise invalid(None, f"the body is not UTF-8: {str(error)[:200]}", "invalid_json") from None
    except ValueError as error:
        raise invalid(None, f"the body is no JSON: {str(error)[:200]}", "invalid_json") from None
    if not isinstance(tree, dict):
        raise invalid(None, f"the body is a JSON object, not {type(tree).__name__}", "invalid_json")
    return tree


def _encode_all(tree: Json) -> None:
    if isinstance(tree, str):
        tree.encode()
    parts: Sequence[Json] = (
        [*tree, *tree.values()] if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    )
    for part in parts:
        _encode_all(part)


def read_request(cls: type[R], tree: Mapping[str, Json]) -> R:
    """Build a request from its JSON object. Raises ApiError, which names the parameter, for what does not fit."""
    known = schema(cls, {})
    values = {}
    for key, value in tree.items():
        if key in known:
            if value is not None:
                values[key] = _read_value(key, value, *known[key])
        elif key in REFUSED and value is not None:
            raise invalid(key, f"{key} is not supported: {REFUSED[key]}", "unsupported_parameter")
        elif key not in HARMLESS and key not in REFUSED:
            hint = did_you_mean(key[:60], known, all_if_none=False)
            raise invalid(key[:60], f"unknown parameter {key[:60]!r}" + hint, "unknown_parameter")
    request = cls(**values)
    request.check()
    return request


def _read_value(key: str, value: Json, f: "Field[Json]", kind: Kind) -> Json:
    if read := f.metadata.get("read"):
        return read(key, value)
    try:
        if (
            isinstance(value, str) and unwrap(kind)[0] is float
        ):  # a config may write a number as text, a request may not
            raise wrong_value(key, value[:60], f, kind)
        return coerce(key, value, f, kind)
    except (UserError, OverflowError) as error:
        raise invalid(key, str(error)[:500] if isinstance(error, UserError) else f"{key} is too large") from None
