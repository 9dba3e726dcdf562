#!/usr/bin/env bash
# Speed on a machine with a GPU, in under 8 minutes: bash benchmarks/gpu.sh [OPTIONS OF gpu_speed.py]
# It needs the development environment (make .venv/installed-dev), or PYTHON with the same packages.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 480 "${PYTHON:-.venv/bin/python}" benchmarks/gpu_speed.py "$@"
