"""Machines of an image that is no longer current."""

from machinequeue.models import Machine, TaskRun
from machinequeue.records import dispatchers
from tests.waiting import until
from tests.workshop import fresh, tasks
from tests.world import IMAGE, OLD_IMAGE, World


def test_a_task_that_an_older_image_does_not_have_waits_for_a_machine_of_the_current_one(empty_shop: World) -> None:
    first = empty_shop.dispatcher(FLY_IMAGE_REF=OLD_IMAGE)
    warm = tasks.warm.enqueue()
    empty_shop.finish(warm)
    until(lambda: Machine.objects.filter(status="idle").exists(), 60, empty_shop.said)
    assert first.end() == 0
    dispatchers.announce(IMAGE, 1)

    result = fresh.fresh.enqueue()
    until(lambda: TaskRun.objects.filter(pk=result.id, status="READY", epoch=1).exists(), 60, empty_shop.said)
    run = TaskRun.objects.get(pk=result.id)
    assert (run.task_attempts, run.lost_attempts) == (0, 0), "nobody is charged"
    assert f"(its image, {OLD_IMAGE}, is not current)" in run.reason
    old = Machine.objects.get()
    until(lambda: Machine.objects.get(pk=old.pk).reason == "its image is not current", 60, empty_shop.said)

    empty_shop.dispatcher()
    empty_shop.finish(result)
    assert result.return_value == IMAGE
    assert [attempt["status"] for attempt in result.history] == ["failed", "succeeded"]


def test_on_the_current_image_a_task_that_cannot_be_imported_has_failed(empty_shop: World) -> None:
    empty_shop.dispatcher(FLY_IMAGE_REF=OLD_IMAGE)
    result = fresh.fresh.enqueue()
    empty_shop.finish(result)
    assert result.errors[0].exception_class_path == "machinequeue.errors.TaskNotImportable"
    assert TaskRun.objects.get(pk=result.id).task_attempts == 1
