package metadata

import (
	"context"
	"net/http"
	"strings"

	"imprint"
	"imprint/internal/dialect"
)

// nativeTree is where imprint's own keys are: "imprint:NAME" is at
// /imprint/v1/NAME.
const nativeTree = "imprint/v1/"

// nativePrefix begins the keys in [dialect].
const nativePrefix = "imprint:"

// nativeRoute says what may be done with a key, and by whom. What is not in the
// table does not exist.
type nativeRoute struct {
	key      string // if it ends in a slash, a name follows
	get      imprint.Readers
	put, del bool // for root
	json     bool
}

// anyone may ask; the value's own audience is then decided by [Native].
const anyone = imprint.GuestProcesses | imprint.GuestRoot

var nativeRoutes = [...]nativeRoute{
	{key: dialect.KeyPayload, get: anyone, json: true},
	{key: dialect.KeyCA, get: anyone},
	{key: dialect.KeyTime, get: anyone},
	{key: dialect.KeyState, get: anyone, json: true},
	{key: dialect.KeyParams, get: anyone, json: true},
	{key: dialect.KeyParam, get: anyone},
	{key: dialect.KeySealed, get: anyone},
	{key: dialect.KeyUserData, get: anyone},
	{key: dialect.KeyCertificate, get: anyone},
	{key: dialect.KeySSHCertificate, get: anyone},
	{key: dialect.KeyRequest, put: true},
	{key: dialect.KeyConfirmation, put: true},
	{key: dialect.KeyReady, put: true},
	{key: dialect.KeyPassword, put: true},
	{key: dialect.KeyPipe, get: imprint.GuestRoot, put: true},
	{key: dialect.KeyPipe + "/", del: true},
}

// routeOf finds the route of a key.
func routeOf(key string) (nativeRoute, bool) {
	for _, route := range nativeRoutes {
		name, ok := strings.CutPrefix(key, route.key)
		switch {
		case !ok, strings.HasSuffix(route.key, "/") != (name != ""):
		case len(name) > imprint.MaxParamNameLen, strings.ContainsAny(name, "/\n"):
		default:
			return route, true
		}
	}
	return nativeRoute{}, false
}

// native answers one of imprint's own keys.
func (c *call) native() {
	key := nativePrefix + strings.TrimPrefix(c.name, nativeTree)
	route, ok := routeOf(key)
	if !ok || c.s.c.Native == nil {
		c.fail(http.StatusNotFound)
		return
	}
	ctx := c.r.Context()
	switch method := c.r.Method; {
	case route.get != 0 && (method == http.MethodGet || method == http.MethodHead):
		if !c.from.Readers.Within(route.get) {
			c.refuse(http.StatusForbidden, needsRoot)
			return
		}
		value, err := c.s.c.Native.Get(ctx, c.from, key)
		if err != nil {
			c.failWith(err)
			return
		}
		m := plain
		if route.json {
			m = object
		}
		if c.unseen() || key == dialect.KeyUserData && c.ration(&c.s.user) {
			c.note("")
		}
		c.write(newPage(value, m))
	case route.put && (method == http.MethodPut || method == http.MethodPost):
		if !c.from.Root() {
			c.refuse(http.StatusForbidden, needsRoot)
			return
		}
		if value, ok := c.body(MaxNativeValue); ok {
			c.reply(func(ctx context.Context) error { return c.s.c.Native.Put(ctx, c.from, key, value) })
		}
	case route.del && method == http.MethodDelete:
		if !c.from.Root() {
			c.refuse(http.StatusForbidden, needsRoot)
			return
		}
		c.reply(func(ctx context.Context) error { return c.s.c.Native.Delete(ctx, c.from, key) })
	default:
		c.notAllowed(route.methods())
	}
}

// methods lists what may be done, for an Allow field.
func (r nativeRoute) methods() string {
	var methods []string
	if r.get != 0 {
		methods = append(methods, "GET")
	}
	if r.put {
		methods = append(methods, "PUT", "POST")
	}
	if r.del {
		methods = append(methods, "DELETE")
	}
	return strings.Join(methods, ", ")
}
