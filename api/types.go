// Package api is imprint's control API: the types that travel over it and a
// client in Go. The server is internal/server; its OpenAPI document describes
// the same types to other languages.
//
// No type of a response has a field that could hold a secret. Values of
// parameters travel only towards the server, as [Value], which redacts itself
// everywhere but in the client's own encoding. Three answers are credentials as a
// whole, a hand-carried payload with its token, what a medium holds, and an exported
// root key: they are bare bodies, which the client returns as [imprint.Secret].
package api

import (
	"encoding/base64"
	"net/netip"
	"time"

	"imprint"
)

// Prefix is the path under which version 1 of the API lives.
const Prefix = "/v1"

// Limits that both ends keep.
const (
	MaxCreateBody = 16 << 20 // bytes of a create request: all parameters at their limit
	MaxBody       = 256 << 10
	MaxPipeWait   = 20   // seconds for which a read of a pipe waits for a message
	MaxPage       = 1000 // instances in one page
	DefaultPage   = 200
	MaxReason     = 1 << 10 // bytes of the reason for a revocation
)

// MessageHeader has the receipt of the message that a read of a pipe answers with.
const MessageHeader = "X-Imprint-Message"

// Instance is an instance as the API shows it.
type Instance struct {
	ID         imprint.InstanceID `json:"id"`
	Ref        string             `json:"ref" doc:"The name for people: name, or tenant/name outside the default tenant."`
	Spec       imprint.Spec       `json:"spec"`
	Generation imprint.Generation `json:"generation"`
	Enrolment  Enrolment          `json:"enrolment"`
	NIC        *imprint.NIC       `json:"nic,omitempty" doc:"The interface on the host's link-local network."`
	Media      []imprint.Medium   `json:"media,omitempty" doc:"The media that were given out, of all generations, oldest first."`
	// MediaForgotten counts media of which the record has no room any more.
	MediaForgotten int                   `json:"mediaForgotten,omitempty" doc:"How many media were given out before those, and not reported to be taken away."`
	Installation   *imprint.Installation `json:"installation,omitempty" doc:"The latest that was reported of an installation of its disk."`
	InstallSetup   *imprint.InstallSetup `json:"installSetup,omitempty" doc:"What the machine has for its next installation only; it is gone once that succeeded."`
	Created        time.Time             `json:"created"`
	Updated        time.Time             `json:"updated"`
	Events         uint64                `json:"events" doc:"How many events were ever recorded."`
	Revision       int64                 `json:"revision" doc:"The store's revision of this record."`
	// HostAway is not told by a watch.
	HostAway bool `json:"hostAway,omitempty" doc:"The hypervisor that serves it is not connected to this server; a watch does not tell."`
}

// Enrolment is what imprint observed of the present generation's claim. It is
// [imprint.Enrolment] without the hash of the one-time token.
type Enrolment struct {
	State        imprint.State        `json:"state"`
	Expires      time.Time            `json:"expires,omitzero"`
	TokenExpires time.Time            `json:"tokenExpires,omitzero" doc:"Until when the one-time token may be used, if one was handed out."`
	Delivery     *imprint.Delivery    `json:"delivery,omitempty"`
	Claim        *imprint.Claim       `json:"claim,omitempty"`
	Certificate  *imprint.Certificate `json:"certificate,omitempty"`
	ServedAt     time.Time            `json:"servedAt,omitzero" doc:"When something was first read over the link-local network."`
	HomeAt       time.Time            `json:"homeAt,omitzero" doc:"When stock software said that the machine has booted."`
	ConfirmedAt  time.Time            `json:"confirmedAt,omitzero"`
	ClosedAt     time.Time            `json:"closedAt,omitzero"`
	Password     []byte               `json:"password,omitempty" doc:"What the guest posted, encrypted to the operator."`
	Reason       string               `json:"reason,omitempty" doc:"Why a side exit was taken."`
}

// FromInstance returns how the API shows i.
func FromInstance(i *imprint.Instance) Instance {
	e := &i.Enrolment
	return Instance{
		ID: i.ID, Ref: i.Ref(), Spec: i.Spec, Generation: i.Generation,
		Enrolment: Enrolment{
			State: e.State, Expires: e.Expires, TokenExpires: e.TokenExpires, Delivery: e.Delivery, Claim: e.Claim,
			Certificate: e.Certificate, ServedAt: e.ServedAt, HomeAt: e.HomeAt, ConfirmedAt: e.ConfirmedAt, ClosedAt: e.ClosedAt, Password: e.Password, Reason: e.Reason,
		},
		NIC: i.NIC, Media: i.Media, MediaForgotten: i.MediaForgotten, Installation: i.Installation, InstallSetup: i.InstallSetup, Created: i.Created, Updated: i.Updated, Events: i.Events, Revision: i.Revision,
	}
}

// Value is the value of a private or secret parameter on its way to the server:
// base64 on the wire. It prints, logs and marshals as "[redacted]"; only the
// client's own encoding of a request reveals it.
type Value struct{ imprint.Secret }

// UnmarshalText decodes base64.
func (v *Value) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "decode", "value", "it is not base64")
	}
	v.Secret = imprint.NewSecret(b)
	return nil
}

// CreateRequest asks for a new instance.
type CreateRequest struct {
	// ID is what the machine is called elsewhere; "" has one drawn.
	ID   imprint.InstanceID `json:"id,omitempty" doc:"The instance's identifier, a UUID in lower case, where the machine has one already; drawn at random if absent. It stays taken when the instance is deleted."`
	Spec imprint.Spec       `json:"spec"`
	// Values are those of the private and secret parameters, by name.
	Values map[string]Value `json:"values,omitempty" doc:"Values of the private and secret parameters by name, in base64."`
	DryRun bool             `json:"dryRun,omitempty" doc:"Check everything and create nothing."`
}

// Created answers a [CreateRequest].
type Created struct {
	// Instance is what was created, or would be: then it has no ID but a given one.
	Instance Instance `json:"instance"`
	// Missing names the secret parameters whose values the serving host does not hold.
	Missing []string `json:"missing,omitempty" doc:"Secret parameters whose values the serving host does not hold."`
}

// Query selects instances.
type Query struct {
	Tenant imprint.TenantName
	Host   imprint.HostName
	After  string // the Next of an earlier page
	Limit  int    // 0 is DefaultPage
}

// Page is one page of a list.
type Page struct {
	Instances []Instance `json:"instances"`
	Next      string     `json:"next,omitempty" doc:"Where the next page starts; absent on the last."`
}

// Description is all there is to say about an instance.
type Description struct {
	Instance Instance        `json:"instance"`
	Timeline []imprint.Event `json:"timeline"`
	Host     HostState       `json:"host" doc:"How the host that serves the instance is connected."`
	Missing  []string        `json:"missing,omitempty" doc:"Secret parameters whose values the serving host does not hold."`
	Ports    []Port          `json:"ports,omitempty" doc:"The channels that the serving host speaks over."`
}

// How a host is connected to the server that was asked.
const (
	HostHere      = "here"      // its host role runs in the server
	HostConnected = "connected" // imprint host runs there
	HostAway      = "away"      // it was added, and is not connected
	HostUnknown   = "unknown"   // another server, or nobody
)

// HostState is how a host is connected.
type HostState struct {
	Name    imprint.HostName `json:"name"`
	State   string           `json:"state" enum:"here,connected,away,unknown"`
	Since   time.Time        `json:"since,omitzero"`
	Address string           `json:"address,omitempty" doc:"Where it connects from."`
}

// Port says how one of an instance's channels arrives at its host.
type Port struct {
	Channel   imprint.ChannelKind `json:"channel"`
	Socket    string              `json:"socket,omitempty" doc:"The path of a unix socket on the host."`
	Interface string              `json:"interface,omitempty" doc:"The network interface on the host, for the channel nic."`
	Adopts    string              `json:"adopts,omitempty" doc:"The interface, or the pattern, that the hypervisor's platform makes for the channel nic and imprint adopts."`
	Dialled   bool                `json:"dialled,omitempty" doc:"The hypervisor listens on the socket and imprint connects; else the other way round."`
	Connected bool                `json:"connected,omitempty" doc:"A hypervisor is at the other end."`
	Problem   string              `json:"problem,omitempty" doc:"Why it cannot be used at present."`
	Dropped   map[string]uint64   `json:"dropped,omitempty" doc:"Packets that were dropped at the interface since it was made, by reason."`
}

// Pipe is what waits in one of an instance's pipes, in the memory of its host.
type Pipe struct {
	Name        string  `json:"name"`
	ToMachine   Waiting `json:"toMachine"`
	FromMachine Waiting `json:"fromMachine"`
}

// Waiting counts messages that their reader has not taken.
type Waiting struct {
	Messages int `json:"messages"`
	Bytes    int `json:"bytes"`
}

// Pipes are all pipes of an instance.
type Pipes struct {
	Pipes []Pipe `json:"pipes"`
}

// Timeline is the kept part of an instance's events, oldest first.
type Timeline struct {
	Events []imprint.Event `json:"events"`
}

// ParamRequest sets the value of a parameter.
type ParamRequest struct {
	Value Value `json:"value" doc:"The value, in base64."`
	// Visibility declares the parameter, or changes who may read it.
	Visibility imprint.Visibility `json:"visibility,omitempty" doc:"public, private or secret: declares the parameter if the spec does not, or changes who may read it; absent leaves that as it is."`
}

// RebirthRequest starts an instance's next generation.
type RebirthRequest struct {
	// Values are new ones of parameters that the spec declares. A public or private
	// one that is not named keeps its value; a secret one has none any more.
	Values map[string]Value `json:"values,omitempty" doc:"New values of parameters by name, in base64; public and private ones that are not named keep theirs."`
}

// RevokeRequest says why an instance is revoked.
type RevokeRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"1024"`
}

// TokenRequest asks for a one-time token.
type TokenRequest struct {
	TTL imprint.Duration `json:"ttl,omitempty" doc:"How long it may be used, like 36h; absent for the server's default."`
}

// Scope narrows a watch down; the zero value is everything.
type Scope struct {
	Tenant   imprint.TenantName
	Host     imprint.HostName
	Instance string // an ID or name
}

// Notice is one line of a watch: an instance as it became, one that was
// deleted, or an event of a timeline.
type Notice struct {
	// Revision is the store's revision of the change.
	Revision int64 `json:"revision"`
	// Relist marks an instance that is reported because changes were missed
	// (or the watch began), not because it just changed.
	Relist   bool               `json:"relist,omitempty"`
	Instance *Instance          `json:"instance,omitempty"`
	Deleted  imprint.InstanceID `json:"deleted,omitempty"`
	Event    *imprint.Event     `json:"event,omitempty"`
	// Error ends the watch.
	Error *Problem `json:"error,omitempty"`
}

// Authority describes a tenant's CA.
type Authority struct {
	Tenant   imprint.TenantName `json:"tenant"`
	Domains  []string           `json:"domains" doc:"The DNS suffixes that certificates may name."`
	Networks []netip.Prefix     `json:"networks,omitempty" doc:"The address ranges that certificates may name."`
	CheckIn  string             `json:"checkIn,omitempty" doc:"The host name of the tenant's check-in endpoint."`
	Root     CACertificate      `json:"root"`
	Issuing  CACertificate      `json:"issuing"`
	// RootKeyHere tells whether the root's key is still on the server.
	RootKeyHere bool   `json:"rootKeyHere" doc:"Whether the root's key is still on the server."`
	SSH         string `json:"ssh,omitempty" doc:"The key that signs SSH host certificates, in authorized_keys form."`
}

// CACertificate summarizes a CA's certificate.
type CACertificate struct {
	Subject   string         `json:"subject"`
	Serial    imprint.Serial `json:"serial"`
	NotBefore time.Time      `json:"notBefore"`
	NotAfter  time.Time      `json:"notAfter"`
	// Fingerprint is the SHA-256 of the certificate's DER.
	Fingerprint imprint.Digest `json:"fingerprint"`
	DER         []byte         `json:"der"`
}

// ReissueRequest asks for a new issuing CA.
type ReissueRequest struct {
	RootKey Value `json:"rootKey,omitempty" doc:"The exported root key as PEM in base64; absent while it is still on the server."`
}

// Sealing answers a change of the key-encryption key.
type Sealing struct {
	Key       string `json:"key" doc:"The name of the key that seals now."`
	Instances int    `json:"instances" doc:"How many instances had values that were sealed anew."`
}

// Info says who answers.
type Info struct {
	Version string           `json:"version"`
	Host    imprint.HostName `json:"host"`
	// Run is where the sockets are that machines on this host connect to.
	Run string `json:"run" doc:"The directory of the sockets that machines on this host connect to."`
	// Caller is how the server knows the caller, and Role what that allows.
	Caller string `json:"caller"`
	Role   string `json:"role"`
}
