"""Writes the graphs of the backbones whose weights come with a package, into `src/pneumoscope/models/graphs`.

    python benchmarks/store_graphs.py

With them, a backbone runs without timm and without tracing. `tests/models/test_stored_backbone.py` compares them with
the networks.
"""

from __future__ import annotations

from pathlib import Path

from pneumoscope.models.backbones import build_backbone, list_backbones
from pneumoscope.models.onnx_graphs import trace_graph
from pneumoscope.models.stored_backbone import store_graph

FOLDER = Path(__file__).parents[1] / "src" / "pneumoscope" / "models" / "graphs"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for spec in list_backbones():
        if spec.package and not spec.arguments:
            backbone, size = build_backbone(spec).eval(), spec.input.size
            for tensor in backbone.state_dict().values():  # equal weights would become one in the graph
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
            path = FOLDER / f"{spec.architecture}.onnx"
            path.write_bytes(store_graph(trace_graph(backbone, size), backbone, size))
            print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
