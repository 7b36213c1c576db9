"""A real server, as `mlflow models serve` starts it, asked over real HTTP (nightly: it starts in half a minute)."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_shop import make_reader, photo
from test_images import BAD

from facetclip.model import save_model
from facetclip.pyfunc_model import MOST_TEXT
from facetclip.registry import register

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore:Corrupt EXIF")]
PATIENCE = 180.0  # seconds for the server to start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        assert register(save_model(make_reader(), folder / "model"), name="shop") == "1"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["models", "serve", "-m", "models:/shop@challenger", "--env-manager", "local", "--host", "127.0.0.1"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # MLflow starts uvicorn
        command = [sys.executable, "-m", "mlflow", *words, "--port", str(port)]
        with (folder / "log").open("w") as log:
            served = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=environment)
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while not answering(url):
            assert served.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield url
        os.killpg(served.pid, signal.SIGKILL)
        served.wait()


def answering(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/ping", timeout=5).status == 200
    except OSError:
        return False


def asked(url: str, *cells: str) -> list[dict[str, Any]]:
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[cell] for cell in cells]}}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer, parse_constant=pytest.fail)["predictions"]  # NaN is no JSON


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def test_every_bad_image_gets_its_reason_and_the_server_lives_on(server: str) -> None:
    named = {name: (data, code) for name, (data, code) in BAD.items() if data}
    rows = asked(server, text(photo(0)), *(text(data) for data, _ in named.values()), text(photo(1)))
    assert len(named) >= 20
    assert rows[0]["error"] is rows[-1]["error"] is None
    assert rows[0]["category"] in ("shirt", "pants")
    for (name, (_, code)), row in zip(named.items(), rows[1:-1], strict=True):
        assert row["error"], name
        assert row["error"].endswith(f"({code})"), (name, row["error"])
        assert row["category"] is None
    alone = asked(server, text(photo(0)))[0]
    assert alone["category"] == rows[0]["category"]
    assert alone["category_probability"] == pytest.approx(rows[0]["category_probability"], abs=1e-5)


def test_two_hundred_requests_at_once_are_all_answered(server: str) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda number: asked(server, text(photo(number % 7))), range(200)))
    print(f"{200 / (time.monotonic() - began):.0f} requests a second")
    first = [rows[0] for rows in found[:7]]
    assert all(rows[0]["error"] is None for rows in found)
    assert all(rows[0] == first[number % 7] for number, rows in enumerate(found))


def test_what_a_request_has_beyond_its_limit_is_refused_row_by_row(server: str) -> None:
    good = text(photo(0))
    rows = asked(server, good, "A" * MOST_TEXT, good)
    assert [row["error"] is None for row in rows] == [True, False, False]
    assert all("too_many_bytes" in row["error"] for row in rows[1:])
    assert asked(server, good)[0]["error"] is None
