"""The command line as a process: exit codes, messages without tracebacks, what gets imported."""

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.processes.console import summary
from engine.messages import ModelInfo
from tests.app.server_process import GOLDEN, ROOT, SERVE_ECHO, SERVER, environment, finish, serving
from tests.engine.checkpoints import write_checkpoint
from tests.tiers import tiered

CHAT_WEB = [sys.executable, "-m", "app.chat_web"]


@pytest.mark.parametrize("program", [SERVER, CHAT_WEB])
def test_an_unknown_flag_is_2_with_a_suggestion(program: list[str]) -> None:
    done = finish([*program, "--batchsize", "4"])
    assert done.returncode == 2
    assert "did you mean --batch-size?" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_bad_value_is_2_and_names_its_place() -> None:
    done = finish([*SERVER, "--port", "-7"])
    assert (done.returncode, "--port" in done.stderr) == (2, True)
    done = finish(SERVER, APP_BATCH_SIZE="many")
    assert (done.returncode, "APP_BATCH_SIZE" in done.stderr) == (2, True)
    done = finish([*SERVER, "--host", "192.0.2.1"])
    assert (done.returncode, "--host" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_help_version_and_print_config() -> None:
    done = finish([*SERVER, "--help"])
    assert done.returncode == 0 and "--batch-timeout-ms" in done.stdout
    done = finish([*SERVER, "--version"])
    assert done.returncode == 0 and done.stdout.startswith("fastpath ")
    done = finish([*SERVER, "--print-config", "--batch-size", "5"], APP_PORT="77")
    assert done.returncode == 0
    assert "batch_size = 5" in done.stdout and "port = 77" in done.stdout


def test_a_closed_output_is_no_traceback() -> None:
    with subprocess.Popen(
        [*SERVER, "--help"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_port_in_use_is_98_at_once_in_plain_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = finish([*SERVER, "--model", "/does/not/exist", "--port", port])
    assert done.returncode == 98
    assert done.stderr.startswith(f"Port {port} on 127.0.0.1 is in use")
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_the_engine_refuses_is_3() -> None:
    done = finish([*SERVE_ECHO, "--fail", "there is nothing at /nowhere", "--", "--port", "0"])
    assert done.returncode == 3
    assert "there is nothing at /nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_model_path_is_3_with_the_real_engine() -> None:
    done = finish([*SERVER, "/does/not/exist", "--port", "0"])
    assert done.returncode == 3
    assert "/does/not/exist does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_with_the_real_engine() -> None:
    flags = ["--dry-run", "--threads", "1", "--served-model-name", "tiny", "other"]
    done = finish([*SERVER, str(GOLDEN), *flags])
    assert done.returncode == 0, done.stderr
    assert "model tiny (G1" in done.stdout
    assert "KV cache:" in done.stdout


@pytest.mark.parametrize("transport", tiered(["process", "inline"], {0}))
def test_the_real_engine_answers(transport: str, tmp_path: Path) -> None:
    recommended = {"temperature": 0.7, "top_k": 40}
    write_checkpoint(tmp_path, "G1", layout="safetensors", meta={"sampling_defaults": recommended})
    flags = ["--model", str(tmp_path), "--threads", "1", "--dtype", "float32", "--engine", transport]
    with serving(SERVER, *flags) as server:
        answer = server.ask([97, 98, 99], stream=False)
        assert answer.status == 200
        assert json.loads(answer.read())["usage"]["completion_tokens"] > 0
        with contextlib.closing(server.connect()) as connection:
            connection.request("GET", "/v1/models")
            (card,) = json.loads(connection.getresponse().read())["data"]
        assert repr(card["meta"]["sampling_defaults"]) == repr(recommended)
        server.signal(15)
        assert server.wait() == 0


def test_the_front_end_never_imports_torch() -> None:
    code = (
        "import sys, app.__main__, app.chat_web; "
        "import app.processes.serve, app.routes.server, app.processes.inline; "
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = finish([sys.executable, "-c", code])
    assert done.stdout.strip() == "[]", done.stderr


def test_usage_loads_no_web_library() -> None:
    code = "import sys, app.__main__ as m; m.main(['--help']); sys.exit('uvicorn' in sys.modules)"
    assert finish([sys.executable, "-c", code]).returncode == 0


def test_kernels_says_what_is_used_and_why_the_rest_is_not() -> None:
    done = finish([*SERVER, "kernels", "--json", "--device", "cpu"])
    assert done.returncode == 0, done.stderr
    choices = {choice["op"]: choice for choice in json.loads(done.stdout)["choices"]}
    assert choices["attention.decode"]["name"] == "torch"
    assert all(choice["why"] for choice in choices.values())
    rejected = dict(choices["linear"]["rejected"])
    assert "CUDA" in rejected["skinny"] and "CUDA" in rejected["cublas"]


def test_the_start_up_table_leaves_out_flags_that_nobody_asked_for() -> None:
    info = ModelInfo(
        name="a model",
        path="nowhere",
        generation="G1",
        vocab_size=512,
        max_model_len=64,
        terminal_ids=[0],
        max_rows=1,
        block_size=16,
        num_blocks=4,
        device="cpu",
        dtype="float32",
        parameters=1000,
        features=[
            ("use_flash3", "auto", "off", "needs a CUDA device"),
            ("use_padded_attention", "True", "off", "rows are paged"),
            ("kv_block_size", "auto", "16", "the engine's default"),
            ("prefill stretch", "auto", "off", "2048 tokens a step"),
        ],
    )
    text = "\n".join(summary(info))
    assert "use_flash3" not in text
    assert all(name in text for name in ("use_padded_attention", "kv_block_size", "prefill stretch"))
