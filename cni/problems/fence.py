"""The problems of the isolation fence."""

from __future__ import annotations

from cni.problems.kind import ProblemKind

KINDS = (
    ProblemKind(
        "policy-file",
        "fence",
        "error",
        "A file of network policies cannot be read, or names a policy that another file has. The last good content of"
        " the file stays in force; a policy that could never be read isolates what it selects.",
        "Mend the file at the field that the text names; `zlayer-cni validate FILE` checks it.",
    ),
    ProblemKind(
        "fence-not-in-force",
        "fence",
        "error",
        "The nftables tables of the isolation fence are not loaded; ADD fails with 105.",
        "Read the text: it holds the error of nftables. `zlayer-cni doctor` searches for the cause.",
    ),
    ProblemKind(
        "fence-repaired",
        "fence",
        "warning",
        "Another program changed the fence's nftables tables in the last minute; they were repaired at once.",
        "Find the program named in the text: a reload of a firewall should not flush the tables of other programs.",
    ),
    ProblemKind(
        "member-refused",
        "cluster",
        "warning",
        "A member of an isolation network that another node publishes is not added to the fence.",
        "Check that node: the text names the address and the reason. The node's other members are unaffected.",
    ),
)
