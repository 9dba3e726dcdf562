"""What a process of the command line imports, all at once; see `processes`."""

from __future__ import annotations

import jinja2
import matplotlib.backends.backend_svg
import matplotlib.figure
import onnx
import optuna
import scipy.stats
import sklearn.covariance
import timm
import torch.onnx
import uvicorn

import pneumoscope.cli.main
import pneumoscope.cli.output
import pneumoscope.cli.serve
import pneumoscope.cli.train
import pneumoscope.dicomnet.node
import pneumoscope.reports.plots
import pneumoscope.server.app
import pneumoscope.training.train
import pneumoscope.training.tuning
from pneumoscope.inference.runtimes import import_onnxruntime, import_openvino

__all__ = ["jinja2", "matplotlib", "onnx", "optuna", "pneumoscope", "scipy", "sklearn", "timm", "torch", "uvicorn"]

import_onnxruntime()
import_openvino()
