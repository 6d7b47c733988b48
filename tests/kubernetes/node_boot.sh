#!/bin/bash
# The first process of a node of Kubernetes: makes it a root directory of its own, and waits.
#
# Run as `unshare --mount --pid --fork --uts --ipc bash node_boot.sh DIRECTORY NAME` in the network namespace of the node.
# The root is the host's, seen through an overlay whose upper directory is a tmpfs of this mount namespace: whatever
# containerd, the kubelet and the pods write is gone with the node. It ends when standard input ends, and with it every
# process of the node.
set -e
directory=$1 root=$1/root
hostname "$2"
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$directory"
mkdir "$root" "$directory/upper" "$directory/work"
mount -t overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" overlay "$root"
rm -rf "$root/etc/cni" "$root/etc/containerd" "$root/etc/zlayer-cni" "$root/opt" "$root/var/lib/zlayer-cni" "$root/var/lib/cni"
mkdir -p "$root/opt/cni/bin" "$root/etc/cni/net.d" "$root/etc/containerd"
for plugin in loopback portmap bandwidth bridge host-local; do # as the package kubernetes-cni does
    cp "/usr/lib/cni/$plugin" "$root/opt/cni/bin/"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 kmsg:1:11; do
    IFS=: read -r name major minor <<<"$device"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for place in run tmp var/log; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
mkdir -p "$root/run/zlt" "$root/var/lib/containerd" "$root/var/lib/kubelet"
for place in containerd kubelet; do mount -t tmpfs -o mode=755 tmpfs "$root/var/lib/$place"; done
# What a kubelet sets of the machine, which is not this node's alone.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    file=$root/run/zlt/${setting//\//-}
    cat "/proc/sys/$setting" >"$file"
    mount --bind "$file" "$root/proc/sys/$setting"
done
printf 'nameserver 192.0.2.53\n' >"$root/run/zlt/resolv.conf"
cd "$root"
mkdir -p .before
pivot_root . .before
umount -l /.before
mount --make-rshared / # as systemd does: mounts of the node reach containers that ask for them
exec python3 -I -c '
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while os.read(0, 4096):
    pass
'
