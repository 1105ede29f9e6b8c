"""What the sources must never contain, and how long their lines, functions and files may be."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
STILL_OVER: dict[str, int] = {}
"""Today's counts of what is being mended: each rule below holds up to its own bar or this. Lower them as they fall."""
SOURCES = [path for room in ("src", "scripts", "examples") for path in sorted((ROOT / room).rglob("*.py"))]
BANNED = re.compile(
    r"\b(import pickle|pickle\.|torch\.load|torch\.save\b|joblib|dill|cloudpickle|allow_pickle|marshal"
    r"|(?<!\.)eval\(|(?<!\.)exec\(|_target_|hydra\.utils|trust_remote_code)"
)


IMPORTER = "src/gengen/checkpoints/convert/torch_file.py"
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
    for line in (
        "import pickle",
        "torch.load(path)",
        "np.load(f, allow_pickle=True)",
        "exec(text)",
        "_target_: os.system",
    ):
        assert BANNED.search(line), line


def test_modules_are_imported_by_name_only_for_registered_parts_and_plugins() -> None:
    users = {str(p.relative_to(ROOT)) for p in SOURCES if "import_module(" in p.read_text()}
    assert users == {"src/gengen/registry.py", "src/gengen/config/compose.py", "src/gengen/cli/__init__.py"}


PACKAGE = ROOT / "src" / "gengen"
SHARED = {"errors", "faults", "hardware", "io", "registry"}
"""Single files that any room may use."""
ROOMS = {  # room -> what it may import of the others
    "config": set(),
    "models": {"alignment", "config"},
    "diffusion": {"config"},
    "adversarial": set(),
    "alignment": set(),
    "checkpoints": {"config"},
    "data": {"config"},
    "generation": {"alignment", "checkpoints", "config", "data", "diffusion", "models"},
    "evaluation": {"alignment", "checkpoints", "config", "data", "diffusion", "generation", "models"},
    "training": {
        *("adversarial", "alignment", "checkpoints", "config", "data"),
        *("diffusion", "evaluation", "generation", "models"),
    },
    "serving": {"checkpoints", "config", "data", "evaluation", "generation"},
    "cli": {"alignment", "checkpoints", "config", "data", "evaluation", "generation", "models", "serving", "training"},
}
FOREIGN = {  # room -> libraries it must not import
    "models": ("lightning", "hydra"),
    "diffusion": ("lightning", "hydra"),
    "adversarial": ("lightning", "hydra"),
    "alignment": ("lightning", "hydra"),
    "checkpoints": ("lightning", "hydra"),
    "generation": ("lightning", "hydra", "datasets"),
    "evaluation": ("lightning", "hydra"),
    "serving": ("lightning", "hydra", "datasets"),
}


@cache
def imports(path: Path) -> dict[str, bool]:
    """The modules that a file imports: name -> whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text())
    outside = {
        id(node) for part in tree.body for node in ast.walk(part) if isinstance(part, ast.Import | ast.ImportFrom)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            found[name] = found.get(name, False) or id(node) in outside
    return found


MODULES = {
    ".".join(p.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): p
    for p in SOURCES
    if PACKAGE in p.parents
}


def test_arrows_between_rooms_go_one_way() -> None:
    wrong = []
    for name, path in MODULES.items():
        room = [*name.split("."), ""][1]
        for imported in imports(path):
            top, *rest = imported.split(".")
            if top == "gengen" and room in ROOMS and rest and rest[0] in ROOMS and rest[0] not in ROOMS[room] | {room}:
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
            if top in FOREIGN.get(room, ()):
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert not wrong, "\n".join(wrong)


SERVERS = {"starlette", "uvicorn", "h11"}


def test_only_serving_imports_a_server_and_only_its_command_imports_serving() -> None:
    """So that training and sampling need neither."""
    found = {name: imports(path) for name, path in MODULES.items()}
    users = {name for name, others in found.items() if SERVERS & {other.split(".")[0] for other in others}}
    assert users and all(name.startswith("gengen.serving.") for name in users)
    callers = {name for name, others in found.items() if any(m.startswith("gengen.serving") for m in others)}
    assert {name for name in callers if not name.startswith("gengen.serving")} == {"gengen.cli.serve"}
    assert not any(m.startswith("gengen.serving") for m, now in found["gengen.cli.serve"].items() if now)


def test_every_room_is_known() -> None:
    rooms = {name.split(".")[1] for name in MODULES if name.count(".")}
    assert rooms == set(ROOMS) | SHARED


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The ways that lead from a file back to itself, each once."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(arrows[name]):
                follow(other, [*way, name])
            done.add(name)

    for name in arrows:
        follow(name, [])
    return found


def test_no_circle_between_files() -> None:
    """Nor one that an import within a function would hide."""
    arrows = {name: {other for other in imports(path) if other in MODULES} - {name} for name, path in MODULES.items()}
    # "from a.b import c" names a.b too, which is meant only where c is none of its modules
    for name, others in arrows.items():
        arrows[name] = {other for other in others if not any(more.startswith(f"{other}.") for more in others)}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert not (found := circles(arrows)), "\n".join(" -> ".join(way) for way in found)


# --- how the house reads


def counted(rule: str, found: list[str], bar: int) -> None:
    """At most `bar`, or what STILL_OVER grants, of these places; those are shown."""
    assert len(found) <= max(bar, STILL_OVER.get(rule, 0)), f"{len(found)} {rule}:\n" + "\n".join(found)


def written(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_lines_end_before_column_120() -> None:
    files = written("src", "tests", "scripts", "benchmarks", "examples")
    long = [
        f"{path.relative_to(ROOT)}:{i}"
        for path in files
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) >= 120
    ]
    counted("lines", long, 0)


def test_scripts_of_pages_are_as_narrow_and_shorter() -> None:
    """The playground's: a page is one idea, which 250 lines hold."""
    files = sorted((PACKAGE / "serving/web").rglob("*.js"))
    lines = {path: path.read_text("utf8").splitlines() for path in files}
    long = [f"{path.name}:{i}" for path in files for i, line in enumerate(lines[path], 1) if len(line) >= 120]
    assert files
    counted("lines of scripts", long, 0)
    counted("scripts", [f"{path.name}: {len(lines[path])} lines" for path in files if len(lines[path]) > 250], 0)


LONG_FUNCTIONS: dict[str, str] = {}
"""Functions over 60 lines: file:name -> why it is not cut. Fewer than five."""


def test_functions_fit_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in written("src", "scripts", "examples")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert len(LONG_FUNCTIONS) < 5 and set(LONG_FUNCTIONS) <= set(long), "a reason for a function that is not long"
    counted("functions", [name for name in long if name not in LONG_FUNCTIONS], 0)


def test_files_are_read_in_one_sitting() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in written("src")}
    counted("files", [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > 400], 2)


TREES = {"dict", "Mapping", "MutableMapping"}


def any_outside_trees(node: ast.AST) -> Iterator[ast.Name]:
    """Each `Any` below a node but for the one in dict[str, Any], the type of a JSON tree: of a key that is text, what
    JSON holds. Mappings may be read-only. `Any` in any other place counts, even as a parameter of a library's class. A
    JSON value by itself is `Json` (io.py), whose definition counts once.
    """
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in TREES:
        match node.slice:
            case ast.Tuple(elts=[ast.Name(id="str"), ast.Name(id="Any")]):
                return
    if isinstance(node, ast.Name) and node.id == "Any":
        yield node
    for child in ast.iter_child_nodes(node):
        yield from any_outside_trees(child)


def test_any_is_for_json_trees() -> None:
    """And, below the bar, for libraries without types."""
    code = "def f(a: Any, b: dict[str, Any], c: dict[int, Any], d: list[Mapping[str, Any]]) -> Callable[..., Any]: ..."
    assert len(list(any_outside_trees(ast.parse(code)))) == 3
    assert len(list(any_outside_trees(ast.parse("Json: TypeAlias = Any\ndef f(a: Json) -> Json: ...")))) == 1
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in written("src")
        for node in any_outside_trees(ast.parse(path.read_text()))
    ]
    counted("Any", found, 59)


PRINTERS = ("src/gengen/cli/", "src/gengen/training/monitor/console.py")


def test_only_commands_and_the_console_print() -> None:
    found = [
        f"{name}:{node.lineno}"
        for path in written("src")
        if not (name := str(path.relative_to(ROOT))).startswith(PRINTERS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    counted("print", found, 0)
