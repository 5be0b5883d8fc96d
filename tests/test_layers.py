"""The folders' import rules, as the table in docs/architecture.md states them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = {"app", "engine", "kernels", "static", "models", "training", "benchmarks", "tests"}
ENGINE_FOR_APP = ("engine.messages", "engine.text", "engine.flags")
# Each imports of app/ only itself and those before it.
APP_FOLDERS = ("settings", "http", "telemetry", "requests", "admission", "answers", "routes", "processes")
LAZY_EXCEPTION = "app/processes/inline.py"  # `--engine inline` runs the engine in the server's own loop
TORCH_FREE = [
    "engine",
    "engine.messages",
    "engine.messages.finding",
    "engine.text",
    "engine.flags",
    "engine.config",
    "engine.sequence",
    "engine.blocks",
    "engine.prefix",
    "engine.plan",
    "engine.queue",
    "engine.scheduler",
    "engine.scheduling",
    "engine.estimator",
    "engine.trace",
    "engine.faults",
    "engine.links",
    "engine.llama_config",
    "engine.calculator",
    "engine.tools",
    "engine.checkpoint",
    "engine.detect",
    "engine.transformers_format",
    "engine.terminals",
    "engine.worker",
    "app.__main__",
    "app.routes.server",
    "app.processes.serve",
    "app.processes.supervisor",
    "app.processes.fleet",
    "app.processes.front",
    "app.chat_web",
    "app.chat.main",
    "app.survey",
]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of the code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in PROJECT}
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def project_imports(folder: str) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), name)
        for path in sources(folder)
        for name in sorted(imports(path))
        if name.split(".")[0] in PROJECT | {"torch", "transformers"}
    ]


def test_app_reaches_only_the_torch_free_engine() -> None:
    for path, name in project_imports("app"):
        if path == LAZY_EXCEPTION or name.split(".")[0] in ("app", "static", "models"):
            continue
        assert name.startswith(ENGINE_FOR_APP) or name == "engine", f"{path} imports {name}"


def test_the_folders_of_app_point_downwards() -> None:
    for number, folder in enumerate(APP_FOLDERS):
        for path, name in project_imports(f"app/{folder}"):
            parts = name.split(".")
            if parts[0] == "app" and len(parts) > 1:
                assert parts[1] in APP_FOLDERS[: number + 1], f"{path} imports {name}"
    assert {path.parent.name for path in (ROOT / "app").glob("*/__init__.py")} == {*APP_FOLDERS, "chat"}


def test_engine_and_kernels_point_downwards() -> None:
    for path, name in project_imports("engine"):
        assert name.split(".")[0] in ("engine", "kernels", "torch", "models"), f"{path} imports {name}"
    for path, name in project_imports("kernels"):
        assert name.split(".")[0] in ("kernels", "torch"), f"{path} imports {name}"


def test_training_uses_the_engines_model_code_only() -> None:
    for path, name in project_imports("training"):
        assert name.split(".")[0] in ("training", "engine", "torch", "kernels"), f"{path} imports {name}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"{module} loads torch"
