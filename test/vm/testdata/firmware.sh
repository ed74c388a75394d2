#!/bin/sh
# One boot in the place of two machines: the first has a payload in fw_cfg, and once
# that is gone the second finds one among the SMBIOS strings.
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
echo "10.0.2.2 imprint.internal" >/etc/hosts
for file in /sys/firmware/qemu_fw_cfg/by_name/opt/org.imprint/payload/raw /sys/firmware/dmi/tables/DMI; do
	su nobody -s /bin/sh -c "cat $file" >/dev/null 2>&1 && echo "guest: nobody MAY read $file"
	[ -r "$file" ] && echo "guest: root reads $file"
done
echo "guest: serial $(cat /sys/class/dmi/id/product_serial)"
echo "guest: uuid $(cat /sys/class/dmi/id/product_uuid)"
echo "guest: vendor $(cat /sys/class/dmi/id/sys_vendor)"
for source in fw_cfg SMBIOS; do
	imprint-agent run --once --wait 10s
	echo "guest: ended with status $?"
	imprint-agent status | sed "s/^/guest: by $source: /"
	rm -rf /etc/imprint/* /run/imprint
	[ "$source" = SMBIOS ] || rmmod qemu_fw_cfg
done
