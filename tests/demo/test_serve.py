"""The server: password, options, signals and its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx
import pytest
import torch
from gradio_client import Client, handle_file

from demo.inputs import FAST, picture
from fp_lightning.cli.main import main as cli
from fp_lightning.demo.serve import served, without_proxies


def test_proxies_are_hidden_while_the_server_asks_itself(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks9://nowhere")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with without_proxies():
        assert not {"http_proxy", "ALL_PROXY"} & set(os.environ)
    assert os.environ["http_proxy"] == "socks9://nowhere" and os.environ["ALL_PROXY"] == "http://127.0.0.1:9"


def test_a_password_is_required_and_no_file_remains(tmp_path, monkeypatch):
    before = os.environ.get("GRADIO_TEMP_DIR")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # it starts behind a proxy that does not answer
    with served(port=0, password="right") as running:
        monkeypatch.delenv("http_proxy")
        assert httpx.get(f"{running.url}gradio_api/info").status_code == 401
        with pytest.raises(Exception, match="(?i)auth|login|credential"):
            Client(running.url, auth=("editor", "wrong"), verbose=False)
        client = Client(running.url, auth=("editor", "right"), verbose=False, download_files=str(tmp_path))
        picture(48, 32).save(tmp_path / "a.png")
        inputs = {"points": [[5, 5, 30, 20]], "settings": FAST, "api_name": "/edit"}
        assert len(client.predict(handle_file(str(tmp_path / "a.png")), **inputs)) == 2
        folder = running.folder
        assert any(folder.rglob("*.png"))
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before


def test_without_gradio_the_command_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "demo"])
    assert cli() == 1
    assert "pip install 'fp-lightning[demo]'" in capsys.readouterr().err


def test_a_taken_port_raises_one_line(server, monkeypatch, capsys):
    port = server.url.rstrip("/").rsplit(":", 1)[1]
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "demo", "--port", port])
    assert cli() == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A server for each signal. Both start at once, because starting takes most of the time."""
    started = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path_factory.mktemp("server")
        command = [sys.executable, "-u", "-m", "fp_lightning", "demo", "--port", "0", "--host", "0.0.0.0"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        started[number] = (process, folder)
    yield started
    for process, _ in started.values():
        process.kill()


def lines_until(process: subprocess.Popen, word: str) -> list[str]:
    lines = []
    while not lines or word not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return lines


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_public_server_has_a_password_and_a_signal_removes_its_files(processes, number, status):
    process, folder = processes[number]
    try:
        printed = "".join(lines_until(process, "password:"))
        assert "anyone who can reach this machine can reach it" in printed and "User name: editor" in printed
        assert list(folder.glob("fp_lightning-demo-*"))
    finally:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err
    assert not list(folder.glob("fp_lightning-demo-*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "nowhere/at/all"), "nowhere/at/all"),
        (("--device", "cuda"), "torch finds no GPU"),
        (("--queue", "0"), "the queue's limits must be 1 or more"),
        (("--keep-hours", "0"), "more than 0 hours"),
        (("--max-megabytes", "-1"), "--max-megabytes must be above 0"),
        (("--password", "a", "--no-password"), "exclude each other"),
        (("--host", "256.0.0.1"), "cannot be used; choose another"),
    ],
)
def test_bad_options_raise_one_line(monkeypatch, capsys, words, message):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["fp-lightning", "demo", "--port", "0", *words])
    assert cli() == 1
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1] and "Traceback" not in err
