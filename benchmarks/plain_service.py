"""A service as it is usually written: FastAPI runs the model once a request. `serve` is compared with it.

    PLAIN_MODEL=FOLDER uvicorn plain_service:app   # the function runs in FastAPI's threads
    PLAIN_MODEL=FOLDER uvicorn plain_service:awaited   # it runs on the event loop

The network and its head are those of a pneumoscope model, run by PyTorch as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from fastapi import FastAPI, UploadFile
from PIL import Image

from plain_predict import open_model

NETWORK, TRANSFORM = open_model(Path(os.environ["PLAIN_MODEL"]))
app, awaited = FastAPI(), FastAPI()


@app.post("/v1/predictions")
def predict(files: UploadFile) -> dict[str, float]:
    return classify(files)


@awaited.post("/v1/predictions")
async def predict_awaited(files: UploadFile) -> dict[str, float]:
    return classify(files)


def classify(files: UploadFile) -> dict[str, float]:
    inputs = TRANSFORM(Image.open(files.file).convert("RGB"))[None]
    with torch.no_grad():
        return {"probability": float(torch.sigmoid(NETWORK(inputs))[0, -1])}
