"""The config of `serve`: which runs, on which address, for whom, and how much of everything at most."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from gengen.config.fields import choice, option, positive
from gengen.config.marks import FilterSettings, WatermarkSettings
from gengen.errors import UserError


@dataclass
class ServeConfig(WatermarkSettings, FilterSettings):
    """Which runs to serve, and to whom."""

    runs: list[str] = option([], "runs or checkpoint directories, one or more; also as the first arguments")
    runs_dir: str = option("runs", "folder that holds the runs")
    checkpoint: str = option("latest", "latest, best, or the number of a step")
    weights: str | None = choice(None, ["ema", "raw"], "which weights; null = ema where the run has them")
    device: str = choice("auto", ["auto", "cpu", "cuda"], "auto = cuda if there is one")
    plugins: list[str] = option([], "your modules to import, which register your own components")
    host: str = option("127.0.0.1", "address to listen on; any but this machine's own needs a key")
    playground: bool = option(False, "also serve pages to look at the runs, at /; on this machine alone, without keys")
    preferences: str | None = option(
        None, "file that the page of preferences adds votes to, as data=preferences reads it; null = none are taken"
    )
    port: int = option(8000, "0 = any that is free, which is printed", low=0, high=65535)
    api_key_env: str | None = option(None, "environment variable that holds the key clients must send")
    api_key_file: str | None = option(None, "or a file of such keys, a line each; each key is a client of its own")
    allowed_hosts: list[str] = option([], "names by which clients may call this server, besides localhost and host")
    allow_origins: list[str] = option([], "pages of other sites that may use it, such as https://example.org")
    precision: str = choice(
        "fp32", ["fp32", "bf16", "int8"], "of the weights; below fp32 a text depends a little on those beside it"
    )
    exact: bool = option(True, "fp32: a text is the same whatever is drawn beside it; false: faster for a few texts")
    prefix_cache: int = option(
        64, "MiB for the beginnings of prompts, so that they are read once; 0 = none; none with several keys", low=0
    )
    guess: str | None = choice(
        None, ["lookup"], "guess next tokens as the text went on before: faster where it repeats itself, never another"
    )
    draft: str | None = option(None, "or guess them by a smaller run with the same tokenizer")
    rows: int = positive(32, "texts drawn at once")
    queue: int = positive(64, "requests that may wait for a row; more are answered 429")
    max_requests: int = positive(256, "requests in progress at once, waiting and drawing and streaming")
    body_s: float = positive(30.0, "seconds a client may take to send a request")
    stall_s: float = positive(30.0, "seconds a client may not read what it is sent")
    deadline_s: float = positive(600.0, "seconds a request may take in all")
    drain_s: float = positive(20.0, "seconds that requests may go on after SIGTERM")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check(self) -> None:
        """Raise UserError where fields do not go together."""
        if not self.loopback and not (self.api_key_env or self.api_key_file):
            raise UserError(
                f"host={self.host} can be reached by others: api_key_env=NAME or api_key_file=FILE says which key "
                "they must send; without one only host=127.0.0.1 is served"
            )
        if self.api_key_env and self.api_key_file:
            raise UserError("api_key_env and api_key_file are two places for keys: give one")
        if self.playground and (self.api_key_env or self.api_key_file):
            raise UserError("playground=true has pages for this machine alone: a browser sends no key; leave one out")
        if self.preferences and not self.playground:
            raise UserError("preferences=FILE takes the votes of a page: add playground=true")
        if self.guess and self.draft:
            raise UserError("guess and draft are two ways to guess: give one")
        for origin in self.allow_origins:
            scheme, separator, rest = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not rest or set(rest) & set("/*@?# "):
                raise UserError(f"allow_origins={origin}: write an origin exactly, such as https://example.org")

    def keys(self, environment: dict[str, str]) -> list[str]:
        """Return the keys, one of which a client must send; none = no key is asked for. Raises UserError where they
        cannot be read, or are too short to be one."""
        if self.api_key_env:
            found, where = [environment.get(self.api_key_env, "")], f"api_key_env={self.api_key_env}"
        elif self.api_key_file:
            where = f"api_key_file={self.api_key_file}"
            try:
                found = [
                    line.strip() for line in Path(self.api_key_file).read_text("utf8").splitlines() if line.strip()
                ]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{where} cannot be read: {type(error).__name__}") from None
        else:
            return []
        if not found or any(len(key) < 8 or not key.isascii() or not key.isprintable() for key in found):
            raise UserError(f"{where}: a key has 8 printable ASCII characters at least, and none was found that has")
        return found


@dataclass
class PlayConfig(ServeConfig):
    """Serve pages to look at runs: the newest of each family and stage, or those that are named."""

    runs: list[str] = option(
        [], "runs or checkpoint directories; [] = the newest of each family and stage in runs_dir"
    )
    playground: bool = option(True, "serve the pages, at /")
    preferences: str | None = option(
        "preferences.jsonl",
        "file that the page of preferences adds votes to, as data=preferences reads it; empty = none are taken",
    )
