"""The demo, step by step."""

import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.utils.crypto import get_random_string

from demo_site import night, proof, show
from demo_site.record import Order, record_of, write
from demo_site.stage import Stage, StageError
from demo_site.store.models import Product, Purchase
from demo_site.store.ordering import have_report_made
from demo_site.store.seeding import seed_purchases
from demo_site.store.tasks import make_pictures, make_receipt, sales_report
from machinequeue import enqueue_many

JOURNEY_SECONDS = 300
LEAVE_SECONDS = 60
NIGHT_SECONDS = 120
POLL_SECONDS = 0.25


def travel(*, purchases: int, file: Path, serve: bool, port: int) -> int:
    """Make everything, prove it, and keep serving when asked to. Returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        problems = _travel(purchases, file, port if serve else None)
    except KeyboardInterrupt:
        show.say("Ended; nothing was left behind.")
        return 130
    except (StageError, TimeoutError) as error:
        show.complain([str(error)])
        return 1
    return 1 if problems else 0


def _travel(purchases: int, file: Path, port: int | None) -> list[str]:
    begin, begun_at = time.monotonic(), datetime.now(UTC)
    _open_shop(purchases)
    with Stage(settings.STATE_DIR) as stage:
        pids = stage.pids
        orders = _order(purchases)
        _watch(orders, stage, begin)
        _wait_until(
            lambda: all(order.machine_is_gone() for order in orders), LEAVE_SECONDS, "the machines to leave", stage
        )
        record = record_of(orders, pids, begun_at, seconds=time.monotonic() - begin)
        journal = list(stage.emulator.journal())
        problems = proof.disagreements(record, journal, Path(settings.MEDIA_ROOT))
        problems += [
            f"Machine {m.name} is still {m.state}." for m in stage.emulator.machines() if m.state != "destroyed"
        ]
        write(record, file)
        show.results(record, file, Path(settings.MEDIA_ROOT))
        problems += night.pass_by(lambda done, what: _wait_until(done, NIGHT_SECONDS, what, stage))
        show.complain(problems)
        if port is not None:
            _serve(stage, port)
    left = proof.survivors(record, journal)
    show.complain(left)
    return problems + left


def _open_shop(purchases: int) -> None:
    settings.STATE_DIR.mkdir(parents=True, exist_ok=True)
    call_command("migrate", verbosity=0)
    made = seed_purchases(purchases)
    show.say(f"The shop is open: {Purchase.objects.count()} purchases, {made} of them new.")


def _order(purchases: int) -> list[Order]:
    """Enqueue a receipt for each purchase, in one go, and the report over all of them."""
    chosen = list(Purchase.objects.filter(number__lte=purchases).order_by("number").prefetch_related("items"))
    results = enqueue_many(make_receipt, [((purchase.pk,), {}) for purchase in chosen])
    for purchase, result in zip(chosen, results, strict=True):
        purchase.receipt_run = result.id
    Purchase.objects.bulk_update(chosen, ["receipt_run"])
    report = have_report_made()
    orders = [Order.receipt(purchase, result) for purchase, result in zip(chosen, results, strict=True)]
    return [*orders, Order.report(report, sales_report.get_result(report.run))]


def _watch(orders: list[Order], stage: Stage, begin: float) -> None:
    """Show how far everything is until every run has finished."""
    with show.screen() as screen:

        def all_finished() -> bool:
            for order in orders:
                order.look()
            screen.update(orders, time.monotonic() - begin)
            return all(order.finished for order in orders)

        try:
            _wait_until(all_finished, JOURNEY_SECONDS, "every run to finish", stage)
        except TimeoutError as error:
            waiting = [f"{order.label}: {order.result.why()}" for order in orders if not order.finished]
            raise TimeoutError("\n".join([str(error), *waiting[:10]])) from None


def _wait_until(done: Callable[[], bool], seconds: float, what: str, stage: Stage) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        stage.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {seconds:g} s for {what}. The logs are in {stage.logs}.")
        time.sleep(POLL_SECONDS)


def _serve(stage: Stage, port: int) -> None:
    """Keep the site up until Ctrl-C or SIGTERM, with an operator's account made for this time."""
    address = stage.serve(port)
    password = get_random_string(16)
    user = _operator(password)
    enqueue_many(
        make_pictures, [((pk,), {}) for pk in Product.objects.filter(thumbnail="").values_list("pk", flat=True)]
    )
    show.address(address, user.get_username(), password)
    try:
        while True:
            stage.check()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        user.set_unusable_password()
        user.save()


def _operator(password: str) -> Any:
    user, _ = get_user_model().objects.get_or_create(username="demo", defaults={"email": "demo@example.com"})
    user.is_staff = user.is_superuser = user.is_active = True
    user.set_password(password)
    user.save()
    return user
