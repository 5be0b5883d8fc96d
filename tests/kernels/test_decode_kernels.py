"""How kernels.decode_step prepares and launches its kernels, with a driver that only takes notes."""

import ctypes
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from kernels import decode_step
from kernels.cuda_driver import DriverError
from kernels.decode_arguments import StepArguments
from kernels.decode_step import StepKernels
from kernels.step_spec import StepSpec
from tests.kernels.decode_cases import LLAMA, SMALL, SMALL_KV8, Case, case, network


@dataclass
class Notes:
    """clusters: how many fit at one time. compiled: constants of each form that was loaded. ahead: of those
    that were compiled before. launched: grid, threads, cluster, layer and phase of each launch; counts: its
    entries.
    """

    clusters: int = 0
    resident: bool = True
    compiled: list[dict[str, int]] = field(default_factory=list)
    ahead: list[dict[str, int]] = field(default_factory=list)
    launched: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass
class FakeKernel:
    notes: Notes

    def active_clusters(self, cluster: int, block: int) -> int:
        return self.notes.clusters

    def require_resident(self, grid: int, block: int, cluster: int = 1) -> None:
        if not self.notes.resident:
            raise DriverError("cannot all be resident")

    def launch(
        self, grid: int, block: int, arguments: object, *, cluster: int = 1, pdl: bool = False
    ) -> None:
        assert pdl
        step, layer, phase = arguments  # type: ignore[misc]
        numbers = [ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] for place in (layer, phase)]
        given = ctypes.cast(step, ctypes.POINTER(StepArguments))[0]
        self.notes.launched.append((grid, block, cluster, *numbers))
        self.notes.counts.append(given.count)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()

    def load(source: str, name: str, device: int, defines: dict[str, int], shared: int) -> FakeKernel:
        assert shared <= decode_step.SHARED_LIMIT
        notes.compiled.append(defines)
        return FakeKernel(notes)

    def ahead(source: str, name: str, arch: str, wanted: list[dict[str, int]]) -> object:
        notes.ahead += wanted
        return lambda: None

    about = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(decode_step, "load_kernel", load)
    monkeypatch.setattr(decode_step, "compile_many", ahead)
    monkeypatch.setattr(decode_step, "architecture", lambda device: "sm_90a")
    return notes


def kernels(spec: StepSpec = SMALL) -> StepKernels:
    net = network(spec)
    return StepKernels(
        net.spec, net.layers, net.head, net.final_norm, net.own, net.other, torch.device("cpu", 0)
    )


def step(made: StepKernels, path: decode_step.StepPath, given: Case) -> None:
    made.bind(given.views, given.scale_views)
    made.step(
        path,
        x=given.x,
        ids_rows=given.rows,
        positions=given.positions,
        block_tables=given.tables,
        logits=given.logits,
        entry_tokens=given.entry_tokens,
        entry_positions=given.entry_positions,
    )


@pytest.mark.parametrize("clusters", [0, SMALL.kv_heads - 1, SMALL.kv_heads, 15])
def test_teams_are_clusters_where_all_fit(notes: Notes, clusters: int) -> None:
    notes.clusters = clusters
    made = kernels()
    step(made, "persistent", case(SMALL, [5, 9, 3]))
    fit = clusters >= SMALL.kv_heads
    ((grid, threads, cluster, layer, phase),) = notes.launched
    assert grid == made.team * SMALL.kv_heads and (layer, phase) == (0, 0) and notes.counts == [3]
    assert cluster == (made.team if fit else 1)
    assert ("CLUSTERED" in notes.compiled[-1]) == fit and notes.compiled[-1]["ROWS"] == 4
    assert threads == (notes.compiled[-1]["WARPS"] + 2) * 32


def test_a_chain_is_a_launch_for_each_phase(notes: Notes) -> None:
    made = kernels()
    step(made, "chained", case(SMALL, [5] * 12))
    wanted = [(layer, phase) for layer in range(SMALL.layers) for phase in range(4)] + [(SMALL.layers, 4)]
    assert [launch[3:] for launch in notes.launched] == wanted
    assert {constants["ROWS"] for constants in notes.compiled} == {16} and set(notes.counts) == {12}


def test_all_forms_of_a_path_are_compiled_at_once_and_each_is_loaded_once(notes: Notes) -> None:
    made = kernels()
    for rows in (1, 2, 3, 4, 1):
        made.prepare("persistent", rows)
    plain = [constants for constants in notes.ahead if "CLUSTERED" not in constants]
    assert [constants["ROWS"] for constants in plain] == [1, 2, 4]
    assert all(constants in notes.ahead for constants in notes.compiled)
    assert len({tuple(constants.items()) for constants in notes.compiled}) == len(notes.compiled)


def test_what_cannot_be_resident_is_an_error(notes: Notes) -> None:
    notes.resident = False
    with pytest.raises(DriverError, match="resident"):
        kernels().prepare("persistent", 1)


@pytest.mark.parametrize("spec", [SMALL, SMALL_KV8], ids=["bf16", "fp8"])
def test_pages_of_another_kind_are_an_error(notes: Notes, spec: StepSpec) -> None:
    """On a device they would be looked for at address zero."""
    made, other = kernels(spec), case(SMALL if spec.fp8_kv else SMALL_KV8, [5])
    with pytest.raises(ValueError, match="made for keys and values with"):
        made.bind(other.views, other.scale_views)
    own = case(spec, [5])
    step(made, "persistent", own)
    assert notes.launched


def test_what_cannot_be_served_has_a_reason() -> None:
    assert decode_step.unsupported(SMALL, (9, 0)) is None
    assert "compute capability" in (decode_step.unsupported(SMALL, (8, 9)) or "")
    odd = replace(LLAMA, head_dim=96)
    assert "96" in (decode_step.unsupported(odd, (9, 0)) or "")
