// Package job is what the host and the helper VM say to each other: a [Job] goes
// in, log lines, progress and one [Result] come out, all over one virtio-serial
// port.
//
// Both ends speak [Message]s in frames of a length and JSON ([Conn]). The guest is
// not trusted: what it sends has limits, counts for nothing but this job, and is
// success only if it is a result with the job's nonce that names no fault.
package job
