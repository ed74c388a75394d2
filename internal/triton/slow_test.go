package triton_test

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imprint/internal/triton"
)

// hostThat speaks for the host on one end of a pipe, whose other end it returns:
// it greets as it should and leaves every request to answer.
func hostThat(t *testing.T, answer func(host net.Conn, request triton.Frame)) net.Conn {
	guest, host := net.Pipe()
	t.Cleanup(func() { host.Close() })
	go func() {
		for lines := bufio.NewScanner(host); lines.Scan(); {
			switch line := lines.Text(); line {
			case "":
				host.Write([]byte("invalid command\n"))
			case "NEGOTIATE V2":
				host.Write([]byte("V2_OK\n"))
			default:
				request, ok := triton.DecodeFrame([]byte(line), nil)
				if !ok {
					t.Errorf("request %q", line)
				}
				answer(host, request)
			}
		}
	}()
	return guest
}

func success(t *testing.T, request triton.Frame, value string) []byte {
	reply, err := triton.AppendFrame(nil, triton.Frame{ID: request.ID, Code: triton.Success, Payload: []byte(value)})
	if err != nil {
		t.Error(err)
	}
	return reply
}

// A reply that trickles in over a slow line is waited for; only silence makes
// the client ask again.
func TestSlowReplyIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		guest := hostThat(t, func(host net.Conn, request triton.Frame) {
			requests++
			// 24 bytes a second: a minute for the whole.
			for reply := success(t, request, strings.Repeat("x", 900)); len(reply) > 0; {
				n := min(24, len(reply))
				time.Sleep(time.Second)
				host.Write(reply[:n])
				reply = reply[n:]
			}
		})
		client := triton.NewClient(triton.Once(guest), triton.ClientOptions{Reply: 15 * time.Second})
		defer client.Close()
		value, err := client.Get(t.Context(), "key")
		if err != nil || len(value) != 900 || requests != 1 {
			t.Errorf("%d bytes, %v, after %d requests", len(value), err, requests)
		}
	})
}

// A reply that was lost is asked for again soon: a machine must not stand still
// because its host was restarted.
func TestSilenceIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		guest := hostThat(t, func(host net.Conn, request triton.Frame) {
			if requests++; requests > 1 { // the first reply is lost
				host.Write(success(t, request, "v"))
			}
		})
		client := triton.NewClient(triton.Once(guest), triton.ClientOptions{})
		defer client.Close()
		begun := time.Now()
		value, err := client.Get(t.Context(), "key")
		if err != nil || string(value) != "v" {
			t.Errorf("%q, %v", value, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("asked again only after %v", took)
		}
	})
}
