"""A server of the webui's API for tests, and what its requests and answers carry."""

import base64
import io
import json
import threading
import time
from typing import Any

import numpy as np
import uvicorn
from PIL import Image


SMALL: dict[str, Any] = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 7}


class Server:
    """uvicorn in a thread, on a port of its own."""

    def __init__(self, served: Any):
        self.app = served
        config = uvicorn.Config(served, host="127.0.0.1", port=0, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def info_of(answer: Any) -> dict[str, Any]:
    """The `info` of an answer to txt2img or img2img, which must be one."""
    assert answer.status_code == 200, answer.text
    return json.loads(answer.json()["info"])


def pixels_of(answer: Any) -> list[np.ndarray]:
    """The pictures of an answer, (h, w, 3) int."""
    assert answer.status_code == 200, answer.text
    return [np.asarray(decoded(text).convert("RGB")).astype(int) for text in answer.json()["images"]]
