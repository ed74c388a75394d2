package daemon

import (
	"context"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/hostapi"
)

// pipesAt says which hypervisor has an instance's pipes; "" is the host role in this
// process.
func (h *hosts) pipesAt(ctx context.Context, id imprint.InstanceID) (imprint.HostName, error) {
	i, err := h.store.Instance(ctx, id)
	if err != nil || !h.elsewhere(ctx, i.Spec.Host) {
		return "", err
	}
	return i.Spec.Host, nil
}

// ListPipes returns what waits in the pipes of an instance.
func (h *hosts) ListPipes(ctx context.Context, id imprint.InstanceID) (list []api.Pipe, err error) {
	at, err := h.pipesAt(ctx, id)
	if err != nil {
		return nil, err
	}
	if at == "" {
		here, err := h.host.Pipes(id)
		for _, one := range here {
			list = append(list, api.Pipe{Name: one.Name, ToMachine: api.Waiting(one.ToMachine), FromMachine: api.Waiting(one.FromMachine)})
		}
		return list, err
	}
	a, err := h.api.Call(ctx, at, hostapi.Call{Kind: hostapi.CallPipes, Instance: id})
	for _, one := range a.Pipes {
		list = append(list, api.Pipe{Name: one.Name, ToMachine: api.Waiting(one.ToMachine), FromMachine: api.Waiting(one.FromMachine)})
	}
	return list, err
}

// WritePipe queues a message for the guest.
func (h *hosts) WritePipe(ctx context.Context, id imprint.InstanceID, pipe, messageID string, message []byte, by string) error {
	at, err := h.pipesAt(ctx, id)
	switch {
	case err != nil:
		return err
	case at == "":
		return h.host.WritePipe(id, pipe, messageID, message, by)
	}
	_, err = h.api.Call(ctx, at, hostapi.Call{Kind: hostapi.CallWrite, Instance: id, Name: pipe, Message: messageID, Value: message, By: by})
	return err
}

// askAgain is how soon a host is asked again that had no message, at the earliest: it
// waits for one itself, and one that does not must not keep this server busy.
const askAgain = 250 * time.Millisecond

// ReadPipe returns the guest's oldest message and its receipt, "" if none came.
func (h *hosts) ReadPipe(ctx context.Context, id imprint.InstanceID, pipe string, wait time.Duration) ([]byte, string, error) {
	at, err := h.pipesAt(ctx, id)
	if err != nil {
		return nil, "", err
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if at == "" {
		return h.host.ReadPipe(waiting, id, pipe)
	}
	for {
		again := time.After(askAgain)
		a, err := h.api.Call(ctx, at, hostapi.Call{Kind: hostapi.CallRead, Instance: id, Name: pipe})
		if err != nil || a.Receipt != "" || waiting.Err() != nil {
			return a.Message, a.Receipt, err
		}
		select {
		case <-again:
		case <-waiting.Done():
		}
	}
}

// TakePipe removes the guest's oldest message if it has this receipt.
func (h *hosts) TakePipe(ctx context.Context, id imprint.InstanceID, pipe, receipt, by string) error {
	at, err := h.pipesAt(ctx, id)
	switch {
	case err != nil:
		return err
	case at == "":
		return h.host.TakePipe(id, pipe, receipt, by)
	}
	_, err = h.api.Call(ctx, at, hostapi.Call{Kind: hostapi.CallTake, Instance: id, Name: pipe, Message: receipt, By: by})
	return err
}
