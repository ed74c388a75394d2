#!/bin/sh
# PID 1 of a machine that lives in memory: prepare it, run /script, power off.
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
for module in /modules/*; do
	insmod "$module"
done
hostname localhost
/script </dev/null
sync
poweroff -f
