"""The cases that a plugin is known to fail, each with its reason. They are strict: a case that passes is a failure.

Key: the end of a test's id, as fnmatch understands it (square brackets are taken as they are). Conformance 15 lists
what the reference was seen to fail; what is not there was measured here.
"""

from __future__ import annotations

COMMON: dict[str, str] = {
    # test_skeleton
    "test_s05_a_bad_value_names_its_variable[*": "says only what is wrong with the value (15, V2)",
    "test_s14_version_echoes_what_it_was_asked_with[0.3.1]": "does not read stdin; prints its own newest (15, VE1)",
    "test_e2_cni_path_is_optional": "CNI_PATH is required by the skeleton (E2); optional with us by decision",
    # test_lifecycle
    **{
        f"test_l23_an_empty_dns_is_left_out[{version}]": 'prints "dns": {} up to 0.4.0 (15, R4)'
        for version in ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0")
    },
    # test_del
    **{
        f"test_l15_del_with_a_path_that_is_no_namespace[{kind}]": "DEL fails for ever on such a path, or waits (15)"
        for kind in ("file", "directory", "fifo", "socket", "device", "utsns", "long")
    },
    **{
        f"test_l16_del_with_a_garbage_previous_result[{prev}]": "999 for a previous result that is no object (15, D4)"
        for prev in ("7", "x", "[]")
    },
    "test_l22_add_again_after_the_machine_restarted[*": "duplicate allocation is not allowed (A7)",
    "test_l18_the_hosts_own_namespace[ADD]": "a result and an error, and veth and lease stay (15)",
    "test_l18_the_hosts_own_namespace[DEL]": "deletes the host's eth0, then says code 8 (15)",
    "test_l18_the_plugins_own_namespace_by_proc[*": "a result and an error, and veth and lease stay (15)",
    "test_d2_a_namespace_that_another_container_has_now": "deletes the other container's eth0 (15)",
    "test_d2_somebody_elses_interface_of_the_name": "deletes by name any link, whichever program made it (15)",
    "test_d3_an_empty_path_does_not_free_what_still_lives": "frees the address of a live link (15)",
    "test_d7_a_configuration_gone_wrong_does_not_stop_del": "repeats configuration errors for ever (15)",
    "test_v9_a_field_with_a_wrong_value": "999 for a wrong value of a field of its own",
    # test_check
    **{
        f"test_k_broken_in_the_container[{version}-k05-default-route-blackhole]": "CHECK passes (15)"
        for version in ("0.4.0", "1.0.0", "1.1.0")
    },
    "test_k05_default_route_by_another_gateway[*": "CHECK passes with another gateway (15)",
    "test_k06_the_host_side[*-down]": "CHECK passes with the host veth down (15)",
    "test_k06_the_bridges_address": "CHECK passes with the bridge address gone (15)",
    "test_k06_masquerade_flushed": "CHECK passes with masquerade flushed (15)",
    # test_ipam, test_gc_status
    "test_i04_status_tells_that_the_pool_is_empty": "STATUS is 0 with the pool exhausted (15)",
    **dict.fromkeys(
        [
            "test_g01_*",
            "test_g02_*",
            "test_g04_*",
            "test_g05_*",
            "test_g08_*",
            "test_g10_a_malformed_list_*",
            "test_gc_leaves_no_trace_of_the_dead",
        ],
        "GC does nothing (G9)",
    ),
    # test_chain
    "test_pr5_a_plugin_before_us[*": "drops the interfaces of the result before it (15, PR5)",
    "test_pr4_a_previous_result_that_cannot_be_read": "does not look at a previous result in ADD (PR4)",
    # test_recordings
    **{
        f"test_a_call_alone[{call}]": "deletes any link by name, `lo` too (15)"
        for call in (
            "containerd-1.6-add-times-out-3-loopback-DEL",
            "containerd-1.6-capabilities-5-loopback-DEL",
            "containerd-1.6-pod-life-4-loopback-DEL",
            "containerd-1.6-stop-twice-0-loopback-DEL",
        )
    },
    # test_clean
    "test_l12_del_leaves_no_neighbour": "a stale neighbour entry stays (15)",
    "test_l12_del_without_the_namespace_leaves_nothing[masq]": "DEL without a netns leaves masquerade rules (15)",
    "test_l27_a_result_that_the_version_cannot_hold": "the veth stays when the result cannot be converted (15)",
    "test_a6_addresses_that_the_version_cannot_hold": "the veth stays when ADD fails after it was made (A6)",
    "test_a6_a_failure_late_in_add_leaves_nothing[unreachable-route]": "the veth stays when ADD fails late (A6)",
    "test_a6_stdout_that_nobody_reads": "the attachment stays when the result cannot be written (15)",
}

# Races: a run that meets one fails, others pass; so these are not strict.
REFERENCE_RACES: dict[str, str] = {
    "test_f01_check_after_a_parallel_start": "parallel first ADDs report a bridge MAC that then changes (15)",
    "test_f03_several_dels_of_one_container_at_once[*": "DELs at once fail (15)",
}

# Current releases.
REFERENCE = COMMON | {
    "test_s14_version_echoes_what_it_was_asked_with[1.0.0]": "does not read stdin; prints its own newest (15, VE1)",
}

# Debian's 1.1.1, whose own newest is 1.0.0.
REFERENCE_1_1 = COMMON | {
    "test_l23_an_empty_dns_is_left_out[1.0.0]": 'prints "dns": {} at 1.0.0 too',
}

ZLAYER: dict[str, str] = {}

RACES = {"reference": REFERENCE_RACES, "reference-1.1": REFERENCE_RACES}
TABLES = {"reference": REFERENCE, "reference-1.1": REFERENCE_1_1, "zlayer": ZLAYER}
