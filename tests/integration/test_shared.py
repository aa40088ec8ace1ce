"""isolation="shared": one process executes one run after the other, and is replaced when something went wrong in it."""

from typing import Any

from machinequeue.models import Machine
from tests.waiting import until
from tests.workshop import tasks
from tests.world import World


def test_runs_share_a_process_until_one_breaks_it(empty_shop: World) -> None:
    empty_shop.dispatcher()
    shared = {"isolation": "shared", "queue_name": "warm"}

    def one(task: Any, *args: Any) -> Any:
        # One at a time, for a machine that waits: a busy one would be given company.
        result = task.using(**shared).enqueue(*args)
        empty_shop.finish(result)
        until(lambda: Machine.objects.filter(status="idle").exists(), 60, empty_shop.said)
        return result

    def pid(result: Any) -> int:
        return int(result.history[0]["pid"])

    first, failed, third = one(tasks.whoami), one(tasks.boom), one(tasks.whoami)
    assert failed.errors[0].exception_class is ValueError
    assert pid(first) == pid(failed) == pid(third) == first.return_value["pid"], "an exception breaks no process"
    late, dead = one(tasks.too_slow), one(tasks.leave_at_once, 7)
    assert late.errors[0].exception_class_path == "machinequeue.errors.RunTimedOut"
    assert dead.errors[0].exception_class_path == "machinequeue.errors.RunCrashed"
    fresh, last = one(tasks.whoami), one(tasks.whoami)
    assert pid(late) == pid(first)
    assert len({pid(late), pid(dead), pid(fresh)}) == 3, "what was interrupted or died is replaced"
    assert pid(fresh) == pid(last)
    assert len({result.worker_ids[0] for result in (first, failed, third, late, dead, fresh, last)}) == 1


def test_what_one_run_printed_is_not_in_the_next(empty_shop: World) -> None:
    empty_shop.dispatcher()
    shared = {"isolation": "shared", "queue_name": "warm"}
    loud, quiet = tasks.boom.using(**shared).enqueue("loud words"), tasks.whoami.using(**shared).enqueue()
    empty_shop.finish(loud, quiet)
    assert "about to fail" in loud.output
    assert "about to fail" not in quiet.output
