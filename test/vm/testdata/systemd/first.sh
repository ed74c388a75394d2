#!/bin/sh
# The operator of the test, at the machine's first boot: kill the agent while it
# waits for an approval, and look at what systemd makes of it.
exec >/dev/ttyS0 2>&1
until journalctl -q -b -u imprint-agent | grep -q "waiting for an operator"; do sleep 1; done
echo "guest: while it waits it is $(systemctl is-active imprint-agent), the system $(systemctl is-system-running)"
systemctl kill --signal=KILL imprint-agent
echo "guest: killed"
. /usr/local/lib/test/look.sh
