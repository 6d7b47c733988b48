"""Deliberate faults: each is a mistake that a change of the daemon could make, put into a copy of the program.

`test_can_fail.py` runs the storm with each and expects it to be caught. A fault is a class: the docstring says which
mistake, MODULE and NAME what is replaced, and `instead(real, ...)` is the replacement.
"""

import sys
from typing import Any


class AddressNeverGivenBack:
    """DEL forgets the record and not, in memory, the address: the pool leaks."""

    MODULE, NAME = "cni.daemon.state.address_pool", "AddressPool.release_hold"

    @staticmethod
    def instead(real, self, texts):
        return None


class AddressGivenOutTwice:
    """The book of addresses forgets to note who was just given one."""

    MODULE, NAME = "cni.daemon.state.address_pool", "AddressPool.hold"

    @staticmethod
    def instead(real, self, texts):
        texts = list(texts)
        return real(self, texts[1:] if len(texts) == 1 and texts[0].endswith(("4", "7")) else texts)


class NothingIsRolledBack:
    """An ADD that fails leaves what it had made."""

    MODULE, NAME = "cni.daemon.attachments.attach", "Attacher._roll_back"

    @staticmethod
    def instead(real, self, key, used):
        return None


class QueueIsNeverDrained:
    """Deletions that plugins wrote down stay where they are."""

    MODULE, NAME = "cni.daemon.api.delete_queue", "drain"

    @staticmethod
    def instead(real, *args):
        return None


class QueueIsEmptiedUnread:
    """Deletions that plugins wrote down are thrown away."""

    MODULE, NAME = "cni.daemon.api.delete_queue", "_is_void"

    @staticmethod
    def instead(real, *args):
        return True


class FenceElementsStay:
    """What a port may do in the fence is not taken back with it."""

    MODULE, NAME = "cni.daemon.fence.members", "FenceMembers.remove_port"

    @staticmethod
    def instead(real, self, attachment):
        return None


class LinkIsLeft:
    """DEL answers without having taken the link away, now and then."""

    MODULE, NAME = "cni.host.kernel", "Kernel.remove_link"
    calls = 0

    @classmethod
    def instead(cls, real, self, name):
        cls.calls += 1
        return True if cls.calls % 5 == 0 else real(self, name)


class StraysStay:
    """A new daemon lets links be that no record knows."""

    MODULE, NAME = "cni.daemon.reconcile.node", "Reconciler._sweep_strays"

    @staticmethod
    def instead(real, self):
        return None


class UnfinishedIsAdopted:
    """A new daemon takes an intent of the last one for an attachment."""

    MODULE, NAME = "cni.daemon.reconcile.node", "Reconciler.adopt"

    @staticmethod
    def instead(real, self):
        return None


class UnheardIsKept:
    """The daemon lets an ADD stand whose plugin was killed over it."""

    MODULE, NAME = "cni.daemon.attachments.overlay", "NodeOverlay.undo_attempt"

    @staticmethod
    def instead(real, self, attempt):
        return None


class TheEndIsNotFollowed:
    """The daemon takes a result that was printed for one that was heard, however its plugin ended."""

    MODULE, NAME = "cni.daemon.api.plugin_calls", "PluginCalls._watch_plugin_exit"

    @staticmethod
    def instead(real, self, knock):
        return None


class TheDirectoryIsNotTakenBack:
    """The daemon does not check whether the run directory still exists."""

    MODULE, NAME = "cni.daemon.server", "Server._restore_files"

    @staticmethod
    async def instead(real, self):
        return None


class ASecondDaemonComesIn:
    """Only a lock in the run directory keeps a second daemon out, and that can be deleted."""

    MODULE, NAME = "cni.daemon.run_dir", "RunDirLock._take_name"

    @staticmethod
    def instead(real, self):
        return True


class RecordIsNotWritten:
    """The committed record stays in memory: the next daemon does not know the attachment."""

    MODULE, NAME = "cni.daemon.state.store", "Store.apply"

    @staticmethod
    def instead(real, self, changes):
        changes = [c for c in changes if not (c[0] == "attachment" and c[2] and b'"live"' in c[2])]
        return real(self, changes)


class DeletionIsNotRecorded:
    """DEL forgets the record in memory only: the next daemon believes the container is still there."""

    MODULE, NAME = "cni.daemon.state.store", "Store.apply"

    @staticmethod
    def instead(real, self, changes):
        return real(self, [c for c in changes if not (c[0] == "attachment" and c[2] is None)])


class DeadAreNeverCollected:
    """The daemon does not check whether a recorded container still has its link."""

    MODULE, NAME = "cni.daemon.attachments.attach", "Attacher.release_dead"

    @staticmethod
    def instead(real, self, attachment):
        return False


class OtherBootsRecordsAreKept:
    """What was recorded before a reboot is believed after it."""

    MODULE, NAME = "cni.daemon.state.store", "Store.__init__"

    @staticmethod
    def instead(real, self, path, boot_id=None):
        return real(self, path, "always the same")


class SecondAttemptIsRefused:
    """The plugin's own retry is taken for a second ADD of the runtime's."""

    MODULE, NAME = "cni.daemon.attachments.attach", "Attacher.attach"

    @staticmethod
    def instead(real, self, request):
        import dataclasses
        import os

        return real(self, dataclasses.replace(request, attempt=os.urandom(8).hex()))


class DirectoriesAreNotSwept:
    """What killed single files left in the temporary directory stays."""

    MODULE, NAME = "cni.tempdir_sweeper", "sweep"

    @staticmethod
    def instead(real, *args):
        return []


class SlowStatus:
    """STATUS waits behind everything else."""

    MODULE, NAME = "cni.daemon.attachments.overlay", "NodeOverlay.ready"

    @staticmethod
    def instead(real, self, *args):
        import time

        time.sleep(4)
        return real(self, *args)


ALL: dict[str, Any] = {
    name: each for name, each in globals().items() if isinstance(each, type) and hasattr(each, "MODULE")
}


def put_in(fault, module):
    """Put the fault of that name into its module, which was just executed; any other module is left alone."""
    each = ALL[fault]
    if module.__name__ != each.MODULE:
        return
    owner, _, attribute = each.NAME.rpartition(".")
    owner = getattr(module, owner) if owner else module
    real = getattr(owner, attribute)

    def changed(*args, **more):
        return each.instead(real, *args, **more)

    setattr(owner, attribute, changed)
    sys.stderr.write(f"a deliberate fault is in force: {fault}\n")
