# What an operator sees once the machine is enrolled.
systemctl start imprint-agent
echo "guest: the system is $(systemctl is-system-running --wait)"
systemctl --failed --no-legend --plain | sed 's/^/guest: failed /'
systemctl show imprint-agent -p ActiveState -p SubState -p NRestarts -p Result | sed 's/^/guest: /'
echo "guest: parameters are on $(findmnt -n -o FSTYPE -T /run/imprint/params)"
stat -c 'guest: %A %U:%G %n' /run/imprint /run/imprint/params /run/imprint/params/* /etc/imprint/key.pem /etc/imprint/cert.pem
setpriv --reuid=65534 --regid=65534 --clear-groups cat /run/imprint/params/db-password && echo "guest: nobody MAY read it"
openssl verify -untrusted /etc/imprint/cert.pem /etc/imprint/cert.pem | sed 's/^/guest: openssl /'
sshd -T | grep -i '^hostcertificate' | sed 's/^/guest: sshd /'
ssh-keygen -L -f /etc/ssh/ssh_host_ed25519_key-cert.pub | grep -A 1 Principals | sed 's/^ */guest: ssh /'
imprint-agent status | sed 's/^/guest: /'
date -u +'guest: it is %F'
systemctl poweroff
