"""A service as it is usually written: FastAPI calls the model once a request. What `serve` is measured by.

    PLAIN_MODEL=FOLDER uvicorn plain_service:app   # the function runs in FastAPI's threads
    PLAIN_MODEL=FOLDER uvicorn plain_service:awaited   # it runs on the event loop

The network and its head are those of a model of ours, run by PyTorch as it comes.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from fastapi import FastAPI, UploadFile
from PIL import Image

from plain_predict import open_model

ONNX_MODEL, LOOK = open_model(Path(os.environ["PLAIN_MODEL"]))
app, awaited = FastAPI(), FastAPI()


@app.post("/v1/predictions")
def predict(files: UploadFile) -> dict[str, float]:
    return judge(files)


@awaited.post("/v1/predictions")
async def predict_awaited(files: UploadFile) -> dict[str, float]:
    return judge(files)


def judge(files: UploadFile) -> dict[str, float]:
    inputs = LOOK(Image.open(files.file).convert("RGB"))[None]
    with torch.no_grad():
        return {"probability": float(torch.sigmoid(ONNX_MODEL(inputs))[0, -1])}
