// Package triton speaks version 2 of the Triton (Joyent) metadata protocol,
// both ends, over any byte stream: a serial port, a virtio-serial port, a pty, a
// socket.
//
// # The protocol
//
// Everything is a line of ASCII that ends in LF. The guest always speaks first
// and one request gives at most one reply:
//
//	(empty line)         →  invalid command          resynchronisation
//	NEGOTIATE V2         →  V2_OK
//	V2 <len> <crc> <id> <code>[ <base64>]  →  the same form, same id
//
// len counts the bytes of the body, which is all that follows the checksum's
// space; crc is the body's CRC-32 (IEEE) and id the client's choice, both as 8
// lower-case hexadecimal digits. A body without payload has no trailing space.
// Requests are GET, PUT, DELETE and KEYS; replies SUCCESS, NOTFOUND and FAILURE.
// (joyent/mdata-docs, mdata/protocol.md.)
//
// # Noise
//
// The port is shared with whatever else runs in the guest: firmware that takes
// it for a console, kernel messages, an earlier process that died in mid-line.
// Guest processes come and go without the host seeing it. So every message is
// understood at any moment, whatever is not a whole message is dropped in
// silence, and the host never sends a byte that nobody asked for.
package triton
