"""Trying a grammar in another process first: it may take minutes, gigabytes or the process with it.

llguidance's own limits do not hold for all: b{1000}{1000} compiles for a minute, to 700 MiB.
"""

import atexit
import json
import select
import subprocess
import sys
import threading

from gengen.errors import UserError

SECONDS = 2.0  # for one grammar to be compiled
STARTING = 30.0  # for the process to start
MEMORY = 1024  # MiB that it may take
LIMITS = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
"""Of llguidance: what a grammar may cost when it is compiled, and at each token."""
TRIAL = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY} * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
tokenizer, limits = LLTokenizer("byte"), LLParserLimits(**{LIMITS}, verbose_errors=False)
print("ready", flush=True)
for line in sys.stdin:
    matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
    matcher.compute_logit_bias()
    print("done", flush=True)
"""


class Trial:
    """A process that compiles one grammar after another, until one is too much for it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        atexit.register(self.end)

    def run(self, source: str) -> None:
        """Compile a grammar there, which may be none. Raises UserError where that takes too long, or ends the process.

        One at a time: whoever waits longer than some grammars take is told so.
        """
        if not self.lock.acquire(timeout=10 * SECONDS):
            raise UserError("too many grammars are being compiled: try again")
        try:
            process = self.running()
            assert process.stdin
            process.stdin.write(json.dumps(source) + "\n")
            process.stdin.flush()
            answer = self.answer(process, SECONDS)
        finally:
            self.lock.release()
        if answer is None:
            raise UserError(f"the grammar takes more than {SECONDS:g} s to compile: make it smaller")
        if not answer:
            raise UserError(f"the grammar takes more than {MEMORY} MiB to compile, or breaks its compiler")

    def running(self) -> "subprocess.Popen[str]":
        """Return the process, a new one where there is none, or something else has ended it."""
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.end()
        command, pipe = [sys.executable, "-P", "-c", TRIAL], subprocess.PIPE
        self.process = process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        if not self.answer(process, STARTING):
            raise UserError(f"the process that compiles grammars did not start within {STARTING:g} s")
        return process

    def answer(self, process: "subprocess.Popen[str]", seconds: float) -> str | None:
        """Return a line of the process, "" if it has ended, None if it takes longer; then it is ended."""
        assert process.stdout
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else None
        if not line:
            self.end()
        return line

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


TRIALS = Trial()
