"""Task profiles: what was learned, and an operator's wish to forget it."""

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from machinequeue.models import TaskProfile
from machinequeue.records import profiles
from tests.admin import rows
from tests.admin.test_lists import page
from tests.admin.test_wishes import act, logged

PROFILES = "/admin/machinequeue/taskprofile/"


def learned(profile: TaskProfile) -> int | None:
    return TaskProfile.objects.values_list("memory_mb", flat=True).get(pk=profile.pk)


def test_the_list_says_what_a_task_usually_takes_and_what_was_too_little(operator: Client) -> None:
    rows.learn()
    profiles.learn("shop.tasks.modest", 1, 65.0, 131)
    profiles.outgrew("shop.tasks.new", {"memory_mb": 256}, 512)
    text = page(operator, PROFILES)
    for word in ("make_receipt", "shop.tasks", "1.8 s", "498 MB", "1,024 MB", "512 MB was too little", "1 min 05 s"):
        assert word in text
    assert ">0 ms" not in text, "a task of which no run succeeded has no usual time"
    assert "modest" not in page(operator, f"{PROFILES}?learned=yes")
    assert "make_receipt" not in page(operator, f"{PROFILES}?learned=no")
    assert "make_receipt" not in page(operator, f"{PROFILES}?q=modest")


def test_a_profile_s_page(operator: Client) -> None:
    profile = rows.learn()
    profiles.learn(profile.task, 3, 3.0, 100)
    text = page(operator, f"{PROFILES}{profile.pk}/change/")
    assert "17 more runs in a row with a low peak" in text
    assert '"/admin/machinequeue/taskrun/?task=shop.tasks.make_receipt"' in text


def test_forget_what_was_learned(operator: Client) -> None:
    grown, modest = rows.learn(), rows.learn("shop.tasks.other")
    profiles.forget_memory(modest.task)
    told = act(operator, PROFILES, "forget_memory", [grown, modest])
    assert told == ["The learned memory of 1 task is forgotten."]
    assert (learned(grown), learned(modest)) == (None, None)
    assert logged() == [(str(grown.pk), "Forgot learned memory.")]
    assert act(operator, PROFILES, "forget_memory", [grown]) == ["Nothing changed: no memory was learned."]
    assert profiles.fit() == 0


def test_the_button_of_a_profile_asks_first(operator: Client) -> None:
    profile = rows.learn()
    address = f"{PROFILES}{profile.pk}/forget_memory/"
    assert f'href="{address}"' in page(operator, f"{PROFILES}{profile.pk}/change/")
    question = page(operator, address)
    assert "Forget the learned memory of this task?" in question
    assert "512 MB was too little" in question
    assert learned(profile) == 1024
    answer = operator.post(address, follow=True)
    assert answer.redirect_chain == [(f"{PROFILES}{profile.pk}/change/", 302)]
    assert learned(profile) is None
    assert logged() == [(str(profile.pk), "Forgot learned memory.")]
    assert "mq-wish" not in page(operator, f"{PROFILES}{profile.pk}/change/")


@pytest.mark.parametrize("codename", ["", "change_taskprofile"])
def test_who_may_look_may_not_forget(reader: Client, codename: str) -> None:
    User.objects.get().user_permissions.add(*Permission.objects.filter(codename=codename))
    profile = rows.learn()
    assert "forget_memory" not in page(reader, PROFILES)
    assert "mq-wish" not in page(reader, f"{PROFILES}{profile.pk}/change/")
    assert reader.post(f"{PROFILES}{profile.pk}/forget_memory/").status_code == 403
    act(reader, PROFILES, "forget_memory", [profile])
    assert learned(profile) == 1024
    assert logged() == []


def test_the_permission_to_forget_is_enough(reader: Client) -> None:
    User.objects.get().user_permissions.add(Permission.objects.get(codename="reset_taskprofile"))
    assert act(reader, PROFILES, "forget_memory", [rows.learn()]) == ["The learned memory of 1 task is forgotten."]
