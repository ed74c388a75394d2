# What systemd made of credentials, in a system that nothing else has prepared.
exec >/dev/ttyS0 2>&1
echo "guest: name $(uname -n)"
sed 's/^/guest: key /' /root/.ssh/authorized_keys
cd /run/credentials/@system && stat -c 'guest: %A %U %n' *
su nobody -s /bin/sh -c 'cat /run/credentials/@system/*' >/dev/null 2>&1 && echo "guest: nobody MAY read them"
[ -e /etc/imprint ] || echo "guest: nothing of imprint's on the disk"
