package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"imprint"
)

// exitStatus is one of the program's exit codes.
type exitStatus struct {
	code    int
	kinds   []imprint.Kind // the errors that lead to it
	meaning string
}

// Codes that no kind of error leads to.
const (
	exitOK          = 0
	exitUsage       = 2
	exitInterrupted = 130 // as a shell reports SIGINT
)

// exitCodes are all exit codes. They never change their meaning.
func exitCodes() []exitStatus {
	return []exitStatus{
		{exitOK, nil, "done"},
		{1, []imprint.Kind{imprint.Internal}, "a defect, or something broken that imprint depends on"},
		{exitUsage, nil, "the command line cannot be understood"},
		{3, []imprint.Kind{imprint.Invalid}, "the input is wrong; sending it again will not help"},
		{4, []imprint.Kind{imprint.NotFound}, "what was named does not exist"},
		{5, []imprint.Kind{imprint.Exists, imprint.Conflict}, "it exists already, or is in a state that does not allow this"},
		{6, []imprint.Kind{imprint.Denied, imprint.Unauthorized}, "not allowed"},
		{7, []imprint.Kind{imprint.Unavailable}, "the server, or what the command depends on, cannot be reached or took too long; try again later"},
		{8, []imprint.Kind{imprint.Exhausted}, "a limit or a disk is full"},
		{9, []imprint.Kind{imprint.Contested}, "a second key claimed the same machine"},
		{10, []imprint.Kind{imprint.Pending}, "an operator has to approve first"},
		{exitInterrupted, nil, "interrupted"},
	}
}

// exitCode returns the exit code for err.
func exitCode(err error) int {
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	for _, s := range exitCodes() {
		if slices.Contains(s.kinds, imprint.KindOf(err)) {
			return s.code
		}
	}
	return 1
}

// exitReference is the exit codes as Markdown.
func exitReference() string {
	var b strings.Builder
	b.WriteString("# Exit codes of imprint\n\n" +
		"Errors are one sentence on standard error, most of them with a hint on the next line.\n" +
		"`kind` is the name of the error in the control API.\n\n" +
		"| code | kind | meaning |\n|---|---|---|\n")
	for _, s := range exitCodes() {
		var kinds []string
		for _, k := range s.kinds {
			kinds = append(kinds, k.String())
		}
		fmt.Fprintf(&b, "| %d | %s | %s |\n", s.code, strings.Join(kinds, ", "), s.meaning)
	}
	return b.String()
}
