package manifest

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a manifest.
type Problem struct {
	Line, Column int    // from 1; 0 if unknown
	Field        string // the path of the field, like "network.ethernets.eth0.mtu"; "" for the document
	Message      string // the predicate of a sentence whose subject is Field
}

// String returns the problem as one sentence.
func (p Problem) String() string {
	var b strings.Builder
	switch {
	case p.Line > 0 && p.Column > 0:
		fmt.Fprintf(&b, "line %d, column %d: ", p.Line, p.Column)
	case p.Line > 0:
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Field == "" {
		b.WriteString("the manifest")
	} else {
		b.WriteString(p.Field)
	}
	b.WriteString(" " + p.Message)
	return b.String()
}

// Problems is all that is wrong with a file, in the order of the file, as an error.
type Problems []Problem

func (ps Problems) Error() string {
	if len(ps) == 1 {
		return ps[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems", len(ps))
	for _, p := range ps {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// meant returns the one of names that was probably meant by s, or "".
func meant(s string, names []string) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", "_", "", ".", "").Replace(s))
	}
	best, distance := "", 3
	for _, name := range names {
		d := edits(plain(s), plain(name))
		if d < distance && d*2 < len(name) {
			best, distance = name, d
		}
	}
	return best
}

// edits returns how many insertions, deletions, replacements and swaps of
// neighbours turn a into b (optimal string alignment); both are short.
func edits(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// listed joins names for a sentence: "a, b and c".
func listed(names []string, last string) string {
	n := len(names) - 1
	if n < 1 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:n], ", ") + " " + last + " " + names[n]
}
