#!/bin/sh
# Say who the machine is and who made it so, and end it.
echo "guest: $(uname -n) is enrolled by $(systemctl --no-legend --plain list-units --state=activating,active 'imprint-*.service' | cut -d ' ' -f 1)" >/dev/ttyS0
echo "guest: bob has $(getent shadow bob | cut -d: -f2)" >/dev/ttyS0
systemctl --no-block poweroff
