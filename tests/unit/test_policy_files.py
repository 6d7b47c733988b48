"""Files of network policies that cannot be read: the last good content holds, and what never could be read isolates."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni.daemon.events import Events
from cni.daemon.parts_fence import build_fence
from cni.daemon.policy.model import Policy
from cni.daemon.policy.stand_in import UNNAMED
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.policy_files import PolicyFiles
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Tables
from cni.host.worker import Crew

HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: net}\nspec: "
WEB = HEAD % "web" + "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}\n"
FAULTY = HEAD % "db" + "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 0}]}]}\n"


class Scene:
    """A directory of policies, the records of it, and a fence whose tables are not loaded."""

    def __init__(self, directory: Path) -> None:
        events, store = Events(), Store(directory / "state")
        self.board, self.records, settings = ProblemBoard(events), Tables(store).policy_files, Settings()
        self.fence = build_fence(State(store, settings, events), settings, True, lambda: True, lambda: ())
        self.place = directory / "policies"
        self.place.mkdir()

    def start(self, **files: str) -> dict[str, str]:
        """What a daemon that starts has in force of these files: the ports that each policy allows."""
        for name, text in files.items():
            (self.place / f"{name}.yaml").write_text(text)
        return self.in_force()

    def in_force(self) -> dict[str, str]:
        """What a daemon that starts with the records has in force."""
        PolicyFiles(str(self.place), self.fence.members, self.records, self.board, Crew()).take_in()
        policies: list[Policy] = []
        self.fence.members.change_policies(lambda table: policies.extend(table.book.table.policies.values()))
        return {
            policy.title: ",".join(str(port.first) for rule in policy.ingress or () for port in rule.ports or ())
            for policy in policies
        }


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_policy_that_could_never_be_read_isolates_what_it_selects(scene: Scene) -> None:
    assert scene.start(a=FAULTY) == {"net/db": ""}
    assert scene.board.subjects("policy-file") == {"a.yaml"}


def test_a_readable_policy_beside_a_faulty_one_is_in_force(scene: Scene) -> None:
    assert scene.start(a=f"{WEB}---\n{FAULTY}") == {"net/web": "80", "net/db": ""}


def test_the_last_good_content_holds_and_a_further_faulty_policy_isolates(scene: Scene) -> None:
    scene.start(a=WEB)
    changed = WEB.replace("80", "81")
    for _ in range(2):  # the second daemon has it from the records and the file
        assert scene.start(a=f"{changed}---\n{FAULTY}") == {"net/web": "80", "net/db": ""}
    assert scene.start(a=changed) == {"net/web": "81"}
    assert scene.board.subjects("policy-file") == set()


def test_what_isolates_is_recorded(scene: Scene) -> None:
    """A directory that cannot be listed changes nothing, also for a daemon that starts."""
    scene.start(a=FAULTY)
    for path in scene.place.iterdir():
        path.unlink()
    scene.place.rmdir()
    scene.place.write_text("no directory")
    assert scene.in_force() == {"net/db": ""}


def test_a_policy_without_a_readable_name_isolates_too(scene: Scene) -> None:
    assert scene.start(a=WEB.replace("name: web", "name: 'W\"b'")) == {f"net/{UNNAMED}": ""}


def test_a_file_that_names_no_policy_isolates_nothing(scene: Scene) -> None:
    assert scene.start(a="{", b="kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n") == {}
    assert scene.board.subjects("policy-file") == {"a.yaml", "b.yaml"}


def test_a_policy_of_two_files_is_that_of_the_first(scene: Scene) -> None:
    assert scene.start(a=WEB, b=f"{WEB.replace('80', '81')}---\n{FAULTY.replace('port: 0', 'port: 5')}") == {
        "net/web": "80",
        "net/db": "5",
    }
    assert scene.board.subjects("policy-file") == {"b.yaml"}
