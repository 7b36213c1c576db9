"""The doctor finds what is wrong and says what to do."""

import http.server
import os
import threading
import time
from pathlib import Path

import pytest

from facetclip import doctor
from facetclip.doctor import Finding, examine, healthy, render_text


def test_an_examination_looks_at_everything_and_takes_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    began = time.monotonic()
    findings = {finding.name: finding for finding in examine()}
    assert time.monotonic() - began < 10
    wanted = {"python", "torch", "transformers", "deepspeed", "torchvision", "devices", "memory", "disk", "folder"}
    assert wanted | {"compiler", "mlflow", "starter"} <= set(findings)
    assert findings["torch"].state != "wrong"
    assert findings["mlflow"].state == "wrong"
    assert "secret" not in render_text(list(findings.values()))
    assert not list(tmp_path.iterdir())


def test_a_report_lists_what_is_wrong_before_what_is_worth_knowing() -> None:
    fine, note, wrong = Finding("a", "1"), Finding("bb", "2", "note", "look"), Finding("c", "3", "wrong", "mend")
    assert render_text([fine, note, wrong]).splitlines()[-2:] == ["wrong: c: 3; mend", "note: bb: 2; look"]
    assert render_text([fine]).endswith("Nothing is wrong.")
    assert healthy([fine, note])
    assert not healthy([fine, wrong])


def test_a_package_is_held_against_what_is_asked_for_and_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", {"torch": "2.13.0+cpu", "numpy": "1.9", "mlflow": "3.18.0"}.get)
    requirements = ["torch>=2.6", "numpy>=2", "mlflow>=3.17.2", 'pytest; extra == "dev"']
    findings = list(doctor._packages(requirements, {"torch": "2.13.0", "mlflow": "3.17.2"}))
    assert [(finding.name, finding.state) for finding in findings] == [
        ("torch", "ok"),
        ("numpy", "wrong"),
        ("mlflow", "note"),
    ]


def test_a_missing_package_is_wrong_and_a_missing_extra_is_not() -> None:
    findings = doctor._packages(["no-such-package>=1"], {})
    assert [finding.state for finding in findings] == ["wrong"]
    (extra,) = doctor._packages(['deepspeed==0.0.1; extra == "cluster"'], {})
    assert extra.state in ("wrong", "note")


def test_a_torchvision_that_does_not_fit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor._torchvision()
    assert finding.state == "wrong"
    assert "nms" in finding.found
    assert "uninstall" in finding.advice


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 60)
    assert doctor._disk(tmp_path).state == "wrong"
    assert doctor._folder(tmp_path).state == "ok"
    assert doctor._folder(tmp_path / "absent").state == "wrong"


def test_a_missing_compiler_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert doctor._compiler().state == "note"


def test_a_starter_is_looked_for(tmp_path: Path) -> None:
    assert doctor._starter(tmp_path).state == "wrong"
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert doctor._starter(tmp_path).state == "ok"


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers with the status in the port's server."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/health" else 500)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (401, "ok"), (404, "wrong"), (500, "wrong")])
def test_a_server_is_asked_how_it_is(status: int, state: str) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    server.status = status  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        finding = doctor._mlflow(f"http://me:secret@127.0.0.1:{server.server_port}/")
        assert finding.state == state
        assert "secret" not in finding.found
    finally:
        server.shutdown()
        server.server_close()


def test_constraints_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# tested\ntorch==2.13.0\nJinja2==3.1.6\n")
    assert doctor.pinned(tmp_path / "constraints.txt") == {"torch": "2.13.0", "jinja2": "3.1.6"}
    assert doctor.pinned(tmp_path / "absent.txt") == {}
