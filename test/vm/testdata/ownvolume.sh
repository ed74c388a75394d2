#!/bin/sh
# Enrol with the payload on a partition of the machine's own disk: first while that is
# mounted, so that it cannot be taken away, then again when it is not, and once more
# when nothing is left of it.
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo "10.0.2.2 imprint.internal" >/etc/hosts
run() {
	imprint-agent run --once --wait 10s
	echo "guest: $1 ended with status $?"
}
mkdir /mnt
mount -r -t vfat /dev/vda2 /mnt
run mounted
umount /mnt
run unmounted
[ -e /run/imprint/volume ] && echo "guest: left the mount point"
run blank
