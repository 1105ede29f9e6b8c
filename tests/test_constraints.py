"""constraints.txt pins what is installed, by hash, and nothing that is known to be harmful."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BANNED = {
    "lightning": "==2.6.2,==2.6.3",  # malicious releases
    "pytorch-lightning": "==2.6.2,==2.6.3",
    "litellm": "",  # releases of it were malicious; nothing here needs it
    "elementary-data": "",
    "transformers": "<5.3.0",  # CVE-2026-4372: a config names code
    "hydra-core": "<1.3.8",  # a config calls what it likes
    "datasets": "<4",  # runs the script of a data set
    "torch": "<2.9",  # CVE-2025-32434, CVE-2026-24747: torch.load runs code
}
"""Name -> releases that may not be installed, any of those that commas part; "" = every one."""


def pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> (version, hashes) of a constraints file; everything in it must be a pin, and there once."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.+!]+)((?: +--hash=sha256:[0-9a-f]{64})*)", line.strip())
            assert match, line
            name = canonicalize_name(match[1])
            assert name not in found, name
            found[name] = match[2], match[3].split()
    return found


PINS = pins((ROOT / "constraints.txt").read_text())


def banned(name: str, version: str) -> bool:
    releases = BANNED.get(canonicalize_name(name))
    return releases is not None and any(
        SpecifierSet(one).contains(version, prereleases=True) for one in releases.split(",")
    )


@pytest.mark.parametrize(
    "release", ["lightning==2.6.2", "Lightning==2.6.3", "litellm==9.9", "elementary_data==0.1rc1", "torch==2.8.0"]
)
def test_a_banned_release_is_recognised(release: str) -> None:
    assert banned(*release.split("=="))
    assert not banned("lightning", "2.6.6") and not banned("torch", "2.9.0") and not banned("numpy", "0.1")


def test_no_banned_release_is_pinned() -> None:
    assert [f"{name}=={version}" for name, (version, _) in PINS.items() if banned(name, version)] == []


def test_every_pin_has_the_hash_of_its_file() -> None:
    assert len(PINS) > 100  # with what the dependencies depend on
    assert {name for name, (_, hashes) in PINS.items() if len(hashes) != 1} == set()
    hashes = [hashes[0] for _, hashes in PINS.values()]
    assert len(set(hashes)) == len(hashes)


EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["serve"], *EXTRAS["dev"]]]
WANTED = [wanted for wanted in WANTED if wanted.name != PROJECT["name"]]  # dev has all of serve


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.name)
def test_every_dependency_is_pinned_within_its_bounds(wanted: Requirement) -> None:
    version, _ = PINS[canonicalize_name(wanted.name)]
    assert wanted.specifier.contains(version), f"{wanted} is pinned to {version}"


def test_what_a_pin_depends_on_is_pinned_within_its_bounds() -> None:
    """By the metadata of what is installed here in the pinned release: no resolver would have chosen otherwise."""
    here = {canonicalize_name(d.name): d for d in distributions()}
    checked = [
        name for name, (version, _) in PINS.items() if name in here and here[name].version.split("+")[0] == version
    ]
    assert "lightning" in checked and "torch" in checked
    for name in checked:
        for wanted in map(Requirement, here[name].requires or []):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                version, _ = PINS[canonicalize_name(wanted.name)]
                assert wanted.specifier.contains(version, prereleases=True), f"{name} wants {wanted}"


def test_the_projects_own_ranges_admit_no_banned_release() -> None:
    extras = [text for group in EXTRAS.values() for text in group]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras]):
        for release in filter(None, BANNED.get(canonicalize_name(wanted.name), "").split(",")):
            last = re.sub(r"[<=]", "", release)
            edge = last if release.startswith("==") else f"{Version(last).base_version}.dev0"  # just below the bound
            assert not wanted.specifier.contains(edge, prereleases=True), (
                f"{wanted} admits {edge}, which {release} bans"
            )
        assert BANNED.get(canonicalize_name(wanted.name)) != "", wanted


def test_nothing_else_is_named_that_could_be_fetched_from() -> None:
    assert not re.search(
        r"https?://|file://|--(index|extra|find|trusted)|(?<![\w/])/\w+/", (ROOT / "constraints.txt").read_text()
    )
