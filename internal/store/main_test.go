package store

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if run := children[os.Getenv(childVariable)]; run != nil {
		run()
		return
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString("goroutines leak: " + err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// childVariable names, in the environment, which child this process is to be.
const childVariable = "IMPRINT_STORE_TEST_CHILD"
