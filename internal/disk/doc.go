// Package disk adds a partition to a raw disk that has others, in a GUID
// partition table or a master boot record, takes it away again, lets one grow, and
// gives a copy of a disk identifiers of its own.
//
// [Read] understands a table whole or refuses it. What a change writes is a [Plan]
// that is computed from what was read: between its steps everything is synced, and
// whichever writes of a step reach the disk before a crash, any reader finds the
// table as it was or as it is to be. [Slot.Add], [Remove],
// [Growth.Grow] and [Renew] carry plans out; [Open]
// opens a disk that nobody else uses.
package disk
