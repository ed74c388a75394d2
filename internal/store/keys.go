package store

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// layout is the prefix of all keys, with a trailing slash, and the map of what
// lies under it:
//
//	format                        version of this layout, in decimal
//	instance/<id>/record          the instance, JSON; its mod revision is what Update compares
//	instance/<id>/event/<seq>     the events of one change, JSON; <seq> is the last one's number
//	given/<id>                    empty; an instance has or had this id. It is never removed
//	name/<tenant>/<name>          id of the instance that has this name
//	host/<host>/<id>              empty; written again with each change of the record
//	wake/<seconds>/<id>           empty; the instance wants to be looked at then
//	wake/~<server>                empty; a server's alarm clock, bound to a lease
//	sealed/<id>                   all sealed parameters of an instance, JSON
//	key/<key id>                  instance and generation that own a public key, JSON
//	revoked/<tenant>/<serial>     one revocation, JSON
//	log/<log>/<time>/<serial>     an entry that waits for the issuance log <log>
//	logsize/<log>                 how many entries that log had at least, in decimal
//	document/<name>               opaque bytes
//
// So one prefix is: all of an instance (its record and timeline change in one
// transaction and reach a watcher together), a range of instances, the names
// of a tenant in order, the machines of a host. A host's entry is rewritten
// with each change so that its watch costs nothing for other hosts' machines.
// Numbers are 16 hexadecimal digits, so that their order is the keys' order.
type layout string

const defaultPrefix = "imprint/"

// formatVersion is the version of the layout that this program reads and writes.
const formatVersion = 1

func (l layout) format() string { return string(l) + "format" }

func (l layout) instances() string { return string(l) + "instance/" }

func (l layout) instance(id imprint.InstanceID) string {
	return string(l) + "instance/" + string(id) + "/"
}

func (l layout) record(id imprint.InstanceID) string { return l.instance(id) + recordLeaf }

func (l layout) timeline(id imprint.InstanceID) string { return l.instance(id) + eventLeaf }

func (l layout) events(id imprint.InstanceID, last uint64) string {
	return l.timeline(id) + hex16(last)
}

func (l layout) given(id imprint.InstanceID) string { return string(l) + "given/" + string(id) }

func (l layout) names() string { return string(l) + "name/" }

func (l layout) tenant(t imprint.TenantName) string { return l.names() + string(t) + "/" }

func (l layout) name(t imprint.TenantName, n imprint.InstanceName) string {
	return l.tenant(t) + string(n)
}

func (l layout) host(h imprint.HostName) string { return string(l) + "host/" + string(h) + "/" }

func (l layout) placement(h imprint.HostName, id imprint.InstanceID) string {
	return l.host(h) + string(id)
}

func (l layout) wakes() string { return string(l) + "wake/" }

func (l layout) wake(seconds int64, id imprint.InstanceID) string {
	return l.wakes() + hex16(uint64(seconds)) + "/" + string(id)
}

func (l layout) alarm(server string) string { return l.wakes() + "~" + server }

func (l layout) sealedAll() string { return string(l) + "sealed/" }

func (l layout) sealed(id imprint.InstanceID) string { return l.sealedAll() + string(id) }

func (l layout) key(k imprint.KeyID) string { return string(l) + "key/" + string(k) }

func (l layout) revocations(t imprint.TenantName) string {
	return string(l) + "revoked/" + string(t) + "/"
}

func (l layout) revocation(t imprint.TenantName, s imprint.Serial) string {
	return l.revocations(t) + string(s)
}

func (l layout) logQueue(log string) string { return string(l) + "log/" + log + "/" }

func (l layout) logEntry(e *imprint.LogEntry) string {
	return l.logQueue(e.Log) + hex16(uint64(max(e.At.UnixMilli(), 0))) + "/" + string(e.Serial)
}

func (l layout) logSize(log string) string { return string(l) + "logsize/" + log }

func (l layout) document(name string) string { return string(l) + "document/" + name }

const (
	recordLeaf = "record"
	eventLeaf  = "event/"
)

// splitInstance takes a key under [layout.instances] apart into the instance
// and the rest.
func (l layout) splitInstance(key string) (id imprint.InstanceID, leaf string) {
	head, leaf, _ := strings.Cut(strings.TrimPrefix(key, l.instances()), "/")
	return imprint.InstanceID(head), leaf
}

// splitWake takes a key under [layout.wakes] apart; ok is false for an alarm.
func (l layout) splitWake(key string) (at time.Time, id imprint.InstanceID, ok bool) {
	digits, rest, ok := strings.Cut(strings.TrimPrefix(key, l.wakes()), "/")
	if !ok {
		return time.Time{}, "", false
	}
	seconds, err := strconv.ParseUint(digits, 16, 63)
	return time.Unix(int64(seconds), 0), imprint.InstanceID(rest), err == nil
}

// splitLogEntry takes a key under [layout.logQueue] apart.
func (l layout) splitLogEntry(log, key string) (at time.Time, serial imprint.Serial, err error) {
	digits, rest, _ := strings.Cut(strings.TrimPrefix(key, l.logQueue(log)), "/")
	millis, err := strconv.ParseUint(digits, 16, 63)
	return time.UnixMilli(int64(millis)).UTC(), imprint.Serial(rest), err
}

// leaf returns what follows the last slash of key.
func leaf(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

// after returns the end of the range of all keys that start with prefix, which
// must end in a slash.
func after(prefix string) string { return prefix[:len(prefix)-1] + "0" } // '0' follows '/'

func hex16(n uint64) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, n))
}
