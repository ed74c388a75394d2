package metadata

import (
	"net/http"
	"strings"
)

// The literal addresses under which guests reach the metadata, without a port.
const (
	addressV4 = "169.254.169.254"
	addressV6 = "[fe80::a9fe:a9fe]"
)

// forwarding are header fields that a proxy or a browser adds and that no client
// of metadata sends. A request that has one was made for somebody else, who must
// not read the reply (server-side request forgery). Fields that begin with
// X-Forwarded are refused besides.
var forwarding = map[string]struct{}{
	"Via": {}, "Forwarded": {}, "Origin": {}, "X-Real-Ip": {}, "X-Client-Ip": {}, "True-Client-Ip": {},
	"X-Original-Url": {}, "X-Original-Host": {}, "X-Rewrite-Url": {}, "X-Host": {}, "Client-Ip": {},
}

// guard says why a request is not one of the guest's own; "" if it may be.
// names are further host names.
func guard(r *http.Request, names []string) string {
	switch {
	// In absolute form the authority takes the place of the Host field (RFC 9112
	// section 3.2.2), and net/http puts it there.
	case r.Host != addressV4 && !knownHost(r.Host, names):
		return "the request is for another host"
	case r.URL.Scheme != "" && r.URL.Scheme != "http", r.URL.User != nil, r.Method == http.MethodConnect:
		return "the request is one to a proxy"
	}
	for field := range r.Header {
		if _, ok := forwarding[field]; ok || strings.HasPrefix(field, "X-Forwarded") {
			return "the request was forwarded: it has the field " + field
		}
	}
	return ""
}

// knownHost judges a Host field: one of the two addresses or a name, with a port
// or without. An IPv6 address may have a zone, which clients are meant to remove
// and do not always (RFC 6874 section 4).
func knownHost(host string, names []string) bool {
	host = withoutPort(host)
	if host == addressV4 || host == addressV6 {
		return true
	}
	if zone, ok := strings.CutPrefix(host, addressV6[:len(addressV6)-1]+"%"); ok {
		zone, ok = strings.CutSuffix(zone, "]")
		return ok && plainZone(zone)
	}
	host = strings.TrimSuffix(host, ".")
	for _, name := range names {
		if strings.EqualFold(host, name) {
			return true
		}
	}
	return false
}

// withoutPort cuts ":80" and the like off; what is not a port stays.
func withoutPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || i < strings.LastIndexByte(host, ']') {
		return host
	}
	port := host[i+1:]
	if port == "" || len(port) > 5 {
		return host
	}
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return host
		}
	}
	return host[:i]
}

func plainZone(zone string) bool {
	zone = strings.TrimPrefix(zone, "25") // the percent sign, encoded
	for _, c := range []byte(zone) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return zone != "" && len(zone) <= maxIPv6Zone
}
