// Package host is the host role: it runs beside the hypervisor and speaks with
// the guests over their serial and virtio-serial ports, and over a network
// interface that each has to the host alone.
//
// A connection arrives already knowing whose it is: every instance has a unix
// socket of its own for each channel, which only the hypervisor's user can
// open, so the socket is the identity and nothing that the guest says is. That
// is why the host may countersign what comes up a channel.
//
//	<run dir>/<instance id>/virtio-serial.sock
//	<run dir>/<instance id>/serial.sock
//
// Where a platform insists on listening itself, the host dials its socket
// instead. Who listens there is then taken for the guest, so it has to be the
// hypervisor's user, at a path that nobody else can change.
//
// On the link-local network the interface is the identity (package tap), DHCP
// gives the guest its address, and package metadata answers over HTTP what was
// rendered here. There any process in the guest may ask, so what is for its root
// needs a source port below 1024. The network is opened for the first instance
// that needs it, and which address and MAC an instance has is on its record.
//
// A guest that was told to expect the protocol waits for an answer for ever, so
// the sockets exist as long as the instance does. After a restart they are bound
// again before anything else happens; a hypervisor that is told to reconnect
// comes back by itself, and waits there until the instance's record has arrived.
//
// What a guest may read is decided by the audience rule. Public values are
// looked up in Views that were rendered when the instance changed and are served
// without the control plane. Private values are fetched for each read, and each
// read is on record before the first byte leaves. Secret values leave sealed to
// the enrolled key only.
package host
