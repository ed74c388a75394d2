package metadata

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"imprint"
	"imprint/internal/dialect"
)

// ganetiMedia gives the types that ganeti-metad leaves out.
func ganetiMedia(name string) media {
	switch {
	case strings.HasSuffix(name, ".json"):
		return object
	case strings.HasSuffix(name, "/os-install-package"), strings.HasSuffix(name, "/package"):
		return tgz
	}
	return plain
}

// The two ends of the pipe, each followed by nothing or by a slash and a name.
const (
	readPath  = "ganeti/latest/read"
	writePath = "ganeti/latest/write"
)

// pipeOf returns the pipe that name asks for below path.
func pipeOf(name, path string) (pipe string, ok bool) {
	switch rest, ok := strings.CutPrefix(name, path); {
	case !ok:
		return "", false
	case rest == "":
		return imprint.DefaultPipe, true
	case rest[0] == '/' && imprint.CheckLabel("pipe", rest[1:]) == nil:
		return rest[1:], true
	}
	return "", false
}

// ganeti answers what is not ready bytes below ganeti/, and reports whether it did.
func (c *call) ganeti() bool {
	if pipe, ok := pipeOf(c.name, readPath); ok && c.s.c.Pipes != nil {
		c.readPipe(pipe)
		return true
	}
	if pipe, ok := pipeOf(c.name, writePath); ok && c.s.c.Pipes != nil {
		c.writePipe(pipe)
		return true
	}
	if c.name == dialect.GanetiParameters && c.from.Root() && c.s.c.Native != nil && c.r.Method == http.MethodGet {
		c.parameters()
		return true
	}
	return false
}

// parameters answers root with the private parameters among the others, as far
// as they may still be read.
func (c *call) parameters() {
	if c.tree().find(c.name) == nil { // the dialect is not offered
		c.fail(http.StatusNotFound)
		return
	}
	var params []dialect.GanetiParameter
	for _, p := range c.snap.inst.Spec.Params {
		value := p.Value
		if p.Visibility != imprint.Public {
			if !imprint.MayTravel(p.Visibility, c.from.Readers) {
				continue
			}
			b, err := c.s.c.Native.Get(c.r.Context(), c.from, dialect.KeyParam+p.Name)
			if kind := imprint.KindOf(err); err != nil && (kind == imprint.Unavailable || kind == imprint.Internal) {
				c.failWith(err)
				return
			}
			if err != nil {
				continue // closed meanwhile, or not at hand
			}
			value = string(b)
		}
		params = append(params, dialect.GanetiParameter{Name: p.Name, Value: value, Visibility: p.Visibility})
	}
	if c.unseen() {
		c.note("")
	}
	c.write(newPage(dialect.EncodeGanetiParameters(params), object))
}

// readPipe answers with the oldest message of a pipe, and waits for one for a
// while; an empty reply says that none came. Reading removes nothing, since the
// reader may die with the message: it is removed when a later request says by its
// receipt that it has it, and that request gets the next.
//
//	GET /ganeti/latest/read[/NAME][?after=RECEIPT][&wait=SECONDS]
func (c *call) readPipe(pipe string) {
	if !c.rootOnly(http.MethodGet) {
		return
	}
	query := c.r.URL.Query()
	wait := PipeWait
	if s := query.Get("wait"); s != "" {
		seconds, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			c.tell(http.StatusBadRequest, "wait is not a number of seconds.")
			return
		}
		wait = min(wait, time.Duration(seconds)*time.Second)
	}
	if c.s.reading.Add(1) > maxPipeReads {
		wait = 0
	}
	defer c.s.reading.Add(-1)
	if after := query.Get("after"); after != "" {
		if err := c.s.c.Pipes.Take(c.r.Context(), pipe, after); err != nil {
			c.failWith(err)
			return
		}
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), wait)
	defer cancel()
	message, receipt, err := c.s.c.Pipes.Next(ctx, pipe)
	switch {
	case err != nil:
		c.failWith(err)
	case receipt == "":
		c.write(empty)
	default:
		c.w.Header().Set(pipeMessageHeader, receipt)
		c.write(newPage(message, octets))
	}
}

// writePipe takes a message. A writer that may have to repeat itself calls each
// message something else: the same again is the same message.
//
//	POST /ganeti/latest/write[/NAME][?id=TEXT]
func (c *call) writePipe(pipe string) {
	if !c.rootOnly(http.MethodPost) {
		return
	}
	if c.r.ContentLength < 0 {
		c.fail(http.StatusLengthRequired)
		return
	}
	id := c.r.URL.Query().Get("id")
	if len(id) > maxMessageID {
		c.tell(http.StatusBadRequest, "The id is too long.")
		return
	}
	if message, ok := c.body(imprint.MaxMessage); ok {
		c.reply(func(ctx context.Context) error { return c.s.c.Pipes.Write(ctx, pipe, id, message) })
	}
}
