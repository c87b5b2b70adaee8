"""A MONAI Label server as a user starts it: one app, one bundle in it, a folder of studies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import requests
import torch
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).parents[2] / "bundles"


@dataclass
class Server:
    """A server that answers.

    Args:
        url: where.
        log: file of what it prints.
        group: its process group, to which its trainings belong too.
    """

    url: str
    log: Path
    group: int

    def get(self, path: str, **query: Any) -> Any:
        """JSON answer of a GET."""
        return self._answer(requests.get(self.url + path, params=query, timeout=60)).json()

    def submit_label(self, image: str, path: Path) -> None:
        """Hand in a finished mask, as a viewer does."""
        with path.open("rb") as file:
            query = {"image": image, "tag": "final"}
            self._answer(requests.put(f"{self.url}/datastore/label", params=query, files={"label": file}, timeout=60))

    def ask(self, model: str, output: str, file: Path | None = None, image: str = "", **parameters: Any) -> Any:
        """What a model says of a study, or of a file that is sent along: JSON, or the bytes of an image."""
        query = {"image": image, "output": output}
        files = None if file is None else {"file": (file.name, file.read_bytes())}
        data = {"params": json.dumps(parameters)}
        answer = requests.post(f"{self.url}/infer/{model}", params=query, data=data, files=files, timeout=600)
        return self._answer(answer).json() if output == "json" else self._answer(answer).content

    def infer(self, model: str, image: str, folder: Path) -> nib.Nifti1Image:
        """Mask of a study."""
        query = {"image": image, "output": "image"}
        answer = self._answer(requests.post(f"{self.url}/infer/{model}", params=query, timeout=600))
        path = folder / f"{image}_{time.time_ns()}.nii.gz"
        path.write_bytes(answer.content)
        return nib.load(path)

    def train(self, model: str, seconds: float = 900, **settings: Any) -> str:
        """Train in the background, as a viewer does, and wait; returns `DONE` or `ERROR`."""
        self._answer(requests.post(f"{self.url}/train/{model}", json=settings, timeout=60))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.get("/train/")["status"]
            if status not in ("SUBMITTED", "RUNNING"):
                return status
            time.sleep(1)
        raise TimeoutError(f"training took more than {seconds:.0f} s; see {self.log}")

    def _answer(self, answer: requests.Response) -> requests.Response:
        assert answer.ok, (
            f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text}\n{self.last_lines()}"
        )
        return answer

    def last_lines(self, number: int = 60) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-number:])


def make_app(folder: Path, bundle: Path, name: str) -> Path:
    """Copy MONAI Label's app for bundles, and the bundle into it, with random weights where it has none."""
    command = [sys.executable, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle"]
    subprocess.run([*command, "--output", str(folder)], check=True, capture_output=True)
    app = folder / "monaibundle"
    copied = shutil.copytree(bundle, app / "model" / name)
    if not (copied / "models" / "model.pt").exists():
        write_untrained(copied)
    return app


def write_untrained(bundle: Path) -> None:
    """Give a bundle that comes without weights those of a network that was never trained."""
    configs = {name: read_config(bundle, name) for name in ("train", "inference")}
    torch.manual_seed(0)
    network = configs["inference"].get_parsed_content("network_def")
    encoder = network.get_submodule(configs["train"]["network_def"].get("module", ""))
    (bundle / "models" / "pretrained").mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    torch.save(encoder.state_dict(), bundle / "models" / "pretrained" / "encoder.pt")


def read_config(bundle: Path, name: str) -> ConfigParser:
    """A config of the bundle, its network without weights."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / f"{name}.json")
    parser["bundle_root"] = str(bundle)
    if "path" in parser["network_def"]:
        parser["network_def"]["path"] = ""
    return parser


@contextlib.contextmanager
def serve(app: Path, studies: Path, model: str, seconds: float = 180) -> Iterator[Server]:
    """Start a server on a free port of 127.0.0.1; whatever happens, it and all that it started end with the block."""
    port = _free_port()
    log = app.parent / "server.log"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--conf", "models", model, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # a termination from outside must end the server as well: it becomes an exception like Ctrl-C
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    environment = {**os.environ, "MONAI_LABEL_SESSION_PATH": str(app.parent / "sessions")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=app.parent,
            env=environment,
            start_new_session=True,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", log, process.pid)
        _wait(server, process, seconds)
        yield server
    finally:
        stop(process)
        signal.signal(signal.SIGTERM, before)


def stop(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """End a process and its whole group; kill what does not end in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def alive(group: int) -> bool:
    """Whether any process of the group exists."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(server: Server, process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}:\n{server.last_lines()}")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{server.url}/info/", timeout=10).ok:
                return
        time.sleep(0.5)
    raise TimeoutError(f"the server did not answer in {seconds:.0f} s:\n{server.last_lines()}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
