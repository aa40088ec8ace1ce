"""What an examination finds."""

from dataclasses import dataclass
from enum import StrEnum

from machinequeue.health import Answer


class Status(StrEnum):
    """How bad it is. SKIPPED: there is nothing to examine here. BLOCKED: something else has to be mended first."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    BLOCKED = "blocked"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One sentence about the state of a thing and, where it is not as it should be, one about what to do."""

    status: Status
    sentence: str
    remedy: str = ""


def fine(sentence: str) -> Finding:
    """It is as it should be."""
    return Finding(Status.OK, sentence)


def skipped(sentence: str) -> Finding:
    """There is nothing to examine, or nobody to ask; the sentence says why."""
    return Finding(Status.SKIPPED, sentence)


def warning(sentence: str, remedy: str) -> Finding:
    """Runs are executed, but worse, dearer or later than they could be."""
    return Finding(Status.WARNING, sentence, remedy)


def failure(sentence: str, remedy: str) -> Finding:
    """Runs are not executed, or soon will not be."""
    return Finding(Status.FAILURE, sentence, remedy)


def blocked(examination: str) -> Finding:
    """It cannot be examined before what the examination of this name finds wrong is mended. Counts as a failure."""
    return Finding(Status.BLOCKED, f"Not examined: mend `{examination}` first.")


def translated(answer: Answer) -> Finding:
    """What health answers to one of its questions, as a finding."""
    return Finding(Status(answer.status.value), str(answer.sentence), str(answer.remedy))


class Blocked(Exception):
    """Raised for `blocked`, with the name of the examination that finds what is to be mended."""

    def __init__(self, examination: str) -> None:
        super().__init__(examination)
        self.examination = examination
