"""What several examinations need to know, asked once: settings, the database, the app, its machines, its token."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.db import Error

from machinequeue import conf
from machinequeue.doctor.findings import Blocked
from machinequeue.errors import ConfigurationError
from machinequeue.machines.client import MachinesClient
from machinequeue.machines.errors import MachinesError
from machinequeue.machines.schema import Machine, TokenInfo
from machinequeue.machines.session import is_loopback
from machinequeue.records import server


@dataclass
class Facts:
    """A fact is asked for by the first examination that needs it. Who is the one to examine it gets the error itself;
    all others get `Blocked`, at once, also when somebody still waits for an answer.
    """

    seconds: float = 15.0
    """What one examination has; an answer of the API that takes longer than a third of it counts as none."""
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    _known: dict[str, Any] = field(default_factory=dict, repr=False)
    _failed: dict[str, Exception] = field(default_factory=dict, repr=False)
    _asked: set[str] = field(default_factory=set, repr=False)

    def _fact[T](self, name: str, ask: Callable[[], T], examination: str, own: bool) -> T:
        if name not in self._asked:
            self._asked.add(name)
            try:
                self._known[name] = ask()
            except (ConfigurationError, Error, MachinesError, ValueError) as error:
                self._failed[name] = error
        if own and name in self._failed:
            raise self._failed[name]
        if name not in self._known:
            raise Blocked(examination) from self._failed.get(name)
        known: T = self._known[name]
        return known

    def settings(self) -> conf.Settings:
        """The settings of this process; Blocked when they contradict themselves."""
        return self._fact("settings", conf.settings, "settings", own=False)

    def policies(self) -> Iterator[tuple[str, str, conf.Policy]]:
        """(backend alias, queue, policy) of every queue of ours; Blocked when one is wrong."""
        for alias, params in getattr(django_settings, "TASKS", {}).items():
            if conf.is_ours(params):
                try:
                    known = conf.policies(alias)
                except ConfigurationError as error:
                    raise Blocked("settings") from error
                for queue, policy in known.items():
                    yield alias, queue, policy

    def database(self, *, own: bool = False) -> server.Server:
        """What the database server is."""
        return self._fact("database", server.known, "database", own)

    def client(self) -> MachinesClient:
        """A client of the API, which waits for no pace that the database keeps."""

        def open_client() -> MachinesClient:
            read = conf.need("app", "api_token")
            return MachinesClient(
                read.app, token=read.api_token, base_url=read.api_url, timeout=self.seconds / 3, read_tries=2
            )

        return self._fact("client", open_client, "settings", own=False)

    def app(self, *, own: bool = False) -> dict[str, Any]:
        """The app as Fly describes it."""
        client = self.client()
        return self._fact("app", client.app, "app", own)

    def token(self, *, own: bool = False) -> tuple[TokenInfo, ...]:
        """What the parts of the token allow."""
        client = self.client()
        return self._fact("token", client.current_token, "token", own)

    def machines(self) -> list[Machine]:
        """The living machines of the app."""
        self.app()
        return self._fact("machines", self.client().list, "app", own=True)

    def organization(self) -> str:
        """The slug of the app's organization; empty when nobody says it."""
        described = self.app().get("organization")
        slug = described.get("slug") if isinstance(described, dict) else ""
        return str(slug or "") or next((part.org_slug for part in self.token() if part.org_slug), "")

    def is_local(self) -> bool:
        """Whether the Machines API is an emulator on this computer."""
        return is_loopback(self.settings().api_url)

    def on_fly(self) -> bool:
        """Whether this process runs in a machine of Fly, not in one that an emulator made."""
        return bool(self.environ.get("FLY_MACHINE_ID")) and not self.environ.get("MACHINEQUEUE_MACHINE")

    def close(self) -> None:
        """Close the connections to the API."""
        if "client" in self._known:
            self._known["client"].close()

    def secrets(self) -> set[str]:
        """What must not show in any sentence."""
        read, _ = conf.read_settings(
            getattr(django_settings, "MACHINEQUEUE", {}), os.environ, debug=django_settings.DEBUG
        )
        urls = {read.redis_url, read.drill_database_url}
        tokens = {read.api_token, read.container_token, read.health_token, str(django_settings.SECRET_KEY)}
        databases = {str(each.get("PASSWORD") or "") for each in django_settings.DATABASES.values()}
        return (urls | {_password(url) for url in urls} | tokens | databases) - {conf.EMULATOR_TOKEN, ""}


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""  # no URL; the whole text is hidden anyway
