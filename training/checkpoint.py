"""Checkpoints of a stage: the last two, each with its digest in its name, so that a damaged one is known.

`STAGE.partial-STEP-DIGEST.pt` is on the way; `STAGE.pt`, whose digest is in `STAGE.json`, is the end.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from training.files import WriteError, write_text, write_whole

KEPT = 2  # the last, and the one before in case the last is damaged
_NAME = re.compile(r"\.partial-(\d+)-([0-9a-f]{16})\.pt")


class CheckpointError(Exception):
    """A checkpoint could not be written or is damaged; the message names it."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Those of one stage in one folder."""

    folder: Path
    stage: str

    def paths(self) -> list[Path]:
        """From the first step to the last."""
        found = [
            path for path in self.folder.glob(f"{self.stage}.partial-*.pt")
            if _NAME.fullmatch(path.name.removeprefix(self.stage))
        ]  # fmt: skip
        return sorted(found, key=self._step)

    def _step(self, path: Path) -> int:
        match = _NAME.fullmatch(path.name.removeprefix(self.stage))
        assert match is not None
        return int(match[1])

    def save(self, step: int, state: Mapping[str, object]) -> Path:
        """Keep `state`, and drop all but the one before. Raises CheckpointError for a full disk."""
        content = serialized(state)
        path = self.folder / f"{self.stage}.partial-{step:08d}-{digest(content)[:16]}.pt"
        before = self.paths()
        try:
            write_whole(path, lambda file: file.write(content), self.folder / f"{self.stage}.partial.tmp")
        except WriteError as error:
            last = f"the last one, {before[-1].name}, is intact" if before else "there was none before"
            raise CheckpointError(f"{error}; {last}: make room and start the same command again") from error
        for old in self.paths()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def newest(self, device: torch.device) -> dict[str, object] | None:
        """The last state that is intact, None where there is none; what is damaged is named and removed."""
        for path in reversed(self.paths()):
            content = path.read_bytes()
            if digest(content).startswith(path.stem.rsplit("-", 1)[-1]):
                found: dict[str, object] = torch.load(
                    io.BytesIO(content), map_location=device, weights_only=True
                )
                return found
            print(f"{path} is damaged: going on from what was before it", flush=True)
            path.unlink(missing_ok=True)
        return None

    def drop(self) -> None:
        """Remove all of them."""
        for path in [*self.paths(), self.folder / f"{self.stage}.partial.tmp"]:
            path.unlink(missing_ok=True)

    # -- the end of the stage
    # --------------------------------------------------------------------------------------

    def finish(self, weights: Mapping[str, torch.Tensor], measured: Mapping[str, object]) -> None:
        """Keep the stage's weights and figures. Its last checkpoints stay, in case the weights are damaged.

        The weights come last: where they are, everything is. Raises CheckpointError.
        """
        content = serialized({"model": dict(weights)})
        try:
            figures = json.dumps({**measured, "sha256": digest(content)})
            write_text(self.folder / f"{self.stage}.json", figures)
            write_whole(self.folder / f"{self.stage}.pt", lambda file: file.write(content))
        except WriteError as error:
            raise CheckpointError(f"{error}; the checkpoints of the stage are intact") from error

    def finished(self) -> bool:
        """Whether the stage's weights are there and whole; damaged ones are named and removed."""
        weights, figures = self.folder / f"{self.stage}.pt", self.folder / f"{self.stage}.json"
        if not weights.exists():
            return False
        try:
            wanted = json.loads(figures.read_text("utf-8"))["sha256"]
        except (OSError, ValueError, KeyError) as error:
            print(f"{figures} is damaged ({error}): the end of the stage is done again", flush=True)
        else:
            if digest(weights.read_bytes()) == wanted:
                return True
            print(f"{weights} is damaged: the end of the stage is done again", flush=True)
        weights.unlink()
        return False

    def load(self, model: torch.nn.Module) -> None:
        """The stage's weights into the model."""
        device = next(model.parameters()).device
        saved = torch.load(self.folder / f"{self.stage}.pt", map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])


def serialized(state: Mapping[str, object]) -> memoryview:
    """In memory first: what is written can then be judged, and a full disk is met in one place."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getbuffer()


def digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
