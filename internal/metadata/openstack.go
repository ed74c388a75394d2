package metadata

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"imprint"
	"imprint/internal/dialect"
)

// openStackMedia is Nova's choice: network_data.json is plain text.
func openStackMedia(file string) media {
	switch file {
	case "meta_data.json", "vendor_data.json", "vendor_data2.json":
		return object
	}
	return plain
}

// listOpenStack lists the versions, or the files of one: in Nova's order, and
// from the versions on from which Nova lists them.
func (b *builder) listOpenStack(version string, d *dir) *page {
	var names []string
	if version == "" {
		for _, v := range dialect.OpenStackVersions() {
			if _, ok := d.node(v); ok {
				names = append(names, v)
			}
		}
		return b.text(strings.Join(names, "\n"))
	}
	for _, file := range []string{"meta_data.json", "user_data", "password", "vendor_data.json", "network_data.json", "vendor_data2.json"} {
		_, ok := d.node(file)
		switch file {
		case "password": // live
			ok = dialect.OpenStackHasPassword(version)
		case "network_data.json": // served before, but not listed
			ok = ok && version >= "2015-10-15"
		}
		if ok {
			names = append(names, file)
		}
	}
	return b.text(strings.Join(names, "\n"))
}

// passwordPath reports whether name is where a guest posts its password.
func passwordPath(name string) bool {
	rest, ok := strings.CutPrefix(name, "openstack/")
	version, file, _ := strings.Cut(rest, "/")
	return ok && file == "password" && dialect.OpenStackHasPassword(version) && slices.Contains(dialect.OpenStackVersions(), version)
}

// password is nova/api/metadata/password.py, with three differences: larger
// ciphertexts fit, a body without length is read all the same, and replies are
// plain text, because the text is the guest's.
func (c *call) password() {
	switch c.r.Method {
	case http.MethodGet:
		c.write(newPage(c.snap.inst.Enrolment.Password, plain))
	case http.MethodPost:
		if len(c.snap.inst.Enrolment.Password) > 0 {
			c.fail(http.StatusConflict)
			return
		}
		text, ok := c.body(MaxPassword)
		switch {
		case !ok:
		case !utf8.Valid(text):
			c.tell(http.StatusBadRequest, "The password is not text.")
		case len(text) == 0 && c.s.c.Proxied: // the agent lost it (docs/howto/neutron.md)
			c.tell(http.StatusBadRequest, "The request has no body.")
		case len(text) == 0: // counts as unset, as in Nova
			c.write(empty)
		default:
			c.reply(func(ctx context.Context) error { return c.s.c.Inbox.PostPassword(ctx, c.from, text) })
		}
	default:
		c.tell(http.StatusBadRequest, "GET and POST only are supported.")
	}
}

// reply does something for the guest and answers whether it was done.
func (c *call) reply(do func(context.Context) error) {
	if err := do(c.r.Context()); err != nil {
		c.failWith(err)
		return
	}
	c.write(empty)
}

// failWith answers with what err is. Only faults that the guest's software can
// do something about are put into words.
func (c *call) failWith(err error) {
	switch kind := imprint.KindOf(err); kind {
	case imprint.NotFound:
		c.fail(http.StatusNotFound)
	case imprint.Denied, imprint.Unauthorized:
		c.refuse(http.StatusForbidden, sentence(err))
	case imprint.Invalid, imprint.Exhausted:
		c.tell(http.StatusBadRequest, sentence(err))
	case imprint.Conflict, imprint.Contested, imprint.Exists:
		c.tell(http.StatusConflict, sentence(err))
	case imprint.Unavailable, imprint.Pending:
		c.w.Header().Set("Retry-After", retryAfter)
		c.fail(http.StatusServiceUnavailable)
	default:
		c.s.c.Logger.ErrorContext(c.r.Context(), "a guest's request failed", "name", clip(c.name, maxAccessName), "error", err)
		c.fail(http.StatusInternalServerError)
	}
}

// sentence is err on one line.
func sentence(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
