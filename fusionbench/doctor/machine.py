"""The CPU and its neighbours, read from /proc and /sys: cores, threads, clocks, contention, memory, energy.

Every function takes the root of the file system, so that tests can bring another machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .check import Check, graded, ok

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
WAITED = (0.01, 0.10)  # share of the time: from here on a warning, a failure
QUIET = "close what else runs here, or measure at another time"


def cores(root: Path = ROOT, allowed: Collection[int] | None = None, present: int | None = None) -> Iterator[Check]:
    """The cores this process may use, those of them that share a core's units, and a quota below their number."""
    allowed = own_cpus() if allowed is None else allowed
    total = max(present or os.cpu_count() or 1, len(allowed))
    yield ok("cores", f"{len(allowed)} of {total} may be used", len(allowed), "cores")
    twins = siblings(root, allowed)
    if twins:
        pairs = f"{len(twins)} allowed core{'s share' if len(twins) > 1 else ' shares'} units with another one (SMT)"
        firsts = ",".join(str(cpu) for cpu in sorted(set(allowed) - twins))
        yield Check(
            name="smt",
            status="warn",
            found=pairs,
            value=len(twins),
            unit="cores",
            remedy="leave one thread on each core",
            command=f"taskset -c {firsts} fusionbench run SUITE",
        )
    quota = cpu_quota(root)
    if quota is not None and quota < len(allowed):
        yield Check(
            name="quota",
            status="warn",
            found=f"this container may use {quota:g} cores' time, and {len(allowed)} cores",
            value=quota,
            unit="cores",
            remedy=f"jobs of more than {max(1, int(quota))} threads will be stopped again and again; raise cpu.max or "
            f"keep --threads at {max(1, int(quota))}",
        )


def own_cpus() -> set[int]:
    """The CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def siblings(root: Path, allowed: Collection[int]) -> set[int]:
    """Those allowed CPUs that are not the first allowed one of their core."""
    second = set()
    for cpu in allowed:
        text = read(root / CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list")
        second |= {other for other in cpu_list(text) if other > cpu and other in allowed}
    return second


def cpu_list(text: str) -> list[int]:
    """``0-2,8`` as [0, 1, 2, 8]."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found += range(int(first), int(last or first) + 1)
    return found


def cpu_quota(root: Path = ROOT) -> float | None:
    """The cores' time that the control group allows, in cores; None without a limit. Reads versions 2 and 1."""
    groups = dict(_group(line) for line in read(root / "proc/self/cgroup").splitlines() if line.count(":") >= 2)
    base = root / "sys/fs/cgroup"
    quotas = []
    own = base / groups.get("", "/").lstrip("/")
    for folder in [own, *(parent for parent in own.parents if parent.is_relative_to(base))]:
        quotas.append(_share(*(read(folder / "cpu.max").split() or ["max", "1"])[:2]))
    first = base / "cpu" / groups.get("cpu", "/").lstrip("/")
    for folder in (first, base / "cpu"):
        quotas.append(_share(read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def _group(line: str) -> tuple[str, str]:
    """A line of /proc/self/cgroup as (controller, path); the controller of version 2 is ""."""
    _, controllers, path = line.split(":", 2)
    return ("cpu" if "cpu" in controllers.split(",") else controllers), path


def _share(quota: str, period: str) -> float | None:
    """Quota over period; None for "max", -1 and nothing."""
    quota, period = quota.strip(), period.strip()
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def threads(environ: Mapping[str, str] | None = None, allowed: int | None = None) -> Check:
    """OpenMP's and MKL's settings; fusionbench sets the number of threads itself."""
    surroundings = os.environ if environ is None else environ
    count = allowed or len(own_cpus())
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
    told = ", ".join(f"{name}={surroundings[name][:40]}" for name in names if surroundings.get(name))
    for name in names[:3]:
        value = surroundings.get(name, "")
        if value.isdecimal() and int(value) > count:
            remedy = "more threads than cores wait for each other; --threads of `run` is what counts"
            return Check(
                name="threads", status="warn", found=f"{name}={value} on {count} cores", remedy=remedy,
                command=f"unset {name}",
            )  # fmt: skip
    return ok("threads", told or "no OpenMP or MKL settings; a job uses its budget's threads (1 by default)")


def clocks(root: Path = ROOT) -> Iterator[Check]:
    """Frequency governor and boost, where a virtual machine does not hide them."""
    governors = sorted({read(path).strip() for path in (root / CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor")})
    boost = _boost(root)
    if not governors and boost is None:
        yield ok("clocks", "not shown here (a virtual machine, as a rule): the host decides")
        return
    if governors and governors != ["performance"]:
        yield Check(
            name="governor",
            status="warn",
            found=f"{', '.join(governors)}: clocks follow the load, so that short calls look slow",
            remedy="fix the clocks",
            command="sudo cpupower frequency-set --governor performance",
        )
    elif governors:
        yield ok("governor", "performance")
    if boost is not None:
        path, on = boost
        if on:
            switched_off = "1" if path.name == "no_turbo" else "0"
            yield Check(
                name="boost",
                status="warn",
                found="on: clocks vary with temperature and with what the other cores do",
                remedy="switch it off for measurements that are to repeat",
                command=f"echo {switched_off} | sudo tee /{path.relative_to(root)}",
            )
        else:
            yield ok("boost", "off")


def _boost(root: Path) -> tuple[Path, bool] | None:
    """(the file that switches it, whether it is on)."""
    for name, on in (("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")):
        path = root / CPUS / name
        if text := read(path).strip():
            return path, text == on
    return None


@dataclass(frozen=True)
class Ticks:
    """The machine's clock ticks since it started, of all CPUs together."""

    total: int
    stolen: int


def ticks(root: Path = ROOT) -> Ticks | None:
    """From the first line of /proc/stat; None where there is none."""
    numbers = [int(word) for word in read(root / "proc/stat").partition("\n")[0].split()[1:9] if word.isdecimal()]
    return Ticks(sum(numbers), numbers[7]) if len(numbers) == 8 else None


def watched(before: Ticks | None, after: Ticks | None) -> Iterator[Check]:
    """What the hypervisor took while something was measured."""
    if before is None or after is None or after.total <= before.total:
        return
    share = (after.stolen - before.stolen) / (after.total - before.total)
    found = f"{share:.1%} of the CPUs' time went to other virtual machines"
    yield graded("steal", found, 100 * share, "%", _percent(WAITED), "the host is shared: measure at another time, "
                 "or on a machine of your own")  # fmt: skip


def run_delay(delays_ns: Sequence[int], samples_ns: Sequence[int]) -> Check:
    """The share of the measured time in which our thread was ready and had no core."""
    if not delays_ns or not samples_ns:
        return ok("waiting", "the kernel does not say how long threads wait for a core (no schedstat)")
    share = sum(delays_ns) / max(1, sum(samples_ns))
    found = f"{share:.1%} of the time our thread was ready and had no core"
    return graded("waiting", found, 100 * share, "%", _percent(WAITED), QUIET, "top")


def _percent(limits: tuple[float, float]) -> tuple[float, float]:
    return 100 * limits[0], 100 * limits[1]


def load(
    root: Path = ROOT, count: int | None = None, average: Callable[[], tuple[float, ...]] = os.getloadavg
) -> Check:
    """Load average and pressure: what the last seconds and minute were like, before we began."""
    count = count or len(own_cpus())
    one = average()[0]
    pressure = _pressure(root)
    found = f"load {one:.2f} on {count} cores"
    found += f", tasks waited for a core in {pressure:.1f}% of the last 10 s" if pressure is not None else ""
    # The average lags by a minute and counts ourselves, so that only more tasks than cores is news.
    if one > count or (pressure or 0) > 100 * WAITED[1]:
        return Check(
            name="load", status="warn", found=found, value=one, unit="tasks", remedy=QUIET,
            command="ps -eo pcpu,pid,args --sort=-pcpu | head",
        )  # fmt: skip
    return ok("load", found, one, "tasks")


def _pressure(root: Path) -> float | None:
    """``avg10`` of /proc/pressure/cpu, in %; None where the kernel keeps none."""
    for word in read(root / "proc/pressure/cpu").partition("\n")[0].split():
        name, _, value = word.partition("=")
        if name == "avg10":
            return float(value)
    return None


def memory(available: int, total: int, swapped: int) -> Check:
    """Free memory and swap in use, all in bytes."""
    gib = 2**30
    found = f"{available / gib:.1f} of {total / gib:.1f} GiB free"
    found += f", {swapped / gib:.1f} GiB in swap" if swapped else ", no swap in use"
    low = available < max(gib, total // 10)
    # What was swapped out once may lie there for weeks; a twentieth of the memory is no rest of a browser.
    if low or swapped > total // 20:
        return Check(
            name="memory", status="warn", found=found, value=available / gib, unit="GiB",
            remedy="large jobs will swap or be killed: close what holds memory", command="ps aux --sort=-rss | head",
        )  # fmt: skip
    return ok("memory", found, available / gib, "GiB")


def energy(root: Path = ROOT) -> Check:
    """Whether this user may read the CPU's energy counter."""
    counters = sorted((root / "sys/class/powercap").glob("intel-rapl:*/energy_uj"))
    if not counters:
        return ok("energy", "no RAPL counter here: records have no energy of the CPU")
    if any(read(path) for path in counters):
        return ok("energy", f"RAPL is readable ({len(counters)} domains)", len(counters), "domains")
    told = "RAPL is there and only root may read it: records have no energy of the CPU"
    return Check(
        name="energy", status="ok", found=told, remedy="to have it",
        command="sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj",
    )  # fmt: skip


def read(path: Path) -> str:
    """The file's text, "" where it cannot be read: much of /proc and /sys is there on some machines only."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
