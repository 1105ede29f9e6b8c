"""Secrets stay in the environment: their values are never written."""

import json
import os
import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with every value of a secret environment variable (8 characters or more) replaced by its name."""
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= 8 and SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>").replace(
                json.dumps(value)[1:-1], f"<{name}>"
            )  # as it is, and inside JSON
    return text
