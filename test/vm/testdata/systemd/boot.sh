#!/bin/sh
# PID 1 (rdinit=/script): install what is on the second disk, a tar archive, into
# the system on the first, and hand over to it.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
	insmod "$module"
done
mount -t ext4 -o rw /dev/vda /mnt
if ! [ -e /mnt/usr/sbin/imprint-agent ]; then
	# Of Debian's CAs one is as good as all: under emulation it takes a minute to
	# install another beside a hundred and forty.
	rm -f /mnt/etc/ssl/certs/*
	echo mozilla/ISRG_Root_X1.crt >/mnt/etc/ca-certificates.conf
fi
tar -xf /dev/vdb -C /mnt
mount --move /dev /mnt/dev
exec switch_root /mnt /sbin/init
