"""A server with the page, and a visitor who uses it over plain HTTP as the browser does."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn


class PageServer:
    """uvicorn in a thread, on a port of its own."""

    def __init__(self, served: Any):
        self.app = served
        self.server = uvicorn.Server(uvicorn.Config(served, host="127.0.0.1", port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


class Visitor:
    """One open page. `read` and `draw` give what the page's events answer, update by update."""

    def __init__(self, url: str, name: str, auth: tuple[str, str] | None = None):
        self.http = httpx.Client(base_url=url, timeout=60, auth=auth)
        self.name = name
        self.html = self.http.get("/").text
        found = re.search(r"window\.gradio_config = (\{.*?\});</script>", self.html)
        self.config = json.loads(found[1]) if found else {}

    def number(self, event: str) -> int:
        """The number by which the page's script calls an event."""
        return next(d["id"] for d in self.config["dependencies"] if d["api_name"] == event)

    def join(self, event: str, data: list[Any], **more: Any) -> httpx.Response:
        body = {"data": data, "fn_index": self.number(event), "session_hash": self.name, "event_data": None, **more}
        return self.http.post("/gradio_api/queue/join", json=body)

    def events(self, event: str, data: list[Any], **more: Any) -> Iterator[dict[str, Any]]:
        """Start an event, and its messages until it ends."""
        joined = self.join(event, data, **more)
        assert joined.status_code == 200, joined.text
        params = {"session_hash": self.name}
        with self.http.stream("GET", "/gradio_api/queue/data", params=params) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message.get("event_id") in (None, joined.json()["event_id"]):
                        yield message
                    if message["msg"] == "close_stream":
                        return

    def answer(self, event: str, data: list[Any], **more: Any) -> list[Any]:
        """The outputs of an event that gives them once."""
        done = [message for message in self.events(event, data, **more) if message["msg"] == "process_completed"]
        assert done[0]["success"], done[0]
        return done[0]["output"]["data"]

    def read(self, text: str, *pictures: Path) -> dict[str, Any]:
        """What the page shows of a box: text of the box, HTML, placeholders, the button's label."""
        box = {"text": text, "files": [self.send(picture) for picture in pictures]}
        names = ("box", "sent", "html", "seed", "steps", "hires", "draw")
        return dict(zip(names, self.answer("read", [box, None])))

    def send(self, picture: Path) -> dict[str, Any]:
        """A picture sent as the browser sends it."""
        sent = self.http.post("/gradio_api/upload", files={"files": (picture.name, picture.read_bytes())})
        assert sent.status_code == 200, sent.text
        return {"path": sent.json()[0], "orig_name": picture.name, "meta": {"_type": "gradio.FileData"}}

    def draw(
        self,
        text: str,
        seed: float | None = None,
        steps: float | None = None,
        hires: str = "as written",
        before: list[Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Draw; what the page shows, update by update."""
        names = ("status", "pictures", "text", "download", "result", "draw", "stop")
        box, shown = {"text": text, "files": []}, [None] * len(names)
        for message in self.events("draw", [box, None, seed, steps, hires, before]):
            if message["msg"] in ("process_generating", "process_completed") and message["output"].get("data"):
                for place, value in enumerate(message["output"]["data"]):
                    shown[place] = _patched(shown[place], value)
                yield dict(zip(names, shown))

    def drawn(self, text: str, **changes: Any) -> dict[str, Any]:
        """What the page shows at the end of drawing."""
        return list(self.draw(text, **changes))[-1]

    def file(self, shown: dict[str, Any]) -> bytes:
        """A picture that the page shows, as its address gives it."""
        return self.http.get(f"/gradio_api/file={shown['path']}").raise_for_status().content


def _patched(before: Any, value: Any) -> Any:
    """After the first update Gradio sends what has changed: [["replace", [keys …], value], …]."""
    if not (isinstance(value, list) and all(isinstance(one, list) and len(one) == 3 for one in value)):
        return value
    for action, keys, new in value:
        if not keys:
            before = new
            continue
        inner = before
        for key in keys[:-1]:
            inner = inner[key]
        if action == "delete":
            del inner[keys[-1]]
        elif action == "append":
            inner[keys[-1]] += new
        elif action == "add" and isinstance(inner, list):
            inner.insert(keys[-1], new)
        else:
            inner[keys[-1]] = new
    return before
