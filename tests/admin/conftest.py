"""Users: an operator who may do everything, and a reader who may only look."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client


@pytest.fixture
def operator(db: Any) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator", password="op"))
    return client


@pytest.fixture
def reader(db: Any) -> Client:
    """May view everything of ours and nothing more."""
    user = User.objects.create_user("reader", password="re", is_staff=True)
    view = Permission.objects.filter(content_type__app_label="machinequeue", codename__startswith="view_")
    user.user_permissions.set(view)
    client = Client()
    client.force_login(user)
    return client
