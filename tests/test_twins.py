"""Two processes that sample by turns: what comes back, what a failing side does, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from fusionbench.engines import twins
from fusionbench.engines.local import Cancelled
from fusionbench.engines.twins import LEAST_TURNS, MOST_TURNS, SLICE_S, Code, Twins
from fusionbench.errors import FusionbenchError
from fusionbench.record import Record, Status
from fusionbench.spec import Budget, Case, Job, Shape
from fusionbench.turns import Turn

FAULTY = str(Path(__file__).with_name("faulty.py"))
ROOT = Path(__file__).parents[1]
SHAPE = Shape(batch=1, image=3, text=2, image_width=8, text_width=8, width=8, heads=1)
BUDGET = Budget(measure_s=0.02, warmup_s=0.0, min_samples=6, max_samples=20, timeout_s=30, rounds=1)
HOSTS = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])


def job(strategy: str) -> Job:
    return Job(strategy=strategy, backend="eager", case=Case(shape=SHAPE, projector="identity"))


def side(name: str, *plugins: str, argv: tuple[str, ...] = (sys.executable, "-P"), path: str = HOSTS) -> Code:
    return Code(name=name, argv=argv, env={**os.environ, "PYTHONPATH": path}, plugins=plugins)


def hosts() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "fusionbench.engines.host" in process.cmdline():
                found.append(process)
    return found


@pytest.fixture(scope="module")
def pair() -> Iterator[Twins]:
    """The head has strategies that the base has not."""
    with Twins(side("base"), side("head", FAULTY), BUDGET) as found:
        yield found


def test_both_sides_bring_as_many_turns_and_a_whole_record(pair: Twins) -> None:
    found = pair.round(job("film"), 0)
    assert (found.base.status, found.head.status) == ("ok", "ok"), (found.base.reason, found.head.reason)
    assert LEAST_TURNS <= len(found.turns) <= MOST_TURNS
    assert len(found.turns) % 2 == 0
    assert all(base > 0 and head > 0 for base, head in found.turns)
    assert found.base.time is not None
    assert found.head.time is not None
    assert found.base.time.loops == found.head.time.loops == found.loops
    assert found.base.memory == found.head.memory
    assert found.base.costs == found.head.costs
    assert found.base.source == found.head.source != ""


def test_a_job_that_only_the_head_knows_is_skipped_by_the_base(pair: Twins) -> None:
    found = pair.round(job("fine"), 0)
    assert (found.base.status, found.head.status) == ("skipped", "ok")
    assert "no strategy named 'fine'" in found.base.reason
    assert found.turns == ()


@pytest.mark.parametrize(("strategy", "status"), [("raises", "error"), ("segfaults", "crash"), ("leaves", "crash")])
def test_a_side_that_fails_costs_one_job(pair: Twins, strategy: str, status: str) -> None:
    found = pair.round(job(strategy), 0)
    assert found.head.status == status
    assert found.turns == ()
    assert pair.round(job("film"), 0).head.status == "ok"


def test_a_process_that_dies_between_two_turns_costs_one_job(tmp_path: Path) -> None:
    """Its neighbour has been given turns: it ends its visit as if there were no other to come."""
    with Twins(side("base", FAULTY), side("head", FAULTY), BUDGET) as both:
        found = both.round(job("dies_late"), 0)
        assert (found.base.status, found.head.status) in {("crash", "ok"), ("ok", "crash"), ("crash", "crash")}
        assert found.turns == ()
        assert both.round(job("film"), 0).head.status == "ok"


class Scripted:
    """A host that answers what it is told: a Turn to all but ``False``, which ends the visit."""

    def __init__(self, name: str, throttled: Sequence[bool] = (), status: Status = "ok") -> None:
        self.name, self.status, self.asked = name, status, list[object]()
        self.throttled = iter(throttled)

    def ask(self, message: object, timeout_s: float, stopping: object) -> Turn | Record:
        self.asked.append(message)
        if isinstance(message, twins.Begin):
            assert message.turns.root == os.getpid()
            return Turn(loops=1) if self.status == "ok" else self._record()
        return (
            Turn(loops=1, samples=((100, None),), throttled=next(self.throttled, False)) if message else self._record()
        )

    def _record(self) -> Record:
        return Record(job=job("film"), status=self.status)

    def close(self) -> None:
        pass


def scripted(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[Scripted, Scripted]) -> Twins:
    """Twins whose hosts are made up, a pair whenever new ones are started."""
    both, later = Twins(side("base"), side("head"), BUDGET), iter(pairs)

    def renew(number: int) -> None:
        both._hosts, both._number = next(later), number  # type: ignore[assignment]

    monkeypatch.setattr(both, "_renew", renew)
    return both


def test_turns_in_which_the_device_throttled_are_left_out_with_their_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, head = Scripted("base", [False, True]), Scripted("head", [False] * 6 + [True])
    found = scripted(monkeypatch, (base, head)).round(job("film"), 0)
    # The second and the seventh turn cost an ABBA each, and two more are taken instead.
    assert (len(found.turns), found.throttled) == (LEAST_TURNS, False)
    assert base.asked.count(True) == head.asked.count(True) == LEAST_TURNS + 4


def test_a_device_that_always_throttles_is_timed_all_the_same_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hot = Scripted("base", [True] * MOST_TURNS)
    found = scripted(monkeypatch, (hot, Scripted("head"))).round(job("film"), 0)
    assert found.throttled
    assert len(found.turns) == hot.asked.count(True) == MOST_TURNS


def test_a_side_that_lacks_memory_beside_the_other_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded, fresh = (Scripted("base"), Scripted("head", status="oom")), (Scripted("base"), Scripted("head"))
    found = scripted(monkeypatch, crowded, fresh).round(job("film"), 0)
    assert (found.base.status, found.head.status, found.turns) == ("ok", "ok", ())
    assert fresh[0].asked == []
    assert fresh[1].asked[1:] == [True, False]
    again = scripted(monkeypatch, crowded, (Scripted("base"), Scripted("head", status="oom"))).round(job("film"), 0)
    assert (again.base.status, again.head.status) == ("ok", "oom")


def test_a_new_round_is_another_pair_of_hosts_and_they_end_with_the_trial() -> None:
    others = {p.pid for p in hosts()}
    with Twins(side("base"), side("head"), BUDGET) as both:
        first = {p.pid for p in hosts() if p.ppid() == os.getpid()} - others
        assert both.round(job("film"), 1, loops=7).loops == 7
        second = {p.pid for p in hosts() if p.ppid() == os.getpid()} - first - others
        assert len(first) == len(second) == 2
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in first | second) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in first | second if psutil.pid_exists(pid)]


def test_stopping_gives_up_the_round_at_once(pair: Twins) -> None:
    asked: list[float] = []

    def stopping() -> bool:
        asked.append(time.monotonic())
        return True

    with Twins(side("base"), side("head", FAULTY), msgspec.structs.replace(BUDGET, timeout_s=60)) as both:
        both.stopping = stopping
        with pytest.raises(Cancelled):
            both.round(job("hangs"), 0)
        assert time.monotonic() - asked[0] < 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            (sys.executable, "-c", "raise SystemExit('no torch here')"),
            "revision 'old' cannot be measured: no torch here",
        ),
        (("/bin/false",), "revision 'old' cannot be measured: exit code 1"),
    ],
)
def test_a_revision_that_does_not_start_is_named_with_its_last_words(argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(FusionbenchError) as caught, Twins(side("old", argv=argv), side("head"), BUDGET):
        pass
    assert str(caught.value) == words


def test_a_fusionbench_from_before_pairs_is_told_from_other_failures(tmp_path: Path) -> None:
    (tmp_path / "fusionbench").mkdir()
    (tmp_path / "fusionbench" / "__init__.py").write_text("")
    with (
        pytest.raises(FusionbenchError, match="its fusionbench is older than measuring by turns; choose a later base"),
        Twins(side("old", path=str(tmp_path)), side("head"), BUDGET),
    ):
        pass


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (
            b'{"v":99,"fusionbench":"9.0","environment":7}',
            r"has fusionbench 9\.0, .*\(protocol 99, here 1\); choose a later base",
        ),
        (b"good morning", "revision 'new' cannot be measured"),
    ],
)
def test_a_revision_that_speaks_another_way_is_refused(tmp_path: Path, hello: bytes, words: str) -> None:
    script = tmp_path / "host.py"
    script.write_text(
        "import sys\nfrom multiprocessing.connection import Connection\n"
        "pipe = Connection(int(sys.argv[sys.argv.index('fusionbench.engines.host') + 1]))\n"
        f"pipe.send_bytes({hello!r})\n"
        "pipe.recv_bytes()\n"  # it lives on, and waits to be told what to do
    )
    argv = (sys.executable, str(script))
    with pytest.raises(FusionbenchError, match=words), Twins(side("new", argv=argv), side("head"), BUDGET):
        pass


LATE = '''
import time
import torch
from torch import nn
from fusionbench.cost import Cost
from fusionbench.registry import strategy

@strategy("late_fault", impls=("eager",), cost=lambda case, impl: Cost())
class LateFault(nn.Module):
    """Goes well for ten calls of 5 ms: before the first turn there are fewer, and in eight turns more."""

    def __init__(self, case, impl):
        super().__init__()
        self.calls = 0

    def forward(self, image, text, image_mask=None, text_mask=None):
        time.sleep(0.005)
        self.calls += 1
        if self.calls > 10:
            {fault}
        return torch.cat([image, text], dim=1)
'''


@pytest.mark.parametrize(
    ("failing", "fault", "status"),
    [("head", "import os; os._exit(3)", "crash"), ("base", "raise ValueError('tired')", "error")],
)
def test_a_side_that_fails_between_two_turns_costs_one_job(
    tmp_path: Path, failing: str, fault: str, status: str
) -> None:
    plugins = {name: tmp_path / f"{name}.py" for name in ("base", "head")}
    for name, plugin in plugins.items():
        plugin.write_text(LATE.format(fault=fault if name == failing else "pass"))
    base, head = (side(name, str(plugin)) for name, plugin in plugins.items())
    with Twins(base, head, BUDGET) as both:
        found = both.round(job("late_fault"), 0)
        assert {"base": found.base.status, "head": found.head.status}[failing] == status
        assert {found.base.status, found.head.status} == {"ok", status}
        assert found.turns == ()
        assert both.round(job("film"), 0).turns != ()


ALONE = '''
import fcntl
import torch
from torch import nn
from fusionbench.cost import Cost
from fusionbench.registry import strategy

MEMORY = open({path!r}, "w")

@strategy("fills_memory", impls=("eager",), cost=lambda case, impl: Cost())
class FillsMemory(nn.Module):
    """Leaves no memory for another one."""

    def __init__(self, case, impl):
        super().__init__()
        try:
            fcntl.flock(MEMORY, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MemoryError("all of it is taken") from None

    def forward(self, image, text, image_mask=None, text_mask=None):
        return torch.cat([image, text], dim=1)
'''


def test_a_job_for_which_there_is_memory_once_is_out_of_memory_on_neither_side(tmp_path: Path) -> None:
    plugin = tmp_path / "fills.py"
    plugin.write_text(ALONE.format(path=str(tmp_path / "memory")))
    with Twins(side("base", str(plugin)), side("head", str(plugin)), BUDGET) as both:
        for number in (0, 1):  # each side begins once
            found = both.round(job("fills_memory"), number)
            assert (found.base.status, found.head.status) == ("ok", "ok"), (found.base.reason, found.head.reason)
            assert found.turns == ()
            assert "goes well alone, and not beside the other side: oom" in found.reason


def test_a_host_that_somebody_kills_costs_its_round_another_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {p.pid for p in hosts()}
    with Twins(side("base"), side("head"), BUDGET) as both:
        for host in hosts():
            if host.pid not in others and host.ppid() == os.getpid():
                host.kill()
        assert both.round(job("film"), 0).turns != ()
        monkeypatch.setattr(twins, "HOST", "fusionbench.exits")  # ends at once
        with pytest.raises(FusionbenchError, match="revision 'base' cannot be measured"):
            both.round(job("film"), 1)


def test_how_many_turns_there_may_be_follows_from_how_long_one_takes() -> None:
    budget = Budget(measure_s=0.6, rounds=6)  # 0.1 s a round, less than what is sensible

    def turn(seconds: float) -> Turn:
        return Turn(loops=1, samples=((round(seconds * 1e9), 0),))

    assert twins._most_turns(budget, turn(SLICE_S)) == twins.ROUND_S / SLICE_S == MOST_TURNS
    assert twins._most_turns(budget, turn(0.02)) == 20
    assert twins._most_turns(budget, turn(5.0)) == LEAST_TURNS
    assert twins._most_turns(msgspec.structs.replace(budget, measure_s=6), turn(0.02)) == MOST_TURNS


def test_a_round_goes_on_until_its_effect_is_known() -> None:
    steady, wild = [(100.0, 100.0 + n % 3) for n in range(8)], [(100.0, 100.0 + 30 * (n % 3)) for n in range(8)]
    assert twins._precise(steady)
    assert not twins._precise(wild)
    assert not twins._precise(steady[:7])  # in the middle of ABBA


def test_samples_that_waited_for_a_core_are_left_out_where_others_did_not() -> None:
    turn = Turn(loops=2, samples=((200, 0), (900, 700), (220, 0)))
    assert twins._on_core(turn, 1) == [100, 110]
    assert twins._on_core(Turn(loops=1, samples=((900, 700), (500, 300))), 1) == [200, 200]
    assert twins._on_core(Turn(loops=1, samples=((900, 700), (500, 300))), 2) == [900, 500]
    assert twins._on_core(Turn(loops=1, samples=((900, None),)), 1) == [900]


def test_both_sides_of_a_round_share_their_cores_and_the_next_round_has_others() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    seen = {twins._cores(job("film"), 1, number) for number in range(len(allowed))}
    assert seen == {(core,) for core in allowed}
    assert len(twins._cores(job("film"), len(allowed), 3)) == len(allowed)
    cuda = msgspec.structs.replace(job("film"), case=msgspec.structs.replace(job("film").case, device="cuda"))
    assert twins._cores(cuda, 1, 0) == ()
