"""The page's folders import only from those above them in docs/page.md."""

import re
from pathlib import Path

STATIC = Path(__file__).resolve().parents[2] / "static"
ORDER = ("vendor", "words", "shell", "core", "server", "keep", "reading", "seeing", "settings", "chat")
IMPORT = re.compile(
    r"""(?:^\s*(?:import|export)\b[^;]*?\bfrom\s*|^\s*import\s*|\bimport\()["'](\.[^"']+)["']""", re.M
)


def test_folders_import_only_from_those_above() -> None:
    found = 0
    for path in sorted(STATIC.rglob("*.js")):
        name = path.relative_to(STATIC)
        if name.parts[0] == "vendor" or len(name.parts) == 1:
            continue
        for target in IMPORT.findall(path.read_text()):
            found += 1
            imported = (path.parent / target).resolve().relative_to(STATIC)
            assert (STATIC / imported).is_file(), f"{name} imports {imported}, which is not there"
            above = ORDER[: ORDER.index(name.parts[0]) + 1]
            assert imported.parts[0] in above, f"{name} may not import {imported}"
    assert found > 20
