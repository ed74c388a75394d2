#!/bin/sh
# Enrol and read metadata over the link-local interface, while somebody attacks.
attacker watch &
cat >/run/lease <<'END'
#!/bin/sh
case $1 in
deconfig) ip link set $interface up ;;
bound)
	ip addr add $ip/$mask dev $interface
	echo "guest: leased $ip/$mask; $staticroutes; router $router"
	set -- $staticroutes
	ip route add $1 dev $interface ;;
esac
END
chmod +x /run/lease
udhcpc -q -n -i eth0 -s /run/lease || echo "guest: no lease"
imprint-agent run --once && echo "guest: enrolled, and reads $(cat /run/imprint/params/db-password)"
attacker -times 300 read
