"""Where the checkpoints with known answers are, and what they say."""

import json
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"
G1 = GOLDEN / "g1"
G5 = GOLDEN / "g5"


def expected(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Parsed expected.json: `prompts` and `tokenizer` cases."""
    data: dict[str, list[dict[str, object]]] = json.loads((folder / "expected.json").read_text())
    return data
