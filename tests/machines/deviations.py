"""Where the emulator leaves the specification on purpose. docs/reference/emulator.md shows this list in full."""

from __future__ import annotations

from dataclasses import dataclass

JSON = "application/json"
EVERY_CALL = "every call"
OF_AN_APP = "every call of an app"
OF_A_MACHINE = "every call of a machine"
APP = "/v1/apps/{app_name}"
MACHINES = f"{APP}/machines"
MACHINE = f"{MACHINES}/{{machine_id}}"
_GROUPS = {EVERY_CALL: "", OF_AN_APP: APP, OF_A_MACHINE: MACHINE}


@dataclass(frozen=True)
class Deviation:
    """`calls` are labels of the specification ("GET /v1/apps") or a group of them. Either an answer that it does not
    name (`status`, `media`), or properties that it does not know (`fields`), or what no single answer shows.
    """

    calls: tuple[str, ...]
    what: str
    why: str
    status: int = 0
    media: str = JSON
    fields: tuple[str, ...] = ()

    def covers(self, label: str) -> bool:
        """Whether it is about this call."""
        path = label.partition(" ")[2]
        return label in self.calls or any(each in _GROUPS and path.startswith(_GROUPS[each]) for each in self.calls)

    def row(self) -> str:
        """Its row of the table in the documentation."""
        calls = "<br>".join(f"`{each}`" if " /" in each else each for each in self.calls)
        return f"| {calls} | {self.what} | {self.why} |"


DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        (EVERY_CALL,),
        '401 `{"error": "Authenticate: token validation error"}` for another token',
        "measured on Fly; the specification names a 401 for one call only",
        status=401,
    ),
    Deviation(
        (EVERY_CALL,),
        "400 for a body, a parameter or a config that cannot be used",
        "Fly answers so everywhere; the specification names it for a part of the calls",
        status=400,
    ),
    Deviation(
        (OF_AN_APP,),
        "404 for an app, a machine, a lease or a secret that is not there",
        "Fly answers so everywhere; the specification names it for one call",
        status=404,
    ),
    Deviation(
        ("anything else",),
        "404, plain text `404 page not found`, before the token is looked at",
        "measured on Fly",
    ),
    Deviation(
        (f"GET {MACHINE}/wait",),
        "408 when the state is not reached in time",
        "Fly's documentation; the specification names 200 and 400 only",
        status=408,
    ),
    Deviation(
        (f"POST {MACHINE}/exec",),
        "408 when the command does not end in time",
        "what Fly answers is not documented",
        status=408,
    ),
    Deviation(
        (f"POST {MACHINES}",),
        "409 with the id of the machine that has the name",
        "measured on Fly; the specification names 200 only",
        status=409,
    ),
    Deviation(
        (
            *(f"POST {MACHINE}/{verb}" for verb in ("start", "restart", "lease")),
            f"DELETE {MACHINE}/lease",
        ),
        "409 while somebody else holds the lease",
        "measured on Fly for start, update and a second lease; the specification names it for update only",
        status=409,
    ),
    Deviation(
        (OF_A_MACHINE,),
        "412 in a state in which the call makes no sense",
        "measured on Fly (`failed_precondition`); the specification names it for metadata only",
        status=412,
    ),
    Deviation(
        (OF_AN_APP,),
        "429 above the rate limits",
        "Fly's documentation; the specification is silent",
        status=429,
    ),
    Deviation(
        (EVERY_CALL,),
        "413 for a body of more than 8 MiB",
        "what Fly answers is not documented",
        status=413,
    ),
    Deviation(
        (EVERY_CALL,),
        "501 for a call, or a field of a config, that is not emulated",
        "Fly has no such answer: nothing is accepted that would not be done",
        status=501,
    ),
    Deviation(
        ("GET /v1/platform/regions",),
        "`Regions` and `Nearest` beside `regions` and `nearest`",
        "measured on Fly with capital letters; the specification has small ones",
        fields=("Regions", "Nearest"),
    ),
    Deviation(
        (f"GET {MACHINE}/lease", f"POST {MACHINE}/lease"),
        "the lease flat, and once more as `data` beside `status`",
        "the specification has it flat, Fly's documents and clients wrapped",
        fields=("status", "data"),
    ),
    Deviation(
        (f"GET {MACHINES}", f"GET {MACHINE}"),
        "`config` is null while the host is unreachable, `incomplete_config` is there instead",
        "so say Fly's documents and clients; the specification has no null",
    ),
    Deviation(
        (f"POST {MACHINES}", f"GET {MACHINES}", f"GET {MACHINE}", f"POST {MACHINE}"),
        "`config` is given back as it was sent, fields that Fly does not know included",
        "nothing of a config is thrown away silently; Fly fills in its defaults instead",
    ),
)
