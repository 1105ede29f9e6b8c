"""What an answer must obey, as a request says it: a JSON schema, an expression, a choice, a grammar, a tool's call."""

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.grammar import Grammar, GrammarSpec, compile_grammar
from gengen.generation.text.tools import tool_schema
from gengen.io import Json
from gengen.serving.protocol import ChatRequest, TextRequest, invalid

FORMATS = '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {...}}}'


def calls_tool(request: TextRequest) -> bool:
    """Return whether the answer must be a call of a tool."""
    return bool(request.tools) and request.tool_choice not in (None, "none", "auto")


def grammar_of(request: TextRequest, tokenizer: TextTokenizer) -> Grammar | None:
    """Return what the answers of a request must obey; None where it asks for nothing of the kind. It may take seconds.

    Raises ApiError, naming the parameter, for what no answer can be held to: nothing is ignored, nothing weakened.
    """
    asked = {key: spec for key, spec in (*text_ways(request), *json_ways(request)) if spec is not None}
    if len(asked) > 1:
        raise invalid(list(asked)[1], f"{' and '.join(asked)}: one of them says what an answer must obey")
    for key, spec in asked.items():
        try:
            return compile_grammar(spec, tokenizer)
        except UserError as error:
            raise invalid(key, f"{key}: {error}", "unsupported_value") from None
    return None


def text_ways(request: TextRequest) -> list[tuple[str, GrammarSpec | None]]:
    found: list[tuple[str, GrammarSpec | None]] = []
    for key in ("regex", "lark"):
        if (value := getattr(request, key)) is not None:
            if not isinstance(value, str):
                raise invalid(key, f"{key} is a text")
            found.append((key, GrammarSpec(regex=value) if key == "regex" else GrammarSpec(lark=value)))
    if request.choice is not None:
        if not isinstance(request.choice, list):
            raise invalid("choice", "choice is a list of texts")
        found.append(("choice", GrammarSpec(choice=request.choice)))
    return found


def json_ways(request: TextRequest) -> list[tuple[str, GrammarSpec | None]]:
    return [("response_format", format_spec(request.response_format)), ("tools", tool_spec(request))]


def format_spec(wanted: Json) -> GrammarSpec | None:
    """Return what OpenAI's response_format asks for. strict may be true or false: a schema is always kept to."""
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if wanted is None or wanted == {"type": "text"}:
        return None
    if wanted == {"type": "json_object"}:
        return GrammarSpec(json_object=True)
    schema = wanted.get("json_schema") if isinstance(wanted, dict) and kind == "json_schema" else None
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise invalid("response_format", f"response_format is {FORMATS}")
    return GrammarSpec(json_schema=schema["schema"])


def tool_spec(request: TextRequest) -> GrammarSpec | None:
    """Return the schema of a call. Whether to call a tool is not left to a model that was trained on no tools."""
    if request.tool_choice in ("required", None, "auto") or isinstance(request.tool_choice, dict):
        wanted = request.tool_choice not in (None, "auto")
    elif request.tool_choice == "none":
        return None
    else:
        raise invalid("tool_choice", 'tool_choice is "none", "required" or {"type": "function", "function": {...}}')
    if not request.tools:
        if wanted:
            raise invalid("tool_choice", "tool_choice: there are no tools to call")
        return None
    if not isinstance(request, ChatRequest):
        raise invalid("tools", "tools are for /v1/chat/completions")
    if not wanted:
        message = 'tools: this model was trained on no calls; tool_choice="required" or a named function makes one'
        raise invalid("tools", message, "unsupported_parameter")
    try:
        return GrammarSpec(json_schema=tool_schema(request.tools, request.tool_choice))
    except UserError as error:
        key = "tool_choice" if str(error).startswith("tool_choice") else "tools"
        raise invalid(key, str(error)) from None
