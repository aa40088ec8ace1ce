"""The machines of one app as the edge knows them: how busy, whether to wake one, which have been idle for long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from machinequeue.machines.client import MachinesClient
from machinequeue.machines.emulator.journal import Journal
from machinequeue.machines.errors import Conflict, MachinesError, NotFound
from machinequeue.machines.proxy.candidates import AT_REST, Candidate, Verdict, Wish, candidates, choose, to_stop

LOOK_AGAIN_SECONDS = 0.1
KNOCK_SECONDS = 0.02
LOOKS_PER_IDLE = 5
LIST_SECONDS = 1.0
"""How long requests wait for a list that is late, while an older one is there."""


class Unreached(Exception):
    """No machine takes the request. `reason` is "no_candidate" or "deadline"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Manner:
    """How an edge treats every app: its own region, and times in seconds."""

    region: str
    cache_seconds: float
    idle_seconds: float
    patience_seconds: float


class Fleet:
    """Lives in the event loop; calls of the API run in `threads`."""

    def __init__(self, app: str, client: MachinesClient, manner: Manner, journal: Journal, threads: Executor) -> None:
        self.app = app
        self._client = client
        self._manner = manner
        self._journal = journal
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._found: list[Candidate] = []
        self._asked_at = float("-inf")
        self._problem: MachinesError | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looking_since = float("-inf")
        self._load: Counter[str] = Counter()
        self._idle_since: dict[str, float] = {}
        self._starts: dict[str, asyncio.Task[bool]] = {}
        self._ending: set[str] = set()
        self._released = asyncio.Event()
        self._waiting = 0

    # -- a machine for a request --------------------------------------------------------------------------------

    async def acquire(self, wish: Wish, refused: set[str], deadline: float) -> Candidate:
        """A machine that takes one more request, to be given back with `release`. Starts one when none runs.

        `refused` are machines that just refused this request. `deadline` is in the time of the event loop.
        Raises Unreached, NotFound for an app that does not exist, and MachinesError while the API never answered.
        """
        self._waiting += 1
        try:
            return await self._acquire(wish, refused, deadline)
        finally:
            self._waiting -= 1

    async def _acquire(self, wish: Wish, refused: set[str], deadline: float) -> Candidate:
        fresh = bool(refused)
        while True:
            found = await self._look(fresh)
            choice = choose(found, wish, self._load, self._manner.region, refused)
            if choice.also_start is not None:
                _ = self._begin_start(choice.also_start)
            if choice.verdict is Verdict.SEND and choice.machine is not None:
                self._load[choice.machine.id] += 1
                return choice.machine
            if choice.verdict is Verdict.NOBODY and fresh:
                raise Unreached("no_candidate", f"no machine of app {self.app} can take this request")
            if self._loop.time() >= deadline:
                raise Unreached("deadline", f"no machine of app {self.app} took this request in time")
            if choice.verdict is Verdict.START and choice.machine is not None:
                if not await self._started(choice.machine, deadline):
                    wish = replace(wish, not_to=wish.not_to | {choice.machine.id})
            elif choice.verdict is Verdict.WAIT:
                await self._pause(deadline)
            # A machine that is merely full needs no new look at the list.
            fresh = choice.verdict is not Verdict.WAIT or not self._runs(found, refused)
            refused.clear()

    async def first_look(self) -> MachinesError | None:
        """Ask the API once; what it said against it."""
        try:
            await self._look(fresh=True)
        except MachinesError as error:
            return error
        return None

    @property
    def is_unknown(self) -> bool:
        """Whether the API said at last that there is no such app."""
        return isinstance(self._problem, NotFound)

    @property
    def is_idle(self) -> bool:
        """Whether no request is in a machine of it, none waits for one, and nothing is being started."""
        return not (self._load or self._waiting or self._starts)

    def release(self, machine: Candidate) -> None:
        """The request is over."""
        self._load[machine.id] -= 1
        if self._load[machine.id] <= 0:
            del self._load[machine.id]
        self._idle_since[machine.id] = self._loop.time()
        self._released.set()

    def _runs(self, found: list[Candidate], refused: set[str]) -> bool:
        return any(each.state == "started" and each.id not in refused for each in found)

    async def _pause(self, deadline: float) -> None:
        self._released.clear()
        seconds = min(LOOK_AGAIN_SECONDS, max(0.0, deadline - self._loop.time()))
        try:
            await asyncio.wait_for(self._released.wait(), seconds)
        except TimeoutError:
            return

    # -- what the API says --------------------------------------------------------------------------------------

    async def _look(self, fresh: bool) -> list[Candidate]:
        """The machines, by a list that was asked for just now (`fresh`) or a moment ago."""
        since = self._loop.time() - (0.0 if fresh else self._manner.cache_seconds)
        while self._asked_at < since:
            if self._looking is None:
                self._looking, self._looking_since = asyncio.create_task(self._refresh()), self._loop.time()
            if fresh or not self._found:
                await asyncio.shield(self._looking)
                continue
            left = LIST_SECONDS - (self._loop.time() - self._looking_since)
            done, _ = await asyncio.wait({self._looking}, timeout=max(0.0, left))
            if not done:
                break
        if self._problem is not None:
            raise self._problem
        return [replace(each, state="stopping") if each.id in self._ending else each for each in self._found]

    async def _refresh(self) -> None:
        asked_at = self._loop.time()
        try:
            self._take(candidates(await self._call(self._client.list)))
            self._problem = None
        except MachinesError as error:
            self._journal.write("problem", app=self.app, text=str(error))
            # A list that cannot be had is no reason to forget the machines that were there a moment ago.
            if not self._found or isinstance(error, NotFound):
                self._problem = error
        finally:
            self._asked_at, self._looking = asked_at, None

    def _take(self, found: list[Candidate]) -> None:
        now = self._loop.time()
        self._found = found
        self._idle_since = {each.id: self._idle_since.get(each.id, now) for each in found if each.state == "started"}

    async def _call[**P, T](self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._threads, lambda: call(*args, **options))

    # -- autostart ----------------------------------------------------------------------------------------------

    async def _started(self, machine: Candidate, deadline: float) -> bool:
        """Whether the machine accepts now; however many ask, it is started once. Raises Unreached."""
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._begin_start(machine))
        except TimeoutError:
            raise Unreached("deadline", f"machine {machine.id} of app {self.app} did not accept in time") from None

    def _begin_start(self, machine: Candidate) -> asyncio.Task[bool]:
        task = self._starts.get(machine.id)
        if task is None:
            task = self._starts[machine.id] = asyncio.create_task(self._start(machine))
            task.add_done_callback(lambda _: self._starts.pop(machine.id, None))
        return task

    async def _start(self, machine: Candidate) -> bool:
        try:
            await self._call(self._client.start, machine.id)
        except Conflict:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            return True  # it is on its way already, or still stopping: whoever waits looks again
        except MachinesError as error:
            self._journal.write("problem", app=self.app, machine=machine.id, text=str(error))
            return False
        self._journal.write("start", app=self.app, machine=machine.id)
        return await self._accepts(machine.id)

    async def _accepts(self, machine_id: str) -> bool:
        """Wait until its port accepts; False when it ends before, or takes longer than anybody waits."""
        until = self._loop.time() + self._manner.patience_seconds
        while self._loop.time() < until:
            try:
                found = await self._look(fresh=True)
            except MachinesError:
                return False
            machine = next((each for each in found if each.id == machine_id), None)
            if machine is None or machine.state in AT_REST or machine.state == "failed":
                return False
            look_again = self._loop.time() + LOOK_AGAIN_SECONDS
            while self._loop.time() < look_again:
                if machine.state == "started" and await _knock(machine):
                    return True
                await asyncio.sleep(KNOCK_SECONDS)
        return False

    # -- autostop -----------------------------------------------------------------------------------------------

    async def stop_the_idle(self) -> None:
        """Stop machines that nobody asked for `idle_seconds`, as far as their services say so. Never ends."""
        while True:
            await asyncio.sleep(self._manner.idle_seconds / LOOKS_PER_IDLE)
            if self.is_unknown:
                continue  # until a request asks for it again
            try:
                found = await self._look(fresh=False)
            except MachinesError:
                continue
            before = self._loop.time() - self._manner.idle_seconds
            # No await from the count of requests to the mark: a request that comes now sees the machine stopping.
            chosen = to_stop(found, self._load, self._idle_since, before)
            self._ending.update(each.id for each in chosen)
            for each in chosen:
                await self._stop(each)

    async def _stop(self, machine: Candidate) -> None:
        try:
            await self._call(self._client.stop, machine.id)
            self._journal.write("stop", app=self.app, machine=machine.id)
            await self._look(fresh=True)
        except MachinesError as error:
            self._journal.write("problem", app=self.app, machine=machine.id, text=str(error))
        finally:
            self._ending.discard(machine.id)
            self._idle_since[machine.id] = self._loop.time()

    # -- end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget what is under way, and close the connections to the API."""
        for task in [*self._starts.values(), *([self._looking] if self._looking else [])]:
            task.cancel()
        self._client.close()


async def _knock(machine: Candidate) -> bool:
    try:
        _, writer = await asyncio.open_connection(machine.address, machine.service.port)
    except OSError:
        return False
    writer.close()
    return True
