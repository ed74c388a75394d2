package metadata

import (
	"context"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"imprint/internal/dialect"
)

// fillNoCloud adds an empty page for every file that there is nothing to say in:
// a missing one would cost cloud-init ten seconds.
func (b *builder) fillNoCloud(d *dir) {
	for _, file := range dialect.NoCloudFiles() {
		if _, ok := d.node(file); !ok {
			d.nodes = append(d.nodes, node{name: file, page: empty})
		}
	}
	slices.SortFunc(d.nodes, func(x, y node) int { return strings.Compare(x.name, y.name) })
}

// phoneHomePath is where cloud-init's phone_home module posts.
const phoneHomePath = "imprint/v1/phone-home"

// phoneHome takes a form and closes the boot. It does so here as well, so that
// the next request meets it closed however long the news takes to come round.
func (c *call) phoneHome() {
	if c.r.Method != http.MethodPost {
		c.notAllowed("POST")
		return
	}
	text, ok := c.body(MaxPhoneHome)
	if !ok {
		return
	}
	kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if !c.s.c.Proxied && (err != nil || kind != "application/x-www-form-urlencoded") { // Neutron's agent drops the type
		c.tell(http.StatusBadRequest, "The body is not a form.")
		return
	}
	if strings.Count(string(text), "&") >= MaxPhoneHomeFields {
		c.tell(http.StatusBadRequest, "The form has too many fields.")
		return
	}
	form, err := url.ParseQuery(string(text))
	if err != nil && !c.s.c.Proxied { // the agent may cut it off, and that it came is all that counts
		c.tell(http.StatusBadRequest, "The form is damaged.")
		return
	}
	c.reply(func(ctx context.Context) error {
		if err := c.s.c.Inbox.PhoneHome(ctx, c.from, form); err != nil {
			return err
		}
		c.s.home.Store(uint32(c.snap.inst.Generation))
		return nil
	})
}
