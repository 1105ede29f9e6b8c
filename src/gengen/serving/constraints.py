"""Where what an answer must obey joins a request."""

from gengen.generation.text.constraint import Constraint
from gengen.serving.protocol import TextRequest, invalid


def constraint_of(request: TextRequest) -> Constraint | None:
    """Return what the answers of a request must obey; None where it asks for nothing of the kind.

    Raises ApiError for what no answer is held to: it is refused by name, never ignored.
    """
    if request.response_format not in (None, {"type": "text"}):
        raise invalid("response_format", 'response_format: only {"type": "text"} is served', "unsupported_parameter")
    if request.tools or request.tool_choice not in (None, "none", "auto"):
        key = "tools" if request.tools else "tool_choice"
        raise invalid(key, f"{key}: calling functions is not served", "unsupported_parameter")
    for key in ("regex", "choice", "lark"):
        if getattr(request, key) is not None:
            raise invalid(key, f"{key}: answers are not constrained by this server", "unsupported_parameter")
    return None
