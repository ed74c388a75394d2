package host

import (
	"bytes"
	"context"
	"sync"

	"imprint"
	"imprint/internal/triton"
)

// Limits of a message queue; there is one each way for every instance.
const (
	MaxMessage  = triton.MaxPut - triton.MaxKey // bytes of one message
	maxMessages = 64                            // waiting messages
)

// queue holds messages until their receiver says that it has them. Reading does
// not remove: a reply may be lost, and the reader may die with the message in
// its hands. A receiver acknowledges a message by its digest, so that an
// acknowledgement that is repeated removes nothing else. For the same reason a
// message that equals the last one is that one, sent again: who means two equal
// messages in a row numbers them.
type queue struct {
	mu       sync.Mutex
	messages [][]byte
	last     imprint.Digest // of the message put last, even if it is gone
	arrived  chan struct{}  // closed and replaced when a message arrives
}

func newQueue() *queue { return &queue{arrived: make(chan struct{})} }

func (q *queue) put(message []byte) error {
	if len(message) == 0 || len(message) > MaxMessage {
		return imprint.Errorf(imprint.Exhausted, "send", "message", "%d bytes; a message has 1 to %d", len(message), MaxMessage)
	}
	d := imprint.DigestOf(message)
	q.mu.Lock()
	defer q.mu.Unlock()
	if d == q.last {
		return nil
	}
	if len(q.messages) >= maxMessages {
		return imprint.Errorf(imprint.Exhausted, "send", "message", "%d messages wait to be read", len(q.messages)).
			WithHint("send it again when the receiver has caught up")
	}
	q.messages = append(q.messages, bytes.Clone(message))
	q.last = d
	close(q.arrived)
	q.arrived = make(chan struct{})
	return nil
}

// peek returns the oldest message, which must not be changed.
func (q *queue) peek() (message []byte, arrived <-chan struct{}, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.messages) == 0 {
		return nil, q.arrived, false
	}
	return q.messages[0], q.arrived, true
}

// wait returns the oldest message as soon as there is one.
func (q *queue) wait(ctx context.Context) ([]byte, error) {
	for {
		message, arrived, ok := q.peek()
		if ok {
			return bytes.Clone(message), nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// acknowledge removes the oldest message if its digest is d.
func (q *queue) acknowledge(d imprint.Digest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.messages) > 0 && imprint.DigestOf(q.messages[0]) == d {
		q.messages[0] = nil
		q.messages = q.messages[1:]
	}
}

// reset forgets everything, at the start of a new generation.
func (q *queue) reset() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages, q.last = nil, ""
}
