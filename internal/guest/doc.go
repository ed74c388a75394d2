// Package guest is the logic of imprint-agent, the program that runs inside a
// machine: it finds the payload, makes a key, enrols, and keeps the certificate
// renewed. It runs on Linux, with or without systemd and udev, and on Windows.
//
// # Where a payload comes from
//
// The sources are tried in this order, round after round, until one of them has
// a payload or the time given by --wait is over:
//
//  1. the virtio-serial port org.imprint.boot.0
//  2. the second serial port: ttyS1, COM2
//  3. a volume labelled IMPRINT, mounted or not, with a file payload.json
//  4. the file opt/org.imprint/payload of QEMU's fw_cfg (Linux)
//  5. the SMBIOS OEM string that begins with "org.imprint:payload=" (Linux)
//  6. the file /etc/imprint/payload.json, or only the file named by --payload
//  7. the host at 169.254.169.254, if an interface leads there alone (Linux)
//
// The first two and the last are live: everything else happens over the same
// channel. The others are one-way: the agent goes on to the check-in endpoint that the payload
// names, with the one-time token that it carries.
//
// # What is on disk, and how a run resumes
//
// The agent has no journal. It derives what to do from its files, each of which
// is written atomically and only after what it depends on:
//
//	identity.json  who this machine is, and which serials were confirmed and put to use
//	key.pem        the private key; made once a generation, never leaves
//	cert.pem       the certificate and its issuing chain; replaced only by a verified one
//	ca.pem         the CA to trust
//
// A volume of imprint's that brought the payload is overwritten with zeros once the machine
// is enrolled; identity.json says how far that is.
//
// A run that finds a key uses it and repeats the same request, for which imprint
// gives the same certificate; a run that finds a valid certificate goes on with
// the confirmation, and so on: every step may be repeated. A payload of a newer
// generation sets the old files aside in old/ and starts again; one of an older
// generation, or of another machine, is refused.
//
// Parameters are kept in memory file systems only (see [Layout.Params]).
package guest
