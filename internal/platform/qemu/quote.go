package qemu

import "strings"

// escape protects a value inside one of QEMU's comma-separated options, where
// a comma is written twice.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// shellQuote returns s as one word of a POSIX shell.
func shellQuote(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./=:,+@%", c)
	}
	if s != "" && strings.IndexFunc(s, func(c rune) bool { return !plain(c) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
