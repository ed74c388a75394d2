package metadata

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"imprint/internal/dialect"
)

// tokenPath is where an IMDSv2 session begins.
const tokenPath = "latest/api/token"

// listEC2 lists a directory of EC2's tree as Nova does (ec2_md_print): sorted,
// directories with a slash, no newline at the end. The root lists the versions.
func (b *builder) listEC2(prefix string, d *dir) *page {
	var names []string
	if prefix == "" {
		for _, v := range dialect.EC2Versions() {
			if _, ok := d.node(v); ok {
				names = append(names, v)
			}
		}
		if names == nil {
			return nil
		}
		return b.text(strings.Join(names, "\n"))
	}
	for _, n := range d.nodes {
		switch {
		case n.dir == nil:
			names = append(names, n.name)
		case strings.HasSuffix(prefix, "/public-keys/"):
			names = append(names, dialect.EC2KeyEntry(n.name))
		default:
			names = append(names, n.name+"/")
		}
	}
	slices.Sort(names)
	return b.text(strings.Join(names, "\n"))
}

// session reports whether the request may read EC2's tree: with a valid session
// token, or without any where IMDSv1 is allowed. If not, it has answered.
func (c *call) session() bool {
	given := c.r.Header[tokenHeader]
	switch {
	case len(given) == 0 && !c.snap.options.TokensOnly:
		return true
	case len(given) == 1 && c.s.tokens.valid(given[0], c.snap.inst.Generation, c.now):
		return true
	case len(given) == 0:
		c.refuse(http.StatusUnauthorized, "EC2 metadata needs a session token (IMDSv2)")
	default:
		c.refuse(http.StatusUnauthorized, "the session token is not valid or has ended")
	}
	return false
}

// token begins an IMDSv2 session.
func (c *call) token() {
	if c.r.Method != http.MethodPut {
		c.notAllowed("PUT")
		return
	}
	ttls := c.r.Header[tokenTTLHeader]
	if len(ttls) != 1 {
		c.fail(http.StatusBadRequest)
		return
	}
	seconds, err := strconv.ParseUint(ttls[0], 10, 16)
	ttl := time.Duration(seconds) * time.Second
	if err != nil || ttl == 0 || ttl > MaxTokenTTL {
		c.fail(http.StatusBadRequest)
		return
	}
	c.w.Header().Set(tokenTTLHeader, ttls[0])
	c.write(newPage([]byte(c.s.tokens.issue(c.snap.inst.Generation, c.now.Add(ttl))), plain))
}
