#!/bin/sh
# Has one interface, which leads to its host: lease an address there, read what
# stock software would, enrol, and say what was found.
say() { echo "guest: $*"; }

cat >/tmp/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/32" dev "$interface"
set -- $staticroutes
ip route add "$1" dev "$interface" scope link
END
chmod 755 /tmp/lease
ip link set eth0 up
udhcpc -i eth0 -n -q -O staticroutes -s /tmp/lease >/dev/null 2>&1 || { say "no lease"; exit 1; }
say "MAC $(cat /sys/class/net/eth0/address)"
say "address $(ip -4 -o address show dev eth0 | sed 's/.* inet \([0-9.]*\).*/\1/')"
say "name $(printf 'GET /latest/meta-data/local-hostname HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n' | nc 169.254.169.254 80 | tail -n 1)"
imprint-agent run --once || { say "the agent gave up with status $?"; exit 1; }
say "parameter $(cat /run/imprint/params/db-password)"
