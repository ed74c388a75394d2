#!/bin/sh
# Enrol with what is on the medium that the kernel's command line names, when the
# operator says so at the console, and see whether the medium goes.
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
medium=$(sed -n 's/.*medium=\([a-z0-9]*\).*/\1/p' /proc/cmdline)
readable() { dd if=/dev/"$medium" of=/dev/null bs=2048 count=1 2>/dev/null; }
case $medium in
smbios | initrd | fwcfg) ;;
*)
	n=0
	until readable || [ $n -ge 100 ]; do
		sleep 0.1
		n=$((n + 1))
	done
	readable && echo "guest: the medium is there"
	;;
esac
echo "guest: up"
read -r line </dev/console
imprint-agent run --once --wait 10s
echo "guest: ended with status $?"
read -r line </dev/console
if readable; then echo "guest: the medium is there still"; else echo "guest: the medium is gone"; fi
