"""Imports point down, between the folders and between their rooms: see docs/architecture.md."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from own_files import own_files

ROOT = Path(__file__).resolve().parents[2]

# Package -> the packages of this repository that it may import besides itself.
GROUND = {"ctrl_c": set(), "keras_choice": set(), "outside_data": set(), "path_names": set()}
BASEMENT = {"object_detection": set(GROUND), "engine": set(GROUND)}
SHARED = {"detector": {*GROUND, *BASEMENT}}
FAMILIES = {name: {*GROUND, *BASEMENT, *SHARED} for name in ("efficientdet", "maskrcnn")}
TOOLS = ("ringdet", "dataset", "benchmarks", "scripts", "tests")
ALLOWED = {**GROUND, **BASEMENT, **SHARED, **FAMILIES}

# Package -> its rooms (folders, or single files) from the lowest up. A room imports those before it
# and itself; "" is what lies in the package's own folder and is not named.
ROOMS = {
    "engine": ("config", "ranks", "files", "optim", "log", "start", ""),
    "efficientdet": ("config", "settings", "network", "weights", ""),
    "object_detection": (
        *("boxes", "coco", "records", "formats", "masks", "check", "input", "augment"),
        *("convert", "draw", "metrics", "report", "serve"),
        "",
    ),
    "maskrcnn": ("config", "settings", "network", "weights", "nvidia", "regions", ""),
}
MOST_FILES_OF_A_ROOM = 10

# External package -> the files that may import it (a name ending in / is a folder).
ONLY_FROM = {
    "horovod": {"engine/ranks/distributed.py", "scripts/setup/", "benchmarks/", "tests/"},
    "tensorflow_addons": {"tests/"},
    "dllogger": {"engine/log/run_log.py", "tests/"},
}
NAMES_AFTER_NOTHING = {"utils", "util", "misc", "common", "helpers", "helper"}


def python_files() -> list[Path]:
    """Returns every Python file of the repository, relative to its root, sorted."""
    return [path.relative_to(ROOT) for path in own_files("**/*.py")]


def module_of(path: Path) -> str:
    """Returns the dotted name of a file."""
    return ".".join(path.with_suffix("").parts)


def imported_names(source: str, *, module: str = "", is_package: bool = False) -> set[str]:
    """Returns the dotted names that a source imports, in functions and by importlib too.

    `from a.b import c` gives both `a.b` and `a.b.c`, as `c` may be a module. Relative imports are
    resolved against `module`, the dotted name of the source.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if function in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                names.add(str(argument.value))
    return names


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Returns the dotted names that a file of the repository imports."""
    is_package = path.name == "__init__.py"
    source = (ROOT / path).read_text(encoding="utf-8")
    module = module_of(path.parent if is_package else path)
    return imported_names(source, module=module, is_package=is_package)


def upward_edges(path: Path, imports: set[str]) -> list[str]:
    """Lists the imports of a file that do not point down."""
    package = path.parts[0] if len(path.parts) > 1 else ""
    if package not in ALLOWED:
        return []
    entry_points = {file.stem for file in own_files("*.py")}
    known = set(ALLOWED) | set(TOOLS) | entry_points
    tops = {name.split(".")[0] for name in imports}
    forbidden = (tops & known) - ALLOWED[package] - {package}
    return [f"{path} imports {name}" for name in sorted(forbidden)]


def room_of(module: str) -> str:
    """Returns the room of a dotted name within its package."""
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else ""
    return room if room in ROOMS[parts[0]] else ""


def edges_up_the_stairs(path: Path, imports: set[str]) -> list[str]:
    """Lists the imports of a file from a higher room of its own package."""
    package = path.parts[0]
    if package not in ROOMS or len(path.parts) < 2:
        return []
    order = ROOMS[package]
    room = room_of(module_of(path))
    inside = [name for name in imports if name.startswith(f"{package}.")]
    return [
        f"{path} imports {name}, but {room_of(name) or package} is above {room or package}"
        for name in sorted(inside)
        if order.index(room_of(name)) > order.index(room)
    ]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Returns the nodes of a graph that can reach themselves."""
    found = []
    for start in graph:
        seen, waiting = set(), list(graph[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph.get(node, ())
        if start in seen:
            found.append(start)
    return sorted(found)


def misplaced_imports(path: Path, imports: set[str]) -> list[str]:
    """Lists the imports of external packages that belong into one module only."""
    tops = {name.split(".")[0] for name in imports}
    wrong = []
    for external, places in ONLY_FROM.items():
        is_allowed = any(
            path.as_posix().startswith(place) if place.endswith("/") else path.as_posix() == place
            for place in places
        )
        if external in tops and not is_allowed:
            wrong.append(f"{path} imports {external}, which only {sorted(places)} may")
    return wrong


def test_the_repository_is_found():
    assert len([path for path in python_files() if path.parts[0] == "engine"]) > 3


def test_imports_point_down():
    assert [edge for path in python_files() for edge in upward_edges(path, imports_of(path))] == []


def test_imports_point_down_between_rooms():
    wrong = [
        edge for path in python_files() for edge in edges_up_the_stairs(path, imports_of(path))
    ]
    assert wrong == []


def test_no_modules_import_each_other():
    files = {
        module_of(p): p for p in python_files() if p.parts[0] in ALLOWED and p.stem != "__init__"
    }
    graph = {name: imports_of(path) & set(files) - {name} for name, path in files.items()}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_rooms_are_small():
    rooms = {path.parent for path in python_files() if path.parts[0] in {*ROOMS, "detector"}}
    sizes = {
        room: len([p for p in own_files(f"{room}/*.py") if p.stem != "__init__"]) for room in rooms
    }
    assert {str(room): size for room, size in sizes.items() if size > MOST_FILES_OF_A_ROOM} == {}


def test_each_external_package_has_one_door():
    assert [
        edge for path in python_files() for edge in misplaced_imports(path, imports_of(path))
    ] == []


def test_every_package_chooses_keras_first():
    packages = {path.parts[0] for path in python_files() if len(path.parts) > 1}
    packages -= {*GROUND, "scripts", "tests", "docs", "docker", "slurm"}
    assert packages >= {*BASEMENT, *FAMILIES, "dataset", "benchmarks"}
    for package in packages:
        assert "keras_choice" in imports_of(Path(package, "__init__.py")), package
    for path in python_files():  # programs outside of packages, and what no package is
        names = imports_of(path)
        if path.parts[0] == "scripts" and "tensorflow" in names:
            assert {name.split(".")[0] for name in names} & {*packages, "keras_choice"}, path


def test_configurations_do_not_load_tensorflow():
    configs = [path for path in python_files() if path.name == "config.py"]
    assert configs
    for path in configs:
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"tensorflow", "tf_keras", "keras"}, path


def test_files_are_named_by_what_is_in_them():
    assert [path for path in python_files() if path.stem in NAMES_AFTER_NOTHING] == []


def test_import_object_detection_finds_this_repository():
    command = "import object_detection, sys; print(object_detection.__path__[0])"
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(result.stdout.strip()) == ROOT / "object_detection"
    import object_detection

    assert Path(next(iter(object_detection.__path__))) == ROOT / "object_detection"


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("engine/loop.py", "from object_detection import nms", 1),
        ("object_detection/boxes/nms.py", "def f():\n    import engine.ranks.machine", 1),
        ("efficientdet/task.py", "import importlib\nimportlib.import_module('maskrcnn.task')", 1),
        ("maskrcnn/task.py", "from efficientdet.network.neck import bifpn", 1),
        ("object_detection/records/card.py", "from dataset import embedded_set", 1),
        ("efficientdet/task.py", "from engine import loop\nfrom object_detection import nms", 0),
        ("engine/loop.py", "from . import step\nimport numpy", 0),
    ],
)
def test_the_walk_sees_upward_edges(path, source, expected):
    imports = imported_names(source, module=path.removesuffix(".py").replace("/", "."))
    assert len(upward_edges(Path(path), imports)) == expected


def test_the_walk_sees_misplaced_packages():
    inside_function = imported_names("def f():\n    import horovod.tensorflow as hvd")
    assert len(misplaced_imports(Path("efficientdet/task.py"), inside_function)) == 1
    assert misplaced_imports(Path("engine/ranks/distributed.py"), inside_function) == []


def test_relative_imports_are_resolved():
    assert "engine.step" in imported_names("from . import step", module="engine.loop")
    assert "engine" in imported_names("from .. import x", module="engine.sub.loop")
    assert "engine.step" in imported_names("from .step import x", module="engine", is_package=True)


def defines_flags_when_imported(source):
    return any(
        not isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        and "flags.DEFINE" in ast.unparse(statement)
        for statement in ast.parse(source).body
    )


def test_no_test_imports_a_program_that_defines_flags_when_imported():
    # They would be flags of all tests of the process, and required ones fail them.
    programs = {
        module_of(path)
        for path in python_files()
        if path.parts[0] != "tests" and defines_flags_when_imported((ROOT / path).read_text())
    }
    assert {"train", "dataset.voc_to_coco"} <= programs
    for path in python_files():
        if path.parts[0] == "tests":
            assert not imported_names((ROOT / path).read_text()) & programs, path
