package cli

import "testing"

func TestMessagesDoNotCommandTheTerminal(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"two\tlines\nof text\n":         "two\tlines\nof text\n",
		"\x1b]52;c;cm0gLXJmCg==\x07red": "\ufffd]52;c;cm0gLXJmCg==\ufffdred",
		"\u009b31m \u202egnp.exe\r\x00": "\ufffd31m \ufffdgnp.exe\ufffd\ufffd",
		"\x9b\xff grün":                 "\ufffd\ufffd grün",
	} {
		if got := string(harmless([]byte(message))); got != want {
			t.Errorf("%q is shown as %q, want %q", message, got, want)
		}
	}
}
