"""The house: imports point one way, help is light, and no room grows into two."""

from __future__ import annotations

import ast
import importlib
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pneumoscope

SOURCE = Path(pneumoscope.__file__).parent
FLOORS = (
    {"errors", "text", "files", "config"},
    *(
        {room}
        for room in (
            "images",
            "datasets",
            "models",
            "decisions",
            "inference",
            "evaluation",
            "auditing",
            "reports",
            "training",
        )
    ),
    {"exporting", "server"},
    {"cli", "__main__"},
)
LIGHT_ROOMS = ("images", "datasets", "inference", "evaluation", "auditing")  # they work where torch is not installed
HEAVY = {"torch", "torchvision", "timm", "matplotlib", "pyarrow", "scipy", "PIL", "numpy", "sklearn", "onnxruntime"}


def name_of(path: Path) -> str:
    return ".".join(("pneumoscope", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name (or nothing) of every import, those in functions and for type checkers included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)


def own_imports(module: str) -> set[str]:
    """The modules of ours that a module imports; of the package itself, only the version."""
    found = set()
    for source, name in imports_in(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if source.split(".")[0] == "pneumoscope" and (source, name) != ("pneumoscope", "__version__"):
            found.add(f"{source}.{name}" if f"{source}.{name}" in MODULES else source)
    return found


def floor_of(module: str) -> int:
    rooms = [floor for floor, names in enumerate(FLOORS) if module.split(".")[1:2] and module.split(".")[1] in names]
    assert rooms, f"{module} is in no room of the design"
    return rooms[0]


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "pneumoscope"])
def test_imports_point_only_one_way(module: str) -> None:
    upwards = {other for other in own_imports(module) if other == "pneumoscope" or floor_of(other) > floor_of(module)}
    assert not upwards


def test_the_lowest_floor_is_built_on_nothing_above_it() -> None:
    assert own_imports("pneumoscope.errors") == set()
    assert own_imports("pneumoscope.files") <= {"pneumoscope.errors"}


def test_no_imports_go_round_in_a_circle() -> None:
    order = TopologicalSorter({module: own_imports(module) for module in MODULES if module != "pneumoscope"})
    assert set(order.static_order()) >= set(MODULES) - {"pneumoscope"}


def test_a_trained_model_is_used_without_torch() -> None:
    light = [module for module in MODULES if module.split(".")[1:2] and module.split(".")[1] in LIGHT_ROOMS]
    assert {module.split(".")[1] for module in light} >= {"images", "datasets", "inference", "evaluation"}
    loaded = run_python(f"import json, sys, {', '.join(light)}\nprint(json.dumps([*sys.modules]))")
    assert {name.split(".")[0] for name in json.loads(loaded)} & {"torch", "torchvision", "timm"} == set()


@pytest.mark.parametrize("module", ["pneumoscope", "pneumoscope.cli.main"])
def test_importing_the_package_loads_nothing_heavy(module: str) -> None:
    loaded = run_python(f"import json, sys, {module}\nprint(json.dumps([*sys.modules]))")
    assert {name.split(".")[0] for name in json.loads(loaded)} & HEAVY == set()


def test_help_loads_nothing_heavy() -> None:
    script = """if True:
        import json, sys
        from pneumoscope.cli.main import app, main
        from pneumoscope.cli.data import data_app
        names = lambda of: [command.name or command.callback.__name__ for command in of.registered_commands]
        calls = [[], *([name] for name in names(app)), ["data"], *(["data", name] for name in names(data_app))]
        codes = []
        for call in [*([*call, "--help"] for call in calls), ["--version"]]:
            sys.argv = ["pneumoscope", *call]
            try:
                main()
            except SystemExit as end:
                codes.append(end.code)
        print(json.dumps([codes, [*sys.modules]]))
        """
    codes, loaded = json.loads(run_python(script))
    assert len(codes) >= 10
    assert set(codes) == {0}
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


def test_every_public_name_is_there_and_at_home() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    homes = {name: source for source, name in imports_in(tree) if source.startswith("pneumoscope.")}
    assert set(pneumoscope.__all__) == {*homes, "__version__"}
    assert pneumoscope.__all__ == sorted(pneumoscope.__all__)
    assert dir(pneumoscope) == pneumoscope.__all__
    for name, home in homes.items():
        assert getattr(pneumoscope, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'helper'"):
        _ = pneumoscope.helper


def test_no_room_is_named_for_having_no_purpose() -> None:
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_does_not_grow_into_two(module: str) -> None:
    # Counted are lines with code on them: "about 400" leaves room for comments, docstrings and air.
    tokens = tokenize.generate_tokens(io.StringIO(MODULES[module].read_text(encoding="utf-8")).readline)
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = {line for token in tokens if token.type not in ignored for line in range(token.start[0], token.end[0] + 1)}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    assert len(code) <= 400
