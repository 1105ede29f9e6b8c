"""What the sources must never contain."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))
BANNED = re.compile(
    r"\b(import pickle|pickle\.|torch\.load|torch\.save\b|joblib|dill|cloudpickle|allow_pickle|marshal|(?<!\.)eval\(|(?<!\.)exec\(|_target_"
    r"|hydra\.utils|trust_remote_code)"
)


IMPORTER = "src/gengen/checkpoints/importing.py"
"""The one place that may read foreign weights, and only as tensors."""


def test_no_pickle_and_nothing_that_runs_what_a_file_says() -> None:
    found = [
        f"{p.relative_to(ROOT)}:{i}: {line.strip()}"
        for p in SOURCES
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if BANNED.search(line) and not (str(p.relative_to(ROOT)) == IMPORTER and "torch.load" in line)
    ]
    assert not found, "\n".join(found)


def test_foreign_weights_are_read_as_tensors_only() -> None:
    calls = re.findall(r"torch\.load\(.*", (ROOT / IMPORTER).read_text())
    assert calls and all("weights_only=True" in call for call in calls), calls


def test_the_ban_would_notice() -> None:
    for line in ("import pickle", "torch.load(path)", "np.load(f, allow_pickle=True)", "exec(text)", "_target_: os.system"):
        assert BANNED.search(line), line


def test_modules_are_imported_by_name_only_for_registered_parts_and_plugins() -> None:
    users = {str(p.relative_to(ROOT)) for p in SOURCES if "import_module(" in p.read_text()}
    assert users == {"src/gengen/registry.py", "src/gengen/config/compose.py", "src/gengen/cli/__init__.py"}


ROOMS = {  # room -> what it may import of the others
    "config": {"config", "registry"},
    "models": {"alignment", "config", "models"},
    "diffusion": {"config", "diffusion"},
    "adversarial": {"adversarial"},
    "alignment": {"alignment"},
    "checkpoints": {"checkpoints", "config", "faults"},
    "data": {"config", "data", "faults"},
    "generation": {"alignment", "checkpoints", "config", "data", "diffusion", "generation", "hardware", "models", "registry"},
}
FOREIGN = {
    "models": ("lightning", "hydra"),
    "diffusion": ("lightning", "hydra"),
    "adversarial": ("lightning", "hydra"),
    "alignment": ("lightning", "hydra"),
    "checkpoints": ("lightning", "hydra"),
    "generation": ("lightning", "hydra", "datasets"),
}


def test_arrows_between_rooms_go_one_way() -> None:
    wrong = []
    for path in SOURCES:
        room = path.parent.name
        for match in re.finditer(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE):
            top, *rest = match[1].split(".")
            if top == "gengen" and room in ROOMS and (rest[0] if rest else "") not in ROOMS[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {match[1]}")
            if top in FOREIGN.get(room, ()):
                wrong.append(f"{path.relative_to(ROOT)} imports {match[1]}")
    assert not wrong, "\n".join(wrong)
