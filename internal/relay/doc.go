// Package relay gives a host role what it needs when its control plane is on
// another machine: it implements the interfaces of internal/host over the host
// API, and makes up for a control plane that is away.
//
//   - The instances come down a stream. A copy of their records, sealed, is on the
//     disk, so that a host that starts while the control plane is away serves what
//     it knew.
//   - Reports go into a queue on the disk before anything else happens, and from
//     there to the control plane, those of one instance in their order. With the
//     control plane at hand its verdict is waited for; else the report stands.
//   - Private values are fetched for each read, and kept sealed for when the
//     control plane is away.
//   - Enrolment waits: a guest is told to ask again.
//   - Secret values come as calls down the stream and stay in memory.
package relay
