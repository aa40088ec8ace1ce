"""How many machines are launched, whatever the counts."""

from hypothesis import given
from hypothesis import strategies as st

from machinequeue.demand import Plan, Supply, plan, wanted

seconds = st.none() | st.floats(0, 1e5)
counts = st.integers(0, 50)
supplies = st.builds(Supply, coming=counts, idle=counts, busy=counts, of_queue=counts, of_all=counts)


def planned(due: int, supply: Supply | None = None, **given: float | None) -> Plan:
    known = {"run_seconds": None, "boot_seconds": None, "max_of_queue": 10, "max_of_all": 20, **given}
    return plan(due, supply or Supply(), **known)  # type: ignore[arg-type]


@given(st.integers(1, 100_000), seconds, seconds)
def test_at_least_one_machine_and_at_most_one_per_due_run(due: int, run: float | None, boot: float | None) -> None:
    assert 1 <= wanted(due, run, boot) <= due


@given(seconds, seconds)
def test_no_due_run_wants_no_machine(run: float | None, boot: float | None) -> None:
    assert wanted(0, run, boot) == 0


def test_an_unknown_run_time_counts_as_a_boot() -> None:
    assert wanted(7, None, 4.0) == 7


def test_short_runs_share_machines() -> None:
    assert wanted(100, 0.1, 2.0) == 5
    assert wanted(100, 2.0, 2.0) == 100


@given(counts, supplies, seconds, seconds, st.integers(1, 30), st.integers(1, 60))
def test_never_over_a_cap_and_never_without_a_reason(
    due: int, supply: Supply, run: float | None, boot: float | None, of_queue: int, of_all: int
) -> None:
    decided = plan(due, supply, run_seconds=run, boot_seconds=boot, max_of_queue=of_queue, max_of_all=of_all)
    assert 0 <= decided.launch <= due
    assert decided.reason
    if decided.launch:
        assert supply.of_queue + decided.launch <= of_queue
        assert supply.of_all + decided.launch <= of_all


@given(st.integers(1, 50), supplies, seconds, seconds)
def test_a_due_run_without_any_supply_below_the_caps_is_launched_for(
    due: int, supply: Supply, run: float | None, boot: float | None
) -> None:
    nothing = Supply(of_queue=supply.of_queue, of_all=supply.of_all)
    assert plan(due, nothing, run_seconds=run, boot_seconds=boot, max_of_queue=51, max_of_all=51).launch >= 1


def test_machines_that_are_coming_or_idle_are_not_launched_twice() -> None:
    assert planned(3, Supply(coming=2, of_queue=2, of_all=2)).launch == 1
    assert planned(3, Supply(coming=3, of_queue=3, of_all=3)) == Plan(0, "3 machines are booting")
    assert planned(1, Supply(coming=1, of_queue=1, of_all=1)) == Plan(0, "1 machine is booting")
    assert planned(1, Supply(idle=1, of_queue=1, of_all=1)) == Plan(0, "an idle machine is about to claim it")


def test_busy_machines_count_only_when_their_runs_are_shorter_than_a_boot() -> None:
    busy = Supply(busy=1, of_queue=1, of_all=1)
    assert planned(1, busy, run_seconds=0.5, boot_seconds=5.0) == Plan(0, "1 busy machine will be free soon")
    assert planned(1, busy, run_seconds=50.0, boot_seconds=5.0).launch == 1
    assert planned(1, busy).launch == 1


def test_the_reason_names_the_cap_that_holds() -> None:
    assert planned(3, Supply(busy=10, of_queue=10, of_all=10)).reason == "10 of 10 machines busy in queue default"
    assert planned(3, Supply(of_queue=0, of_all=20)).reason == "20 of 20 machines busy in all queues"
