"""All figures of speed in one table, beside those that were committed last.

    make bench   # or: python benchmarks/bench.py [--only train,predict,engines,start,memory,finetune,serve] [--commit]

What is compared takes turns in one run, and ratios are of medians. `--commit` writes docs/performance.json and the
table in docs/performance.md; figures that were not measured stay as they were. All takes about half an hour, and with
`--images 100000` half as much again.
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
BACKBONES = ("efficientnet_lite0", "resnet50", "densenet121")


@dataclass(frozen=True)
class Figure:
    """Something measured.

    Attributes:
        name: what.
        value: how much of it.
        unit: of the value.
        aim: the bound it should keep, such as `≥ 3`; empty where there is none.
        told: what it was made of.
        machine: where.
    """

    name: str
    value: float
    unit: str
    aim: str = ""
    told: str = ""
    machine: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="where the real images are")
    parser.add_argument("--images", type=int, default=10_000, help="how many the peak of memory is measured with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", action="store_true")
    options = parser.parse_args()
    committed = read_record()
    figures: dict[str, Figure] = {}
    console, machine = Console(width=110), describe_machine()
    table = Table("figure", "now", "committed", "change", "aim", box=None, title=machine)
    for section in options.only.split(","):
        for figure in SECTIONS[section](options):
            figures[figure.name] = replace(figure, machine=machine)
            known = committed.get(figure.name)
            before = "" if known is None else f"{known.value:.3g} {known.unit}"
            change = "" if known is None else f"{figure.value / known.value - 1:+.0%}"
            table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", before, change, figure.aim)
            print(f"{figure.name}: {figure.value:.3g} {figure.unit} {figure.told}", flush=True)
            if options.commit:
                write_record(committed | figures)
    console.print(table)


def measure_train(options: argparse.Namespace) -> Iterator[Figure]:
    """(a) Training against the plain loop."""
    plain, ours, _ = train_speed.race(str(options.shared / "seed-400"), 40, max(1, options.rounds - 1))
    slow, fast = statistics.median(plain), statistics.median(ours)
    yield Figure("train against the plain loop", slow / fast, "×", "≥ 60", f"{slow:.1f} s against {fast:.1f} s")


def measure_predict(options: argparse.Namespace) -> Iterator[Figure]:
    """(b) Prediction of 2,000 images against the plain script."""
    for large in (False, True):
        plain, ours = predict_speed.race(options.shared / "kermany-train-224", 2000, options.rounds, large)
        slow, fast = statistics.median(plain), statistics.median(ours)
        name = f"predict, JPEG {'2000 × 1500' if large else '224 × 224'}"
        yield Figure(name, slow / fast, "×", "≥ 3", f"{slow:.1f} s against {fast:.1f} s")


def measure_engines(options: argparse.Namespace) -> Iterator[Figure]:
    """(c) The engines beside the rate of the matrix product."""
    torch.set_num_threads(count_threads())
    roofs = engine_speed.measure_products()
    for kind, rate in roofs.items():
        yield Figure(f"matrix product {kind}", rate / 1e9, "GFLOP/s")
    for name in BACKBONES:
        for engine, seconds, rate in engine_speed.race(find_backbone(name), options.rounds + 2):
            share = rate / roofs["bf16" if "bf16" in engine else "fp32"]
            yield Figure(f"{name}, {engine}", 1 / seconds, "images/s", "", f"{share:.0%} of the product's rate")


def measure_start(options: argparse.Namespace) -> Iterator[Figure]:
    """(d) From process start to answer."""
    image = predict_speed.find_images(options.shared / "seed-400")[0]
    for name, seconds in cold_start.measure(predict_speed.ONNX_MODEL, str(image), options.rounds + 4).items():
        aim = {"`--help`": "≤ 0.15", "`predict` of one image": "≤ 1.5"}.get(name, "")
        yield Figure(name.replace("`", ""), seconds, "s", aim)


def measure_memory(options: argparse.Namespace) -> Iterator[Figure]:
    """(e) The peak of memory with few images and with many."""
    for count in (1000, options.images):
        peak, seconds = predict_speed.measure_memory(options.shared / "kermany-train-224", count)
        yield Figure(f"memory, {count:,} images", peak, "MB", "flat", f"in {seconds:.0f} s")


def measure_finetune(options: argparse.Namespace) -> Iterator[Figure]:
    """(f) Steps of fine-tuning, as the recipes take them, against the usual ones."""
    fastest = finetune_step.measure("efficientnet_lite0", rounds=options.rounds + 3)
    ours = min(fastest["folded", False], fastest["folded", True])
    usual = fastest["trained", False]
    yield Figure("finetune, batches of 32", 1000 / 32 / ours, "steps/s")
    yield Figure(
        "finetune against trained batch norms", usual / ours, "×", "", f"{usual:.1f} and {ours:.1f} ms an image"
    )


def measure_serve(options: argparse.Namespace) -> Iterator[Figure]:
    """The reading room under load, against a plain FastAPI service, whichever kind of it is faster."""
    if not service_load.is_wrk_installed():
        return
    found = service_load.race(options.shared, [1, 8, 64], options.rounds, 8)
    for clients in (1, 8, 64):
        ours, *plain = (service_load.summarise(found[name, clients]) for name in service_load.NAMES)
        best = max(plain, key=lambda one: one["rate"])
        told = f"{ours['rate']:.0f} images/s against {best['rate']:.0f}"
        aim = "≥ 3" if clients == 64 else ""
        yield Figure(f"serve, {clients} client{'s' * (clients > 1)}", ours["rate"] / best["rate"], "×", aim, told)
        tail = f"p95 {ours['p95']:.0f}, p99 {ours['p99']:.0f}; plain p50 {best['p50']:.0f}, p99 {best['p99']:.0f}"
        yield Figure(f"serve, {clients}: p50", ours["p50"], "ms", "", tail)
    errors = sum(each["errors"] for clients in (1, 8, 64) for each in found[service_load.NAMES[0], clients])
    yield Figure("serve, errors", errors, "", "0")


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Figure]]] = {
    "start": measure_start,
    "engines": measure_engines,
    "finetune": measure_finetune,
    "predict": measure_predict,
    "train": measure_train,
    "memory": measure_memory,
    "serve": measure_serve,
}


def describe_machine() -> str:
    """Processor, what it can do, and versions."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*:\s*(.*)", told)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in told]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = model[1] if model else platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{count_threads()} cores of {name} ({', '.join(flags)}), {memory:.0f} GiB; {versions}"


def read_record() -> dict[str, Figure]:
    """Figures that were committed, by name."""
    if not RECORD.is_file():
        return {}
    return {one["name"]: Figure(**one) for one in json.loads(RECORD.read_text(encoding="utf-8"))}


def write_record(figures: dict[str, Figure]) -> None:
    """Keep figures, and lay them out in the page."""
    RECORD.write_text(
        json.dumps([asdict(figure) for figure in figures.values()], indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    parts = []
    for machine in dict.fromkeys(one.machine for one in figures.values()):
        parts += [f"{machine}.\n", "| figure | measured | aim | |", "| --- | --- | --- | --- |"]
        parts += [
            f"| {one.name} | {one.value:.3g} {one.unit} | {one.aim} | {one.told} |".replace("  ", " ")
            for one in figures.values()
            if one.machine == machine
        ]
        parts.append("")
    table = "\n".join(parts)
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"(<!-- bench -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
