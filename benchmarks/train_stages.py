"""Where the time of a training goes, stage by stage, for one version of the code or several.

    python benchmarks/train_stages.py [--data ../shared/data/seed-400] [--rounds 3] [--source old=FOLDER]...

`FOLDER` holds the package `pneumoscope` of another version, as `git archive COMMIT src | tar -x -C …` gives it. All
versions take turns, each run is a process with an empty cache, and the table has medians in milliseconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

STAGES = {
    "pneumoscope.training.data:read": "settings, data and weights are read",
    "pneumoscope.training.data:prepare_computing": "the network is compiled",
    "pneumoscope.training.data:extract": "features are extracted",
    "pneumoscope.training.remarks:check_data": "the data are checked",
    "pneumoscope.training.train:fit": "the head is trained",
    "pneumoscope.training.train:decide": "decisions are fitted",
    "pneumoscope.training.train:save": "the model is saved",
    "pneumoscope.training.train:evaluate": "the test split is evaluated, and the report written",
}
NESTED = {
    "pneumoscope.evaluation.validation:measure_validation": "… of which metrics of the validation split",
    "pneumoscope.evaluation.evaluate:measure": "… of which metrics of the test split",
    "pneumoscope.reports.report:write_report": "… of which the report",
    "pneumoscope.reports.model_card:write_model_card": "… of which the model card",
}
IMPORTS = "imports up to the training"
END = "end of the process"
WHOLE = "whole process"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/seed-400")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.data, options.epochs, Path(options.child))
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    sources = dict(each.partition("=")[::2] for each in options.source)
    sources["this version"] = str(Path(__file__).parents[1] / "src")
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in sources}
    for number in range(options.rounds + 1):
        for name, source in sources.items():
            stages = run(options.data, options.epochs, source)
            if number:  # the first round writes bytecode, and reads files into memory
                found[name].append(stages)
    print_table(found)


def run(data: str, epochs: int, source: str) -> dict[str, list[float]]:
    """Seconds of wall time and of processor time by stage, of one process."""
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        command = [sys.executable, __file__, "--data", data, "--epochs", str(epochs), "--child", str(times)]
        environment = {**os.environ, "PYTHONPATH": source, "PNEUMOSCOPE_CACHE": f"{folder}/cache"}
        before = os.times()
        start = time.time()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        end = time.time()
        after = os.times()
        stages: dict[str, list[float]] = json.loads(times.read_text())
    used = after.children_user + after.children_system - before.children_user - before.children_system
    began, read, returned, spent = *stages.pop("began"), *stages.pop("returned")
    stages[IMPORTS] = [began - start, read]
    stages[END] = [end - returned, used - spent]
    stages[WHOLE] = [end - start, used]
    return stages


def run_child(data: str, epochs: int, times: Path) -> None:
    """Train as the command does, with a clock at each stage."""
    stages: dict[str, list[float]] = {}
    sys.meta_path.insert(0, Watcher(stages))
    from pneumoscope.cli.main import main as run_command

    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["pneumoscope", "train", data, "--recipe", "baseline", "--out", f"{folder}/run", "--no-cache"]
        sys.argv += ["--epochs", str(epochs), "--patience", str(epochs)]
        try:
            run_command()
        except SystemExit as end:
            if end.code:
                raise
    stages["returned"] = [time.time(), time.process_time()]
    times.write_text(json.dumps(stages))


class Watcher:
    """Watches the functions of all stages as soon as the command has imported the training."""

    def __init__(self, stages: dict[str, list[float]]) -> None:
        self.stages = stages

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Return the training module's spec, whose loader adds the clocks."""
        if name != "pneumoscope.training.train":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_watch(module: ModuleType) -> None:
            load(module)
            self.stages["began"] = [time.time(), time.process_time()]
            for function in [*STAGES, *NESTED]:
                watch(function, self.stages)

        vars(spec.loader)["exec_module"] = load_and_watch
        return spec


def watch(function: str, stages: dict[str, list[float]]) -> None:
    """Replace a function, wherever a module has it, by one that notes its times. A version may lack it."""
    name, _, attribute = function.partition(":")
    original: Callable[..., Any] | None = getattr(sys.modules.get(name), attribute, None)
    if original is None:
        return

    @wraps(original)
    def timed(*args: Any, **options: Any) -> Any:
        start, used = time.time(), time.process_time()
        try:
            return original(*args, **options)
        finally:
            seconds = stages.setdefault(function, [0.0, 0.0])
            seconds[0] += time.time() - start
            seconds[1] += time.process_time() - used

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pneumoscope"):
            for other, value in list(vars(module).items()):
                if value is original:
                    setattr(module, other, timed)


def print_table(found: dict[str, list[dict[str, list[float]]]]) -> None:
    """Medians in milliseconds: wall time, and processor time of all threads in brackets."""
    names = {IMPORTS: IMPORTS, **STAGES, **NESTED, END: END, WHOLE: WHOLE}
    print("| stage | " + " | ".join(found) + " |\n| --- |" + " --- |" * len(found))
    for function, name in names.items():
        cells = []
        for rounds in found.values():
            times = [each[function] for each in rounds if function in each]
            wall, processor = (1000 * statistics.median(each) for each in zip(*times, strict=True)) if times else (0, 0)
            cells.append(f"{wall:.0f} ({processor:.0f})" if times else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
