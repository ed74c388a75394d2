#!/bin/sh
# PID 1 (rdinit=/script): hand over to the system on the disk.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
	insmod "$module"
done
mount -t ext4 -o ro /dev/vda /mnt
mount --move /dev /mnt/dev
exec switch_root /mnt /sbin/init
