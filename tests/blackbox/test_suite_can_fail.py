"""The suite judged by plugins that are wrong on purpose: each must fail the cases that are there to catch it.

Control: the same cases pass with the working plugin around which the wrong ones are built.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import HERE, find_reference
from .harness.known import RACES, TABLES

pytestmark = pytest.mark.standalone

# Which cases must fail with which fault.
MUST_FAIL: dict[str, list[str]] = {
    "stray_stdout": [
        "test_lifecycle.py::test_l14_del_of_what_was_never_added[1.0.0]",
        "test_lifecycle.py::test_l22_add_again_after_del[1.0.0]",
    ],
    "wrong_code": ["test_skeleton.py::test_s02_all_missing_variables_in_one_message[ADD]"],
    "code_as_text": ["test_skeleton.py::test_s02_all_missing_variables_in_one_message[ADD]"],
    "veth_left": [
        "test_clean.py::test_l12_del_leaves_nothing[1.0.0-base]",
        "test_lifecycle.py::test_l22_add_again_after_del[0.3.1]",
    ],
    "same_address": [
        "test_concurrency.py::test_f01_fifty_first_attachments_at_once",
        "test_lifecycle.py::test_l20_two_interfaces_of_one_container[1.0.0]",
    ],
    "del_fails_twice": [
        "test_lifecycle.py::test_l13_del_again_and_again[0.1.0]",
        "test_lifecycle.py::test_l14_del_of_what_was_never_added[1.1.0]",
    ],
    "check_always_passes": [
        "test_check.py::test_k_broken_in_the_container[1.0.0-k04-address-removed]",
        "test_check.py::test_k01_no_previous_result[1.1.0]",
        "test_check.py::test_k06_the_host_side[1.0.0-removed]",
    ],
    "check_writes": ["test_check.py::test_k14_check_changes_nothing[1.0.0]"],
    "gc_frees_everything": [
        "test_gc_status.py::test_g03_no_list_is_not_an_empty_list",
        "test_gc_status.py::test_g09_what_lives_is_not_freed",
    ],
    "error_on_stderr": ["test_skeleton.py::test_s12_null_has_no_name"],
    "error_exits_zero": ["test_skeleton.py::test_s12_null_has_no_name"],
    "sandbox_resolved": ["test_lifecycle.py::test_l06_the_sandbox_is_the_string_that_was_given[0.4.0]"],
    "wrong_index": ["test_lifecycle.py::test_l09_the_host_side[1.0.0]"],
    "index_too_large": ["test_lifecycle.py::test_l25_the_shape_of_the_result[0.3.0]"],
    "newest_version": [
        "test_lifecycle.py::test_l25_the_shape_of_the_result[1.0.0]",
        "test_skeleton.py::test_s07_no_version_means_the_first[absent]",
    ],
    "wrong_mac": ["test_lifecycle.py::test_l05_the_link_is_what_the_result_says[1.0.0]"],
    "shouting_mac": ["test_lifecycle.py::test_l25_the_shape_of_the_result[1.1.0]"],
    "host_veth_hidden": ["test_lifecycle.py::test_l09_the_host_side[0.3.1]"],
    "dns_dropped": ["test_lifecycle.py::test_l23_dns_of_the_configuration[0.2.0]"],
    "result_and_error": ["test_lifecycle.py::test_l04_three_ranges[0.2.0]", "test_del.py::test_l17_add_twice[1.0.0]"],
    "ifname_ignored": ["test_skeleton.py::test_s06_an_interface_name_that_is_just_legal[fifteen-bytes-x]"],
    "no_default_route": ["test_lifecycle.py::test_l08_the_default_route_goes_by_the_gateway[1.0.0]"],
    "version_waits": ["test_skeleton.py::test_s13_version_does_not_wait_for_stdin"],
    "version_forgets": ["test_skeleton.py::test_s14_version_as_libcni_asks"],
    "own_stdout_kept": ["test_skeleton.py::test_s13_version_does_not_wait_for_stdin"],
    "add_takes_over": [
        "test_del.py::test_l17_add_where_the_name_is_taken[1.0.0]",
        "test_del.py::test_l17_add_twice[1.0.0]",
    ],
    "leaves_a_file": ["test_clean.py::test_l12_del_leaves_nothing[1.1.0-base]"],
    "leaves_a_process": ["test_clean.py::test_l12_del_leaves_nothing[1.1.0-base]"],
    "leaves_a_rule": ["test_clean.py::test_l12_del_leaves_nothing[1.1.0-base]"],
    "leaves_a_sysctl": ["test_clean.py::test_l12_del_leaves_nothing[1.1.0-base]"],
    "del_takes_all": ["test_lifecycle.py::test_l20_two_interfaces_of_one_container[1.0.0]"],
    "status_never_ready": ["test_gc_status.py::test_g11_ready_on_a_fresh_host"],
    "traceback": ["test_skeleton.py::test_s12_null_has_no_name"],
    "mac_ignored": ["test_chain.py::test_l24_a_mac_that_was_asked_for[runtimeConfig]"],
    "odd_args_accepted": ["test_chain.py::test_k3_cni_args_that_are_wrong[NOPAIR]"],
    "odd_names_accepted": ["test_skeleton.py::test_s04_a_container_id_of_bad_characters['a/b'-ADD]"],
}


def run_suite(plugin: str, cases: list[str], *more: str) -> dict[str, int]:
    """The cases against `plugin` with the reference's template, in a run of their own: outcome -> how many."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "--plugin", plugin]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "BLACKBOX_"))}
    done = subprocess.run(
        [*command, "--conf", "bridge", *more, *(str(HERE / case) for case in cases)],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent.parent,
        env=env,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last.split(" in ")[0])}


@pytest.fixture(scope="module")
def bridge() -> Path:
    """The current reference: the wrong ones are built around it."""
    found = find_reference("bridge")
    if found is None or found.parent == Path("/usr/lib/cni"):
        pytest.skip("the current reference is not here: tests/blackbox/reference.sh makes it")
    return found


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, bridge: Path) -> Iterator[dict[str, Future[dict[str, int]]]]:
    """What the suite says of each fault that is asked for. Most of a run is waiting, so several go at once."""
    items = [item for item in request.session.items if item.name.startswith("test_a_fault")]
    asked = [str(item.callspec.params["fault"]) for item in items if isinstance(item, pytest.Function)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        wrong = f"{sys.executable} -I -S {HERE / 'broken' / 'run.py'}"
        yield {fault: pool.submit(run_suite, f"{wrong} {fault} {bridge}", MUST_FAIL[fault]) for fault in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fault", sorted(MUST_FAIL))
def test_a_fault_is_found(outcomes: dict[str, Future[dict[str, int]]], fault: str) -> None:
    assert outcomes[fault].result() == {"failed": len(MUST_FAIL[fault])}


def test_the_same_cases_pass_without_a_fault(bridge: Path) -> None:
    cases = sorted({case for cases in MUST_FAIL.values() for case in cases})
    assert run_suite(str(bridge), cases) == {"passed": len(cases)}


def test_every_wrapper_is_used() -> None:
    files = {path.stem for path in (HERE / "broken").glob("*.py")} - {"wrap", "run"}
    assert files == set(MUST_FAIL)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_mark_is_of_a_case_that_exists(table: str) -> None:
    """A mark that matches nothing would hide that its case was renamed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", str(HERE)],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE.parent.parent,
    )
    from .conftest import matches

    cases = [line for line in done.stdout.splitlines() if "::" in line]
    patterns = [*TABLES[table], *RACES.get(table, {})]
    assert [pattern for pattern in patterns if not any(matches(case, pattern) for case in cases)] == []
