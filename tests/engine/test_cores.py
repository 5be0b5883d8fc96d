"""Counting the cores that are free: processors, threads of one core, and the quotas of control groups."""

from pathlib import Path

import pytest

from engine.cores import cores_of, free_cores, quota_of


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = free_cores()
    assert cores >= 1
    for asked, found in (("1", 1), ("1,4", 1), ("0", 1), (f"{cores + 5}", cores), ("all", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert free_cores() == found, asked


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for processor, siblings in enumerate(["0,4", "1,5", "2-3", "2-3", "0,4", "1,5"]):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert cores_of({0, 1, 2, 3, 4, 5}, tmp_path) == 3
    assert cores_of({0, 4}, tmp_path) == 1 and cores_of({0, 3}, tmp_path) == 2
    assert cores_of({0, 4, 70, 71}, tmp_path) == 3  # nothing is known of the last two


@pytest.mark.parametrize(
    "files, group, quota",
    [
        ({}, "0::/", None),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "250000 100000"}, "0::/", 2.5),
        ({"a/cpu.max": "max 100000", "a/b/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, "0::/a/b", 1.5),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({"cpu.max": "300000 100000"}, "0::/../../elsewhere", 3.0),
        ({"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/x", 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/x\n3:pids:/x", None),
    ],
)
def test_quotas(tmp_path: Path, files: dict[str, str], group: str, quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    process = tmp_path / "cgroup"
    process.write_text(group + "\n")
    assert quota_of(process, tmp_path) == quota


def test_systems_without_control_groups(tmp_path: Path) -> None:
    assert quota_of(tmp_path / "missing", tmp_path) is None
