package seal

import (
	"strings"
	"testing"
)

// FuzzParseFile gives a key file that somebody edited; no error shows a line of it.
func FuzzParseFile(f *testing.F) {
	f.Add([]byte("# comment\n\nimprint-kek-v1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"))
	f.Add([]byte("imprint-kek-v1 secretsecretsecret\r\n"))
	f.Add([]byte("imprint-kek-v2"))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseFile(b)
		if err == nil && (len(keys) == 0 || len(keys) > maxFileKeys) {
			t.Errorf("%d keys", len(keys))
		}
		if err != nil && strings.Contains(err.Error(), "secretsecret") {
			t.Errorf("the error shows the key: %v", err)
		}
	})
}
