package guest

import "testing"

func TestOnlyStaticProgramsBoot(t *testing.T) {
	t.Parallel()
	if _, err := isStatic([]byte("#!/bin/sh\n")); err == nil {
		t.Error("a script counts as a program")
	}
}
