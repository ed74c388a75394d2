package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"imprint"
)

// Limits of a watch.
const (
	maxNotice = 2 << 20 // bytes of one line
	// Heartbeat is how often the server sends an empty line when nothing
	// happens, so that both ends notice a dead connection.
	Heartbeat = 15 * time.Second
	// silence is how long the client waits for a line before it reconnects.
	silence  = 3 * Heartbeat
	minPause = 100 * time.Millisecond // between two attempts, doubling
	maxPause = 5 * time.Second
)

// Watch yields what changes in scope, at and after the store's revision from;
// 0 begins with all instances there are, marked Relist, and goes on with
// changes. When the connection breaks it resumes where it was: no change is
// lost, and nothing comes twice but instances marked Relist. It ends with an
// error that trying again would not mend, or without one when ctx is done.
func (c *Client) Watch(ctx context.Context, scope Scope, from int64) iter.Seq2[*Notice, error] {
	return func(yield func(*Notice, error) bool) {
		pos := position{revision: from}
		pause := minPause
		for opened := false; ; {
			resp, err := c.openWatch(ctx, scope, pos.revision)
			if err == nil {
				opened = true
				pos.resume()
				err = c.readNotices(resp, func(n *Notice) bool {
					pause = minPause
					return pos.pass(n) || yield(n, nil)
				})
			}
			switch {
			case err == errLeft || ctx.Err() != nil:
				return
			case !opened || imprint.KindOf(err) != imprint.Unavailable:
				yield(nil, err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause/2 + rand.N(pause)):
			}
			pause = min(2*pause, maxPause)
		}
	}
}

// position is where a watch resumes. Several notices may share a revision, in
// the same order each time, so it counts those of the last one. Relisted
// instances do not move it: a relist that breaks off starts again.
type position struct {
	revision int64
	seen     int // notices of revision that were yielded
	skip     int // of them, how many are still to come again
}

func (p *position) resume() { p.skip = p.seen }

// pass notes n and reports whether it was yielded before.
func (p *position) pass(n *Notice) bool {
	switch {
	case n.Relist:
		return false
	case n.Revision == p.revision && p.skip > 0:
		p.skip--
		return true
	case n.Revision != p.revision:
		p.revision, p.seen, p.skip = n.Revision, 0, 0
	}
	p.seen++
	return false
}

// errLeft says that the loop over a watch was left.
var errLeft = errors.New("left")

func (c *Client) openWatch(ctx context.Context, scope Scope, from int64) (*http.Response, error) {
	v := url.Values{"from": {strconv.FormatInt(from, 10)}}
	set(v, "tenant", string(scope.Tenant))
	set(v, "host", string(scope.Host))
	set(v, "instance", scope.Instance)
	return c.send(ctx, http.MethodGet, Prefix+"/watch", v, nil, "application/x-ndjson")
}

// readNotices calls each for every notice until the connection ends, and closes
// it. The error is of kind Unavailable if the watch may be resumed, and errLeft
// if each returned false.
func (c *Client) readNotices(resp *http.Response, each func(*Notice) bool) error {
	defer resp.Body.Close()
	// A server that says nothing, not even a heartbeat, is gone.
	quiet := time.AfterFunc(silence, func() { resp.Body.Close() })
	defer quiet.Stop()
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		line, err := readLine(lines)
		if err != nil {
			return c.unavailable(fmt.Errorf("the watch was interrupted: %w", err))
		}
		quiet.Reset(silence)
		if len(line) == 0 {
			continue // a heartbeat
		}
		var n Notice
		if err := json.Unmarshal(line, &n); err != nil {
			return imprint.Errorf(imprint.Internal, "decode", "notice", "%w", err)
		}
		if n.Error != nil {
			return n.Error.Err()
		}
		if !each(&n) {
			return errLeft
		}
	}
}

// readLine returns one line without its end, of at most maxNotice bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxNotice:
			return nil, fmt.Errorf("a line of more than %d bytes", maxNotice)
		case err == nil:
			return line[:len(line)-1], nil
		case err != bufio.ErrBufferFull:
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}
