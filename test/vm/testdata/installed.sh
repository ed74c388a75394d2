#!/bin/sh
# What an installed machine is, once it is enrolled; and its end.
exec >/dev/ttyS0 2>&1
echo "guest: enrolled $IMPRINT_NAME"
sed 's/^/guest: motd /' /etc/motd
echo "guest: machine-id $(cat /etc/machine-id)"
echo "guest: root $(findmnt -n -o UUID /) of $(findmnt -n -o SOURCE /)"
echo "guest: root MiB $(df -m --output=size / | tail -n 1 | tr -d ' ')"
sed 's/^/guest: fstab /' /etc/fstab
grep -q '^virtio_blk ' /proc/modules && echo "guest: driver virtio_blk"
echo "guest: unit $(systemctl is-enabled imprint-agent)"
systemctl --failed --no-legend --plain | sed 's/^/guest: failed /'
systemctl --no-block poweroff
