"""Imports point one way, and what is imported stays light."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pneumoscope

ROOT = Path(__file__).parents[1]
SOURCE = Path(pneumoscope.__file__).parent
WITHOUT_TORCH = ("images", "datasets", "inference", "evaluation", "auditing")
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "matplotlib",
    "pyarrow",
    "scipy",
    "PIL",
    "numpy",
    "sklearn",
    "onnxruntime",
    "ray",
}


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


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_imports_point_one_way_and_never_in_a_circle() -> None:
    # In a process of its own, as import-linter switches off the loggers of others.
    script = "import sys, importlinter.cli as cli; sys.exit(cli.lint_imports(cache_dir=None))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", [module for module in MODULES if module != "pneumoscope"])
def test_modules_import_from_modules_and_not_from_the_public_names(module: str) -> None:
    imported = set(imports_in(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    names = {name for source, name in imported if source == "pneumoscope"}
    assert {name for name in names if f"pneumoscope.{name}" not in MODULES} <= {"__version__"}


def test_a_trained_model_is_used_without_torch() -> None:
    light = [module for module in MODULES if module.split(".")[1:2] and module.split(".")[1] in WITHOUT_TORCH]
    assert {module.split(".")[1] for module in light} == set(WITHOUT_TORCH)
    loaded = run_python(f"import json, sys, {', '.join(light)}\nprint(json.dumps([*sys.modules]))")
    assert {name.split(".")[0] for name in json.loads(loaded)} & {"torch", "torchvision", "timm"} == set()


@pytest.mark.parametrize("module", ["pneumoscope", "pneumoscope.cli.main"])
def test_importing_the_package_loads_nothing_heavy(module: str) -> None:
    loaded = run_python(f"import json, sys, {module}\nprint(json.dumps([*sys.modules]))")
    assert {name.split(".")[0] for name in json.loads(loaded)} & HEAVY == set()


def test_help_of_every_command_loads_nothing_heavy() -> None:
    script = """if True:
        import json, sys
        from typer.main import get_command
        from pneumoscope.cli.main import app, main
        def commands(command, words):
            yield words
            for name, child in getattr(command, "commands", {}).items():
                yield from commands(child, [*words, name])
        codes = []
        for words in [*([*each, "--help"] for each in commands(get_command(app), [])), ["--version"]]:
            sys.argv = ["pneumoscope", *words]
            try:
                main()
            except SystemExit as end:
                codes.append(end.code)
        print(json.dumps([codes, [*sys.modules]]))
        """
    codes, loaded = json.loads(run_python(script))
    assert len(codes) >= 20
    assert set(codes) == {0}
    assert {name.split(".")[0] for name in loaded} & (HEAVY | {"rich"}) == set()


def test_a_first_answer_needs_only_what_predicts(images: Path) -> None:
    image = next(path for path in images.rglob("*") if path.is_file())
    script = f"""if True:
        import json, sys
        from pneumoscope.cli.main import main
        sys.argv = ["pneumoscope", "predict", {str(image)!r}, "--format", "csv"]
        try:
            main()
        except SystemExit as end:
            assert not end.code
        print(json.dumps([*sys.modules]))
        """
    loaded = json.loads(run_python(script).splitlines()[-1])
    unneeded = {"rich", "scipy", "sklearn", "pandas", "torch", "matplotlib", "jinja2", "onnx", "pydicom", "urllib3"}
    assert {name.split(".")[0] for name in loaded} & unneeded == set()
    assert not {"openvino_telemetry", "openvino.tools.ovc", "openvino.tools"} & {*loaded}


def test_every_public_name_is_the_one_of_its_module() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    homes = {name: source for source, name in imports_in(tree) if source.startswith("pneumoscope.")}
    assert set(pneumoscope.__all__) == {*homes, "__version__"}
    assert pneumoscope.__all__ == sorted(pneumoscope.__all__)
    assert dir(pneumoscope) == pneumoscope.__all__
    for name, home in homes.items():
        assert getattr(pneumoscope, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'helper'"):
        _ = pneumoscope.helper


WITHOUT_SCIPY = """
import sys
sys.modules["scipy"] = None
import pneumoscope
from pneumoscope.errors import MissingExtraError
images, out = sys.argv[1:]
predictor = pneumoscope.load("pneumonia-lite0")
samples = pneumoscope.read_samples(images)
assert all(each.error is None for each in predictor.predict(samples))
pneumoscope.explain(samples[0].path, predictor)
found = {}
for name, call in {
    "audit": lambda: pneumoscope.audit(images, out),
    "evaluate": lambda: pneumoscope.evaluate(images, "pneumonia-lite0", out),
    "compare": lambda: pneumoscope.compare([out, out], out),
}.items():
    try:
        call()
    except MissingExtraError as problem:
        found[name] = str(problem)
assert set(found.values()) == {'scipy is not installed: pip install "pneumoscope[evaluate]".'}, found
print(len(found))
"""


def test_prediction_and_explanation_do_without_scipy_and_the_rest_says_what_to_install(
    images: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", WITHOUT_SCIPY, str(images), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["3"]), done.stderr
    assert not (tmp_path / "out").exists()
