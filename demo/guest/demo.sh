#!/bin/sh
# What the machine does once it is up: enrol, then show who can read what.
# demo/run looks for the lines that start with "guest:".

say() { echo "guest: $*"; }

# as_nobody COMMAND: an unprivileged process tries it; why it may not is shown.
as_nobody() {
	if why=$(su -s /bin/sh nobody -c "$1" 2>&1); then
		say "nobody MAY $1"
	else
		say "nobody may not $1: $(echo "$why" | tail -n 1 | sed 's/.*: //')"
	fi
}

imprint-agent run --once || { say "the agent gave up with status $?"; exit 1; }

params=/run/imprint/params
say "root finds the private parameter on $(stat -f -c %T $params): $(stat -c '%A %U' $params/db-password)"
say "root reads the private parameter: $(cat $params/db-password)"

su -s /bin/sh nobody -c true && say "nobody is a working user with uid $(id -u nobody)"
as_nobody "ls $params"
as_nobody "cat $params/db-password"
as_nobody "cat /etc/imprint/key.pem"
as_nobody "cat /dev/ttyS1"
for port in /dev/vport*; do
	[ -e "$port" ] && as_nobody "cat $port"
done
as_nobody "imprint-agent param --live db-password"

say "root opens the secret parameter with the enrolled key: $(imprint-agent param --live join-key 2>/dev/null)"
