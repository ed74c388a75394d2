package hostapi

import (
	"strings"
	"testing"
	"testing/synctest"

	"imprint"
)

// Operators who wait for a host's machines to write something leave room for those
// who want anything else of it.
func TestReadersLeaveRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.server()
		lines, _ := s.stream(t.Context())
		for range 2 {
			<-lines
		}
		results := make(chan error, 2*maxCalls)
		call := func(kind string) {
			_, err := s.Call(t.Context(), hv2, Call{Kind: kind, Instance: mine})
			results <- err
		}
		for range maxCalls {
			go call(CallRead)
		}
		taken := map[string]int{}
		take := func() {
			for {
				synctest.Wait()
				select {
				case line := <-lines:
					for _, kind := range []string{CallRead, CallLook} {
						if strings.Contains(line, `"kind":"`+kind+`"`) {
							taken[kind]++
						}
					}
				default:
					return
				}
			}
		}
		take()
		go call(CallLook)
		take()
		if taken[CallRead] != MaxReads || taken[CallLook] != 1 {
			t.Errorf("the host was asked %v", taken)
		}
		for range maxCalls - MaxReads {
			if err := <-results; imprint.KindOf(err) != imprint.Unavailable {
				t.Errorf("a read too many: %v", err)
			}
		}
	})
}
