# What systemd made of credentials, in a system that nothing else has prepared.
exec >/dev/ttyS0 2>&1
echo "guest: name $(uname -n)"
sed 's/^/guest: key /' /root/.ssh/authorized_keys
cd /run/credentials/@system && stat -c 'guest: %A %U %n' *
su nobody -s /bin/sh -c 'cat /run/credentials/@system/*' >/dev/null 2>&1 && echo "guest: nobody MAY read them"
getent passwd alice bob | sed 's/^/guest: user /'
echo "guest: groups $(id -Gn alice)"
stat -c 'guest: %A %U %G %n' /home/alice /home/alice/.ssh/authorized_keys
getent shadow alice | cut -d: -f1,2 | sed 's/^/guest: /'
echo "guest: bob becomes $(su bob -c 'sudo -n id -un' 2>/dev/null || echo nobody)"
umask 077
cat >/run/key <<END
ALICES KEY
END
mkdir -p /run/sshd
rm -f /run/nologin # the system is not yet as far as to let users log in
ssh-keygen -A >/dev/null
ssh -i /run/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
	-o ProxyCommand='/usr/sbin/sshd -i' alice@guest 'echo "guest: $(id -un) logs in and becomes $(sudo -n id -un)"'
[ -e /etc/imprint ] || echo "guest: nothing of imprint's on the disk"
