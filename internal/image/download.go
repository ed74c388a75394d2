package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	"imprint"
	"imprint/internal/durable"
)

// version is by what a server's file is known to be the same one. It is kept beside
// a file that is not complete.
type version struct {
	URL      string `json:"url"` // without what is secret
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"`
	Size     int64  `json:"size"` // -1 if the server does not say
}

// validator is what If-Range has: an entity tag that stands for the very bytes, or a
// date (RFC 9110 section 13.1.5).
func (v version) validator() string {
	if v.ETag != "" && !strings.HasPrefix(v.ETag, "W/") {
		return v.ETag
	}
	return v.Modified
}

func versionOf(u *url.URL, resp *http.Response, size int64) version {
	return version{shown(u), resp.Header.Get("ETag"), resp.Header.Get("Last-Modified"), size}
}

// download is a file on its way from a server. What is there of it stays, however
// the process ends, and the next one goes on from there.
type download struct {
	c        *client
	u        *url.URL
	f        *os.File
	state    string // path of the version
	room     func(size int64) error
	progress func(done, total int64)
	at       int64
	v        version
	restarts int
	resumed  bool // the beginning is another process's
}

// maxRestarts is how often a file may change on the server before it is given up.
const maxRestarts = 3

// run fetches all of it.
func (d *download) run(ctx context.Context) error {
	if b, err := os.ReadFile(d.state); err == nil && json.Unmarshal(b, &d.v) == nil && d.v.URL == shown(d.u) && d.v.validator() != "" {
		if info, err := d.f.Stat(); err == nil {
			d.at, d.resumed = info.Size(), info.Size() > 0
		}
	}
	err := d.c.patient(ctx, func() (bool, error) {
		before := d.at
		err := d.attempt(ctx)
		return d.at > before, err
	})
	if err != nil {
		return err
	}
	return d.f.Sync()
}

// attempt asks once, for what is missing.
func (d *download) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if d.v.validator() == "" { // whether the rest is of the same file cannot be told
		d.at = 0
	}
	resp, err := d.c.get(ctx, d.u, d.at, d.v)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
		d.at, d.v, d.resumed = 0, versionOf(d.u, resp, resp.ContentLength), false
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && d.at > 0 && d.at == d.v.Size:
		return nil // it was complete already
	case resp.StatusCode == http.StatusPartialContent && d.goesOn(resp):
	default:
		return d.restart()
	}
	if d.v.Size >= 0 {
		if err := d.room(d.v.Size); err != nil {
			return err
		}
	}
	if err := d.remember(); err != nil {
		return err
	}
	if err := d.f.Truncate(d.at); err != nil {
		return fileError("write", d.f.Name(), err)
	}
	body := watch(resp.Body, cancel)
	defer body.timer.Stop()
	err = d.take(body)
	if stalled := context.Cause(ctx); err != nil && stalled != nil && !errors.Is(stalled, context.Canceled) {
		return imprint.Errorf(imprint.Unavailable, "fetch", shown(d.u), "%w", stalled)
	}
	return err
}

// goesOn reports whether a part of a file is the one that was asked for, of the same file.
func (d *download) goesOn(resp *http.Response) bool {
	var from, to, size int64
	if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); n != 3 {
		return false
	}
	now := versionOf(d.u, resp, size)
	return from == d.at && to == size-1 && (d.v.Size < 0 || size == d.v.Size) &&
		(now.ETag == "" || now.ETag == d.v.ETag) && (now.Modified == "" || now.Modified == d.v.Modified)
}

// restart begins from the start, since the file is another now, or the server is
// confused.
func (d *download) restart() error {
	d.at, d.v = 0, version{}
	if d.restarts++; d.restarts > maxRestarts {
		return imprint.Errorf(imprint.Conflict, "fetch", shown(d.u), "it changes while it is fetched").WithHint("name a version of it that does not change")
	}
	return imprint.Errorf(imprint.Unavailable, "fetch", shown(d.u), "it changed while it was fetched")
}

func (d *download) remember() error {
	b, err := json.Marshal(d.v)
	if err == nil {
		err = durable.WriteFile(d.state, b, 0o600)
	}
	if err != nil {
		return fileError("write", d.state, err)
	}
	return nil
}

// take writes what the server sends.
func (d *download) take(body io.Reader) error {
	b := make([]byte, chunk)
	for {
		n, err := body.Read(b)
		if n > 0 {
			if d.v.Size >= 0 && d.at+int64(n) > d.v.Size {
				return d.restart()
			}
			if d.v.Size < 0 {
				if err := d.room(d.at + int64(n)); err != nil {
					return err
				}
			}
			if _, err := d.f.WriteAt(b[:n], d.at); err != nil {
				return fileError("write", d.f.Name(), err)
			}
			d.at += int64(n)
			if d.progress != nil {
				d.progress(d.at, d.v.Size)
			}
		}
		switch {
		case err == io.EOF && d.v.Size >= 0 && d.at < d.v.Size:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil && err != io.EOF:
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				return imprint.Errorf(imprint.Unavailable, "fetch", shown(d.u), "the connection was cut after %d of %d bytes", d.at, d.v.Size).WithHint("start again: it goes on from there")
			}
			return reachError(d.u, err)
		case err == io.EOF:
			return nil
		}
	}
}
