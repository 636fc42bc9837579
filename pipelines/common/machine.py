"""What this machine has: cores, instruction set, memory, disk, GPUs. How fast it is does not belong here.

Imports no torch: who asks may be about to say that torch would not fit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

GB = 10**9
_CGROUP = Path("/sys/fs/cgroup")
_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}  # of /proc/cpuinfo


@dataclass(frozen=True)
class Gpu:
    """As the driver names it; `bytes` of memory in all."""

    name: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.name}, {self.bytes / GB:.0f} GB"


@dataclass(frozen=True)
class Machine:
    """What a process started here can have: `cores` at once, bytes of memory and of disk that are free."""

    cores: int
    instructions: str
    memory: int
    disk: int
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''} ({self.instructions})"
        gpu = ", ".join(str(one) for one in self.gpus) or "no GPU"
        return f"{cores}, {self.memory / GB:.0f} GB memory, {self.disk / GB:.0f} GB disk free, {gpu}"


def look(folder: Path) -> Machine:
    """This machine; the disk is that of `folder`, which need not be there yet."""
    return Machine(usable_cores(), instructions(), free_memory(), free_disk(folder), tuple(gpus()))


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and the quota of its container, rounded up."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, min(allowed, -(-quota[0] // quota[1]))) if quota else allowed


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that can be taken without swapping, at most what the container's limit leaves."""
    available = psutil.virtual_memory().available
    limit, used = (_number(cgroup / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return min(available, max(0, limit - used + _reclaimable(cgroup)))


def free_disk(folder: Path) -> int:
    here = folder.absolute()
    return shutil.disk_usage(next(one for one in (here, *here.parents) if one.exists())).free


def instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's widest vectors, as torch may use them: ATEN_CPU_CAPABILITY can ask for less."""
    flags = next((line for line in _text(cpuinfo).splitlines() if line.startswith("flags")), "").split()
    names = [name for flag, name in _FEATURES.items() if flag in flags]
    found = "AVX2" if names == ["AVX2"] else " ".join(names[1:]) or "no AVX2"
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    return f"{found}, held at {asked} by ATEN_CPU_CAPABILITY" if asked else found


@cache
def gpus() -> list[Gpu]:
    """Those that NVIDIA's driver shows, but not those that CUDA_VISIBLE_DEVICES hides; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.count(",") == 3]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [one.strip() for one in visible.split(",") if one.strip()]
        rows = [row for row in rows if any(one == row[0] or row[1].startswith(one) for one in wanted)]
    return [Gpu(name, int(megabytes) * 2**20) for _, _, name, megabytes in rows if megabytes.isdigit()]


def _quota(cgroup: Path) -> tuple[int, int] | None:
    """Microseconds of processor time in each period of so many; None where nothing limits it."""
    parts = _text(cgroup / "cpu.max").split()
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit():
        return int(parts[0]), int(parts[1])
    quota, period = (_number(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return (quota, period) if quota and period and quota > 0 else None


def _reclaimable(cgroup: Path) -> int:
    """File pages that count as used and go as soon as memory is wanted."""
    rows = (line.split() for line in _text(cgroup / "memory.stat").splitlines())
    return sum(int(row[1]) for row in rows if row[0] in ("inactive_file", "active_file"))


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
