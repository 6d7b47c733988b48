"""What a call may take, whatever state the daemon is in; and how soon a new daemon serves."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from tests.blackbox.harness.calls import BARE_ENV, Answer

from .machine import Machine, Space, busy
from .scenes import attached, in_order, started
from .test_storm import QUICK

BUSY = 1.0  # seconds a busy machine may add
ATTACHMENTS = 500


def all_at_once(on: Machine, space: Space, prev: dict[str, object]) -> dict[str, Answer]:
    """One call of each verb, at the same time; what came back."""
    answers: dict[str, Answer] = {}
    calls = {
        "STATUS": lambda: on.call("STATUS", on.conf()),
        "CHECK": lambda: on.call("CHECK", on.conf(prevResult=prev), "steady", space.path),
        "DEL": lambda: on.call("DEL", on.conf(), "leaves", ""),
        "ADD": lambda: on.call("ADD", on.conf(), "comes", Space(on).path),
    }
    crew = [threading.Thread(target=lambda v=v, c=c: answers.update({v: c()})) for v, c in calls.items()]  # type: ignore[misc]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    return answers


def judge_times(answers: dict[str, Answer]) -> None:
    answers["STATUS"].failed(50)
    answers["CHECK"].failed(11)
    answers["DEL"].ok()
    answers["ADD"].failed(11)
    most = {"STATUS": 2.0, "CHECK": 10.0, "DEL": 10.0, "ADD": 40.0}
    assert {verb: a.took for verb, a in answers.items() if a.took > most[verb] + busy(BUSY)} == {}


@pytest.mark.timeout(600)
def test_a_daemon_that_hangs(one_form: str, boot: Callable[..., Machine]) -> None:
    """Every verb answers in its time; the daemon wakes, finds the queue, and does nothing for those who gave up."""
    on = boot(one_form, "address_cooldown: 1")
    on.program.tune(**QUICK)
    pid = on.start_daemon()
    steady, space = attached(on, "steady")
    said = on.call("ADD", on.conf(name="other"), "result", Space(on).path).ok()
    on.call("DEL", on.conf(name="other"), "result", "").ok()
    attached(on, "leaves")
    on.signal_daemon(signal.SIGSTOP, wait=False)
    answers = all_at_once(on, space, said)
    judge_times(answers)
    assert "queued" in answers["DEL"].err
    on.signal_daemon(signal.SIGCONT, wait=False)
    in_order(on, steady)
    assert on.daemon() == pid


@pytest.mark.timeout(600)
def test_a_daemon_that_never_opens_its_door(one_form: str, boot: Callable[..., Machine]) -> None:
    """It was started, is alive, and does not come up: the same times, and no plugin starts a second."""
    on = boot(one_form, "address_cooldown: 1")
    on.program.tune(**QUICK)
    on.program.arm("daemon FenceEnforcement.load before", "stop")
    space = Space(on)
    said = {"cniVersion": "1.1.0", "interfaces": [], "ips": []}
    judge_times(all_at_once(on, space, said))
    assert on.signal_daemon(signal.SIGCONT, wait=False)
    on.start_daemon()
    in_order(on)


@pytest.mark.timeout(600)
def test_status_does_not_wait_behind_slow_work(one_form: str, boot: Callable[..., Machine]) -> None:
    """As many ADDs as the daemon has threads hang in the kernel: STATUS still says how it is."""
    on = boot(one_form, "address_cooldown: 1")
    on.start_daemon()
    on.program.arm("daemon State.reserve before", "sleep", 4.0)  # with the segment's and the state's locks held by none
    first = started(on, "ADD", "slow", Space(on))
    time.sleep(0.3)
    others = [started(on, "ADD", f"behind{n}", Space(on)) for n in range(30)]
    time.sleep(0.3)
    answer = on.call("STATUS", on.conf())
    answer.ok()
    assert answer.took < 2.0 + busy(BUSY) - BUSY
    for process in (first, *others):
        process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.timeout(600)
def test_a_daemon_with_500_attachments_serves_within_a_second(
    one_form: str, boot: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured from the start of its process to its first answer, three times; the best is what it needs."""
    on = boot(one_form)
    on.start_daemon()
    spaces = [Space(on) for _ in range(50)]

    def some(part: list[Space]) -> None:
        for space in part:
            for n in range(ATTACHMENTS // len(spaces)):
                conf = on.conf(service=f"service{n}", **({"isolationNetwork": f"net{n}"} if n % 2 else {}))
                on.call("ADD", conf, space.name, space.path, f"eth{n}").ok()

    crew = [threading.Thread(target=some, args=(spaces[n::5],)) for n in range(5)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    before = on.sh("nft list ruleset | grep -v counter; ip -o link | sed 's/qdisc.*//'")
    took = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        on.signal_daemon(number)
        took.append(serves_after(on))
    assert len(on.ask("attachments")) == ATTACHMENTS
    assert on.sh("nft list ruleset | grep -v counter; ip -o link | sed 's/qdisc.*//'") == before
    with capsys.disabled():
        print(f"\n{one_form}: {ATTACHMENTS} attachments, serving after {', '.join(f'{t:.2f}' for t in took)} s", end="")  # noqa: T201
    assert min(took) < 1.0


def serves_after(on: Machine) -> float:
    """Start the daemon; seconds until it has answered."""
    words = [*on.program.daemon, "overlayd", "--run-dir", str(on.run_dir), "--data-dir", str(on.data_dir)]
    log = (on.run_dir / "overlayd.log").open("ab")
    begun = time.monotonic()
    env = {**BARE_ENV, **on.program.env}
    on.inside(lambda: subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env))
    while True:
        try:
            on.ask("status")
            return time.monotonic() - begun
        except (OSError, ValueError):
            assert time.monotonic() - begun < 30, on.log_tail()
            time.sleep(0.005)
