#!/bin/sh
# Enrol, with what has to survive a power cut on a disk if there is one.
if [ -b /dev/vda ]; then
	mount -t ext4 /dev/vda /etc/imprint || echo "guest: no disk"
fi
imprint-agent run --once && echo "guest: enrolled with status $?"
