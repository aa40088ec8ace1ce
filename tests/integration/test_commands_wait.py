"""`mq_exec` where no dispatcher is there yet."""

import signal
from pathlib import Path

from tests.integration.execs import mq_exec
from tests.waiting import until
from tests.world import World


def test_exec_waits_for_a_dispatcher_and_says_so(empty_shop: World, tmp_path: Path) -> None:
    with mq_exec(empty_shop, tmp_path, "--", "speak", "one") as running:
        until(lambda: "no dispatcher is running" in running.err, 60, lambda: running.err)
        assert running.popen.poll() is None
        empty_shop.dispatcher()
        assert running.ends() == 0, running.err + empty_shop.said()
        assert running.out == b"one"


def test_a_run_that_waits_can_be_cancelled_too(empty_shop: World, tmp_path: Path) -> None:
    with mq_exec(empty_shop, tmp_path, "--", "speak", "one") as running:
        until(lambda: "no dispatcher is running" in running.err, 60, lambda: running.err)
        running.popen.send_signal(signal.SIGINT)
        assert running.ends() == 121, running.err
        assert running.run().status == "CANCELLED"
        assert running.out == b""
