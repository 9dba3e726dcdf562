"""All measurements of speed in one table, compared with the last committed ones.

    make bench   # or: python benchmarks/bench.py [--only train,predict,engines,start,memory,finetune,serve] [--commit]

Programs that are compared take turns in one run; ratios are of medians. `--commit` writes docs/performance.json and the
table in docs/performance.md; what was not measured stays as it was. A run takes about half an hour, with
`--images 100000` about 45 minutes. A section whose images or program are missing is skipped, and the reason printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import cold_start
import engine_speed
import finetune_step
import predict_speed
import service_load
import train_speed
from pneumoscope.inference.runtimes import count_threads
from pneumoscope.models.backbones import find_backbone

RECORD = Path("docs/performance.json")
PAGE = Path("docs/performance.md")
DATA = {  # the images that a section needs
    "start": "seed-400",
    "predict": "kermany-train-224",
    "train": "seed-400",
    "memory": "kermany-train-224",
    "serve": "seed-400",
}
BACKBONES = ("efficientnet_lite0", "resnet50", "densenet121")


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        name: what was measured.
        value: the result.
        unit: of the value.
        aim: the bound that it should meet, such as `≥ 3`; empty if there is none.
        note: what it was calculated from.
        machine: where it was measured.
    """

    name: str
    value: float
    unit: str
    aim: str = ""
    note: str = ""
    machine: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="where the real images are")
    parser.add_argument("--images", type=int, default=10_000, help="number of images of the memory measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", action="store_true")
    options = parser.parse_args()
    sections = options.only.split(",")
    if unknown := [section for section in sections if section not in SECTIONS]:
        parser.error(f"--only: no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    committed = read_record()
    measurements: dict[str, Measurement] = {}
    console, machine = Console(width=110), describe_machine()
    table = Table("measurement", "now", "committed", "change", "aim", box=None, title=machine)
    for section in sections:
        if missing := find_missing(section, options.shared):
            print(f"{section}: skipped: {missing}", flush=True)
            continue
        for measurement in SECTIONS[section](options):
            measurements[measurement.name] = replace(measurement, machine=machine)
            last = committed.get(measurement.name)
            before = "" if last is None else f"{last.value:.3g} {last.unit}"
            change = "" if last is None or not last.value else f"{measurement.value / last.value - 1:+.0%}"
            now = f"{measurement.value:.3g} {measurement.unit}"
            table.add_row(measurement.name, now, before, change, measurement.aim)
            print(f"{measurement.name}: {now} {measurement.note}", flush=True)
            if options.commit:
                write_record(committed | measurements)
    console.print(table)


def find_missing(section: str, shared: Path) -> str:
    """What a section lacks to be measured; empty if nothing."""
    folder = shared / DATA.get(section, "")
    if section in DATA and not folder.is_dir():
        return f"there are no images at {folder}; give their folder's parent as --shared."
    if section == "engines" and find_spec("openvino") is None:
        return "OpenVINO is not installed. Try: pip install openvino"
    return service_load.explain_missing_wrk() if section == "serve" else ""


def measure_train(options: argparse.Namespace) -> Iterator[Measurement]:
    """(a) Training against the plain loop."""
    plain, ours, _ = train_speed.race(str(options.shared / "seed-400"), 40, max(1, options.rounds - 1))
    slow, fast = statistics.median(plain), statistics.median(ours)
    yield Measurement("train against the plain loop", slow / fast, "×", "≥ 60", f"{slow:.1f} s against {fast:.1f} s")


def measure_predict(options: argparse.Namespace) -> Iterator[Measurement]:
    """(b) Prediction of 2,000 images against the plain script."""
    for large in (False, True):
        plain, ours = predict_speed.race(options.shared / "kermany-train-224", 2000, options.rounds, large)
        slow, fast = statistics.median(plain), statistics.median(ours)
        name = f"predict, JPEG {'2000 × 1500' if large else '224 × 224'}"
        yield Measurement(name, slow / fast, "×", "≥ 4" if large else "≥ 6", f"{slow:.1f} s against {fast:.1f} s")


def measure_engines(options: argparse.Namespace) -> Iterator[Measurement]:
    """(c) The engines, compared with the rate of matrix products."""
    torch.set_num_threads(count_threads())
    roofs = engine_speed.measure_products()
    for kind, rate in roofs.items():
        yield Measurement(f"matrix product {kind}", rate / 1e9, "GFLOP/s")
    for name in BACKBONES:
        for engine, seconds, rate in engine_speed.race(find_backbone(name), options.rounds + 2):
            share = rate / roofs["bf16" if "bf16" in engine else "fp32"]
            yield Measurement(f"{name}, {engine}", 1 / seconds, "images/s", "", f"{share:.0%} of the matrix product")


def measure_start(options: argparse.Namespace) -> Iterator[Measurement]:
    """(d) From the start of the process to its answer."""
    image = predict_speed.find_images(options.shared / "seed-400")[0]
    for name, seconds in cold_start.measure(predict_speed.MODEL, str(image), options.rounds + 4).items():
        aim = {"`--help`": "≤ 0.12", "`predict` of one image": "≤ 0.6"}.get(name, "")
        yield Measurement(name.replace("`", ""), seconds, "s", aim)


def measure_memory(options: argparse.Namespace) -> Iterator[Measurement]:
    """(e) Peak memory with few images and with many."""
    for count in (1000, options.images):
        peak, seconds = predict_speed.measure_memory(options.shared / "kermany-train-224", count)
        yield Measurement(f"memory, {count:,} images", peak, "MB", "flat", f"in {seconds:.0f} s")


def measure_finetune(options: argparse.Namespace) -> Iterator[Measurement]:
    """(f) Fine-tuning steps of the recipes against the usual ones."""
    fastest = finetune_step.measure("efficientnet_lite0", rounds=options.rounds + 3)
    ours = min(fastest["folded", False], fastest["folded", True])
    usual = fastest["trained", False]
    yield Measurement("finetune, batches of 32", 1000 / 32 / ours, "steps/s")
    yield Measurement(
        "finetune against trained batch norms", usual / ours, "×", "", f"{usual:.1f} and {ours:.1f} ms per image"
    )


def measure_serve(options: argparse.Namespace) -> Iterator[Measurement]:
    """The service under load, against the faster one of two plain FastAPI services."""
    results = service_load.race(options.shared, [1, 8, 64], options.rounds, 8)
    for clients in (1, 8, 64):
        ours, *plain = (service_load.summarise(results[name, clients]) for name in service_load.NAMES)
        best = max(plain, key=lambda one: one["rate"])
        note = f"{ours['rate']:.0f} images/s against {best['rate']:.0f}"
        aim = "≥ 4" if clients == 64 else ""
        yield Measurement(f"serve, {clients} client{'s' * (clients > 1)}", ours["rate"] / best["rate"], "×", aim, note)
        tail = f"p95 {ours['p95']:.0f}, p99 {ours['p99']:.0f}; plain p50 {best['p50']:.0f}, p99 {best['p99']:.0f}"
        yield Measurement(f"serve, {clients}: p50", ours["p50"], "ms", "", tail)
    errors = sum(each["errors"] for clients in (1, 8, 64) for each in results[service_load.NAMES[0], clients])
    yield Measurement("serve, errors", errors, "", "0")


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Measurement]]] = {
    "start": measure_start,
    "engines": measure_engines,
    "finetune": measure_finetune,
    "predict": measure_predict,
    "train": measure_train,
    "memory": measure_memory,
    "serve": measure_serve,
}


def describe_machine() -> str:
    """Processor, its instruction sets, memory, and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*:\s*(.*)", cpuinfo)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in cpuinfo]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = model[1] if model else platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{count_threads()} cores of {name} ({', '.join(flags)}), {memory:.0f} GiB; {versions}"


def read_record() -> dict[str, Measurement]:
    """The committed measurements, by name."""
    if not RECORD.is_file():
        return {}
    return {row["name"]: Measurement(**row) for row in json.loads(RECORD.read_text(encoding="utf-8"))}


def write_record(measurements: dict[str, Measurement]) -> None:
    """Write the measurements as JSON and as the table of the page."""
    rows = [asdict(measurement) for measurement in measurements.values()]
    RECORD.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = []
    for machine in dict.fromkeys(each.machine for each in measurements.values()):
        parts += [f"{machine}.\n", "| measurement | result | aim | |", "| --- | --- | --- | --- |"]
        parts += [
            f"| {each.name} | {each.value:.3g} {each.unit} | {each.aim} | {each.note} |".replace("  ", " ")
            for each in measurements.values()
            if each.machine == machine
        ]
        parts.append("")
    table = "\n".join(parts)
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(
        r"(<!-- bench -->\n).*?(<!-- end -->)", lambda match: f"{match[1]}{table}\n{match[2]}", page, flags=re.DOTALL
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
