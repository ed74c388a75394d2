// Package store keeps instances and everything about them in etcd.
//
// A [Store] has typed operations: compare-and-swap on an instance's record
// together with its timeline, key binding, revocations and reminder in one
// transaction; paged lists; watches that survive compaction; reminders; sealed
// parameters; and small opaque documents. It stands on a key-value interface
// of five verbs with two implementations: etcd, embedded in this process
// ([OpenEmbedded]) or an existing cluster ([OpenCluster]), and a twin in memory
// ([OpenMemory]) for tests. One conformance suite runs over all three.
//
// # Errors
//
// Every error is an [imprint.Error]. Besides the kinds that a method names, all
// may fail with [imprint.Unavailable] when etcd cannot be reached in time (the
// write may or may not have happened), [imprint.Exhausted] when a disk, a quota
// or a size limit is full (nothing was written), and [imprint.Internal].
package store
