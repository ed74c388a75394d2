package hostapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"

	"imprint"
	"imprint/internal/dialect"
)

// Prefix is where the host API begins on the check-in endpoint.
const Prefix = "/.well-known/imprint/host/v1/"

// Limits on what is said.
const (
	maxLine    = 3 << 20   // bytes of one line of a stream: a record of 1 MiB, escaped
	maxRequest = 64 << 10  // bytes of an enrolment or a report
	maxAnswer  = 128 << 10 // bytes of an answer to a call
	maxReply   = 3 << 20   // bytes of any other reply: an instance
	maxID      = 64        // bytes of a report's or a call's identifier
)

// Times of a stream.
const (
	// heartbeat is how often the server sends an empty line when nothing happens.
	heartbeat = 5 * time.Second
	// silence is how long the host waits for a line before it connects again.
	silence = 4 * heartbeat
	// callTime is how long a host may take for the answer to a call.
	callTime = 10 * time.Second
)

// Notice is one line of a stream; it has one of the fields beside Revision and Relist.
type Notice struct {
	Revision int64 `json:"revision,omitempty"`
	// Relist marks an Instance that is part of a list of what there is; Synced ends it.
	Relist   bool               `json:"relist,omitempty"`
	Synced   bool               `json:"synced,omitempty"`
	Instance *Instance          `json:"instance,omitempty"`
	Deleted  imprint.InstanceID `json:"deleted,omitempty"`
	Tenant   *TenantFacts       `json:"tenant,omitempty"`
	Call     *Call              `json:"call,omitempty"`
	// Run names the run of the server's process. It comes first. What another run
	// tells may be of another past, of a store that was restored from a backup, in
	// which a revision means something else.
	Run string `json:"run,omitempty"`
	// Sealing names the key-encryption key of the control plane. It comes early,
	// and again when it changes: then the host gives what it has sealed a new key
	// of its own.
	Sealing string   `json:"sealing,omitempty"`
	Error   *problem `json:"error,omitempty"` // ends the stream
}

// Position is where a stream goes on: after a revision that was told by a run of
// the server. The zero value asks for a list first.
type Position struct {
	Run      string
	Revision int64
}

// Instance is a record with its revision, which the record's own JSON lacks.
type Instance struct {
	Revision int64 `json:"revision"`
	imprint.Instance
}

// wrap returns i as a host sees it.
func wrap(i *imprint.Instance) *Instance {
	c := *i
	c.Enrolment.TokenHash = "" // for the one who decides only
	return &Instance{Revision: i.Revision, Instance: c}
}

// Unwrap returns the record.
func (i *Instance) Unwrap() *imprint.Instance {
	c := i.Instance
	c.Revision = i.Revision
	return &c
}

// TenantFacts is what is common to a tenant's instances. It comes before the
// first of them, and again when it changes.
type TenantFacts struct {
	Name  imprint.TenantName `json:"name"`
	Facts dialect.Facts      `json:"facts"`
}

// The calls that a control plane makes.
const (
	CallSecret = "secret" // keep Value as the secret parameter Name of Generation, in memory only
	CallLook   = "look"   // tell the ports and the secret values at hand
	CallPipes  = "pipes"  // tell what waits in the pipes
	CallWrite  = "write"  // put Value on the pipe Name for the guest; Message is what its writer calls it
	CallRead   = "read"   // tell the oldest message from the guest in the pipe Name
	CallTake   = "take"   // remove the one with the receipt Message
)

// Call asks a host for something about an instance.
type Call struct {
	ID         string             `json:"id"`
	Kind       string             `json:"kind"`
	Instance   imprint.InstanceID `json:"instance"`
	Generation imprint.Generation `json:"generation,omitempty"`
	Name       string             `json:"name,omitempty"`
	Value      []byte             `json:"value,omitempty"`
	Message    string             `json:"message,omitempty"`
	By         string             `json:"by,omitempty"` // who wants it, in words
}

// Answer is what a host says to a [Call].
type Answer struct {
	Error   *problem `json:"error,omitempty"`
	Ports   []Port   `json:"ports,omitempty"`   // look
	Held    []string `json:"held,omitempty"`    // look: the secret values of the generation
	Pipes   []Pipe   `json:"pipes,omitempty"`   // pipes
	Message []byte   `json:"message,omitempty"` // read; none if there is no message
	Receipt string   `json:"receipt,omitempty"` // read: the message's; "" if there is none
}

// Pipe is what waits in one of an instance's pipes.
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

// Limits on what an operator is shown of an answer.
const (
	maxPorts   = 16  // ports
	maxReasons = 16  // why packets were dropped at a port
	maxShown   = 512 // bytes of one text
)

// clean makes the texts of an answer fit to be shown to an operator: a host that
// is not what it was must not write on terminals as it likes.
func (a *Answer) clean() error {
	if len(a.Ports) > maxPorts || len(a.Held) > imprint.MaxParams {
		return imprint.Errorf(imprint.Invalid, "read", "answer", "%d ports and %d values; at most %d and %d", len(a.Ports), len(a.Held), maxPorts, imprint.MaxParams)
	}
	if len(a.Pipes) > imprint.MaxPipes+1 || len(a.Message) > imprint.MaxMessage || len(a.Receipt) > maxID {
		return imprint.Errorf(imprint.Invalid, "read", "answer", "%d pipes and a message of %d bytes", len(a.Pipes), len(a.Message))
	}
	a.Receipt = printable(a.Receipt)
	for i := range a.Pipes {
		a.Pipes[i].Name = printable(a.Pipes[i].Name)
	}
	for i := range a.Ports {
		p := &a.Ports[i]
		p.Channel = imprint.ChannelKind(printable(string(p.Channel)))
		p.Socket, p.Interface, p.Adopts, p.Problem = printable(p.Socket), printable(p.Interface), printable(p.Adopts), printable(p.Problem)
		if len(p.Dropped) > maxReasons {
			return imprint.Errorf(imprint.Invalid, "read", "answer", "%d reasons why packets were dropped; at most %d", len(p.Dropped), maxReasons)
		}
		shown := map[string]uint64{}
		for reason, packets := range p.Dropped {
			shown[printable(reason)] = packets
		}
		p.Dropped = shown
	}
	if e := a.Error; e != nil {
		e.Op, e.Operand, e.Cause, e.Hint = printable(e.Op), printable(e.Operand), printable(e.Cause), printable(e.Hint)
	}
	return nil
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}

// Failed returns the answer that says err.
func Failed(err error) Answer { return Answer{Error: problemOf(err)} }

// Port is how one of an instance's channels arrives at a host.
type Port struct {
	Channel   imprint.ChannelKind `json:"channel"`
	Socket    string              `json:"socket,omitempty"`
	Interface string              `json:"interface,omitempty"`
	Adopts    string              `json:"adopts,omitempty"`
	Dialled   bool                `json:"dialled,omitempty"`
	Connected bool                `json:"connected,omitempty"`
	Problem   string              `json:"problem,omitempty"`
	Dropped   map[string]uint64   `json:"dropped,omitempty"` // packets, by reason
}

// enrolment is the body of enrol. It has no witness: that is who sends it.
type enrolment struct {
	Instance   imprint.InstanceID  `json:"instance"`
	Generation imprint.Generation  `json:"generation"`
	Channel    imprint.ChannelKind `json:"channel"`
	CSR        []byte              `json:"csr"`
	SSHHost    string              `json:"sshHost,omitempty"`
}

// outcome is the reply to enrol: a decision may have both fields.
type outcome struct {
	Instance *Instance `json:"instance,omitempty"`
	Error    *problem  `json:"error,omitempty"`
}

// report is the body of report. It has no witness either.
type report struct {
	ID         string              `json:"id"`
	Seen       time.Time           `json:"seen"`
	Instance   imprint.InstanceID  `json:"instance"`
	Generation imprint.Generation  `json:"generation"`
	Channel    imprint.ChannelKind `json:"channel"`
	Kind       imprint.ReportKind  `json:"kind"`
	Name       string              `json:"name,omitempty"`
	Data       []byte              `json:"data,omitempty"`
	From       string              `json:"from,omitempty"`
	NIC        *imprint.NIC        `json:"nic,omitempty"`
}

// problem is an error on the wire.
type problem struct {
	Kind    string `json:"kind"`
	Op      string `json:"op"`
	Operand string `json:"operand,omitempty"`
	Cause   string `json:"cause,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// problemType is the media type of a refusal: what has another one was not said
// by this API, and decides nothing.
const problemType = "application/vnd.imprint.host-problem+json"

// problemOf returns err as it goes out. What is internal stays inside.
func problemOf(err error) *problem {
	var e *imprint.Error
	if !errors.As(err, &e) || e.Kind == imprint.Internal {
		return &problem{Kind: imprint.Internal.String(), Op: "ask", Operand: "the other end", Cause: "internal error; its log says which"}
	}
	p := &problem{Kind: e.Kind.String(), Op: e.Op, Operand: e.Operand, Hint: imprint.HintOf(e)}
	if e.Err != nil {
		p.Cause = e.Err.Error()
	}
	return p
}

// err returns the error that p was.
func (p *problem) err() error {
	if p == nil {
		return nil
	}
	e := &imprint.Error{Kind: imprint.ParseKind(p.Kind), Op: p.Op, Operand: p.Operand, Hint: p.Hint}
	if p.Cause != "" {
		e.Err = errors.New(p.Cause)
	}
	return e
}

// statusOf is the HTTP status of a refusal; its kind is in the body.
func statusOf(k imprint.Kind) int {
	switch k {
	case imprint.Denied, imprint.Unauthorized:
		return http.StatusForbidden
	case imprint.NotFound:
		return http.StatusNotFound
	case imprint.Invalid:
		return http.StatusBadRequest
	case imprint.Unavailable, imprint.Exhausted:
		return http.StatusServiceUnavailable
	case imprint.Internal:
		return http.StatusInternalServerError
	}
	return http.StatusConflict
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data can be marshalled
	}
	return b
}
