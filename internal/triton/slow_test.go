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

// A reply that trickles in over a slow line is waited for; only silence makes
// the client ask again.
func TestSlowReplyIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guest, host := net.Pipe()
		defer host.Close()
		requests := 0
		go func() {
			lines := bufio.NewScanner(host)
			for lines.Scan() {
				switch line := lines.Text(); {
				case line == "":
					host.Write([]byte("invalid command\n"))
				case line == "NEGOTIATE V2":
					host.Write([]byte("V2_OK\n"))
				default:
					requests++
					frame, ok := triton.DecodeFrame([]byte(line), nil)
					if !ok {
						t.Errorf("request %q", line)
					}
					reply, err := triton.AppendFrame(nil, triton.Frame{ID: frame.ID, Code: triton.Success, Payload: []byte(strings.Repeat("x", 900))})
					if err != nil {
						t.Error(err)
					}
					for len(reply) > 0 { // 24 bytes a second: a minute for the whole
						n := min(24, len(reply))
						time.Sleep(time.Second)
						host.Write(reply[:n])
						reply = reply[n:]
					}
				}
			}
		}()
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
		guest, host := net.Pipe()
		defer host.Close()
		requests := 0
		go func() {
			lines := bufio.NewScanner(host)
			for lines.Scan() {
				switch line := lines.Text(); {
				case line == "":
					host.Write([]byte("invalid command\n"))
				case line == "NEGOTIATE V2":
					host.Write([]byte("V2_OK\n"))
				default:
					if requests++; requests == 1 {
						continue // lost
					}
					frame, _ := triton.DecodeFrame([]byte(line), nil)
					reply, _ := triton.AppendFrame(nil, triton.Frame{ID: frame.ID, Code: triton.Success, Payload: []byte("v")})
					host.Write(reply)
				}
			}
		}()
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
