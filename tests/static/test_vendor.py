"""The libraries of the page are the files that their projects published."""

import hashlib
import json
from pathlib import Path

from starlette.staticfiles import StaticFiles

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "static" / "vendor"
MANIFEST = "MANIFEST.json"


def manifest() -> list[dict[str, str]]:
    files: list[dict[str, str]] = json.loads((VENDOR / MANIFEST).read_text())["files"]
    return files


def test_the_manifest_names_each_file_with_its_hash() -> None:
    listed = {entry["file"]: entry["sha256"] for entry in manifest()}
    there = {
        str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert there == listed


def test_each_file_says_where_it_is_from_and_its_licence_is_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text()
    assert len(manifest()) > 50
    for entry in manifest():
        assert set(entry) == {"file", "package", "version", "licence", "source", "sha256"}
        assert entry["licence"] in ("MIT", "BSD-3-Clause", "Apache-2.0")
        assert f"(static/vendor/{entry['file'].split('/')[0]}/)" in notice


def test_scripts_are_served_as_scripts() -> None:
    """Modules with another content type are refused by browsers."""
    files = StaticFiles(directory=VENDOR)
    for entry in manifest():
        path, _ = files.lookup_path(entry["file"])
        assert Path(path).suffix in (".js", ".css", ".woff2", ".ts"), path
