#!/bin/sh
# One boot in the place of several machines: each has one of the volumes, beside
# one that is none of imprint's.
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo "10.0.2.2 imprint.internal" >/etc/hosts
cd /sys/bus/virtio/drivers/virtio_blk || exit
disks=$(ls -d virtio*)
stranger=$(echo "$disks" | head -n 1)
for disk in $disks; do
	[ "$disk" = "$stranger" ] || echo "$disk" >unbind
done
for disk in $disks; do
	[ "$disk" != "$stranger" ] || continue
	echo "$disk" >bind
	imprint-agent run --once --wait 10s
	echo "guest: ended with status $?"
	cut -d ' ' -f 1 /proc/mounts | sed -n 's,^/dev/,guest: left mounted ,p'
	[ -e /run/imprint/volume ] && echo "guest: left the mount point"
	imprint-agent status | sed 's/^/guest: /'
	rm -rf /etc/imprint/* /run/imprint
	echo "$disk" >unbind
done
