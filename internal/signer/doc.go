// Package signer keeps CA keys in a process of their own ("imprint sign") and
// lets the server use them over a unix socket. The server can then ask for
// signatures, but a fault in it does not give the keys away.
//
// # Who may connect
//
// The socket has mode 0600, or 0660 if a group is configured. Besides, each
// peer's credentials are read from the kernel (SO_PEERCRED): it must run as the
// signer's own user, or as root, or with the configured group as its primary one.
//
// # Protocol
//
// The client sends one request at a time on a connection and reads its reply;
// several connections work side by side. Integers are big-endian.
//
//	request  = length:uint16 version:1 op:uint8 body
//	reply    = length:uint16 version:1 status:uint8 body
//
// length counts the bytes after it. Requests have at most 128 bytes, replies 8192.
//
//	op 1, list:  body empty;  reply: for each key, length:uint16 SubjectPublicKeyInfo
//	op 2, sign:  body key:32 hash:uint8 digest;  reply: ECDSA signature in ASN.1 DER
//
// key is the SHA-256 of the key's SubjectPublicKeyInfo. hash is 1 for SHA-256, 2
// for SHA-384 and 3 for SHA-512; digest has exactly its size. Signatures are
// deterministic (RFC 6979). Status 0 is success; with any other status the body
// is a sentence for people: 1 bad request, 2 unknown key, 3 the signer failed.
// After a bad request the signer closes the connection.
package signer
