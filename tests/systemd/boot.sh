#!/bin/bash
# The first process of a scratch machine: makes it a root directory of its own, and becomes systemd.
#
# Run by machine.py as `unshare --mount --pid --fork --uts --ipc --net --cgroup bash boot.sh DIRECTORY`. The root is the
# host's, seen through an overlay: what is written goes to DIRECTORY, and is there again at the next boot. None of the
# host's own units is enabled in it.
set -e
root=$1/root
mkdir -p "$root" "$1/upper" "$1/work"
mount --make-rprivate /
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$root"
if [[ ! -e $root/etc/zlt ]]; then
    rm -rf "$root/etc/systemd/system" "$root/etc/cni" "$root/etc/zlayer-cni" "$root/opt" "$root/var/lib/zlayer-cni"
    mkdir -p "$root/etc/systemd/system" "$root/opt"
    touch "$root/etc/zlt"
    : >"$root/etc/fstab"
fi
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r name major minor <<<"$device"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
mkdir "$root/dev/net"
mknod -m 666 "$root/dev/net/tun" c 10 200
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs tmp "$root/tmp"
cd "$root"
mkdir -p .before
pivot_root . .before
umount -l /.before
mount --make-rshared / # as systemd does where it is not in a container (systemd.exec(5), MountFlags)
exec env -i container=zlt PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=0
