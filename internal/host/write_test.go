package host

import (
	"strings"
	"testing"
)

func FuzzParseRequest(f *testing.F) {
	const csr = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
	f.Add([]byte(csr))
	f.Add([]byte(csr + "ssh-ed25519 AAAA host\n"))
	f.Add([]byte("text before\n" + csr + csr))
	f.Fuzz(func(t *testing.T, value []byte) {
		der, ssh, err := parseRequest(value)
		if err != nil {
			if der != nil || ssh != "" || strings.ContainsAny(err.Error(), "\r\n") {
				t.Fatalf("%q: %x, %q, %v", value, der, ssh, err)
			}
			return
		}
		if len(value) > maxRequest || len(der) > len(value) || strings.ContainsAny(ssh, "\r\n") {
			t.Fatalf("%q: %x, %q", value, der, ssh)
		}
	})
}
