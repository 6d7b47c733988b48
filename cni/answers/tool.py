"""Events, codes, versions, and the answers of requests without a result."""

from __future__ import annotations

from cni.answers.answer import Answer


class Versions(Answer, frozen=True, kw_only=True):
    """The versions of the program, of the daemon (None if none answers), of CNI and of Python."""

    tool: str
    daemon: str | None
    cni: list[str]
    python: str


class Explanation(Answer, frozen=True, kw_only=True):
    """A code: what kind it is, what it means and what to do."""

    code: str
    kind: str
    meaning: str
    action: str


class EventLine(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `events`. `event` says which fields are there; those that are None are left out. `code`: of a problem
    or of an error."""

    time: float
    event: str
    network: str | None = None
    container_id: str | None = None
    interface: str | None = None
    pod: str | None = None
    service: str | None = None
    isolation_network: str | None = None
    addresses: list[str] | None = None
    verb: str | None = None
    code: str | None = None
    severity: str | None = None
    text: str | None = None
    public_key: str | None = None
    endpoint: str | None = None
    alive: bool | None = None


class LogLevel(Answer, frozen=True, kw_only=True):
    """The level of the daemon's log: now, and after its next start."""

    level: str
    configured: str


class Done(Answer, frozen=True, kw_only=True):
    """A request without a result was carried out."""

    done: bool


class Failure(Answer, frozen=True, kw_only=True):
    """The answer to a request that failed, with exit code 1: an error of cni/errors.py."""

    code: int
    msg: str
    details: str = ""
