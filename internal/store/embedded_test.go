package store

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"imprint"
)

// TestLongPath uses a data directory whose path is too long for a socket.
func TestLongPath(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	s := openEmbedded(t, dir)
	defer s.Close()
	if info, err := os.Stat(filepath.Join(dir, socketFile)); err != nil || info.Mode()&os.ModeSocket == 0 {
		t.Errorf("no socket: %v, %v", info, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory is open to others: %v, %v", info, err)
	}
}

// TestSocket reaches the embedded etcd as etcdctl would.
func TestSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "s") // short enough for a client
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := openEmbedded(t, dir)
	defer s.Close()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + dir + "/" + socketFile}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	resp, err := client.Get(soon(t), s.keys.format())
	if err != nil || len(resp.Kvs) != 1 {
		t.Errorf("over the socket: %v, %v", resp, err)
	}
}

// TestQuiet looks for anything alarming in the log of an ordinary life.
func TestQuiet(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := OpenEmbedded(t.Context(), Embedded{Dir: t.TempDir(), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, "quiet")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("the log has:\n%s", log.String())
	}
}

// TestQuota fills the database up to its quota, makes room, and goes on.
func TestQuota(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *Store {
		s, err := OpenEmbedded(t.Context(), Embedded{Dir: dir, Quota: 12 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	var ids []imprint.InstanceID
	var err error
	for n := 0; err == nil; n++ {
		i := newInstance(fmt.Sprintf("quota-%d", n))
		i.Spec.UserData = strings.Repeat("x", imprint.MaxUserData)
		if err = s.Create(t.Context(), i, nil, reserved()); err == nil {
			ids = append(ids, i.ID)
		}
		if n == 60 { // one of those that will have to make room
			update(t, s, i.ID, to(imprint.Delivered, imprint.EventDelivered))
		}
	}
	wantKind(t, err, imprint.Exhausted)
	if !strings.Contains(err.Error(), "quota") || imprint.HintOf(err) == "" {
		t.Errorf("error %q, hint %q", err, imprint.HintOf(err))
	}
	_, err = s.Update(t.Context(), ids[0], to(imprint.Delivered, imprint.EventDelivered))
	wantKind(t, err, imprint.Exhausted)
	for _, id := range ids[len(ids)/4:] {
		if err := s.Delete(t.Context(), id, func(*imprint.Instance) (imprint.Change, error) { return imprint.Change{}, nil }); err != nil {
			t.Fatalf("Delete at the quota: %v", err)
		}
	}
	if err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	update(t, s, ids[0], to(imprint.Delivered, imprint.EventDelivered))
	wantConsistent(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	update(t, s, ids[0], to(imprint.Claimed, imprint.EventClaimed))
	gone := newInstance("quota-again")
	gone.ID = ids[len(ids)-1]
	wantTaken(t, s, gone)
}

// TestStartBound wants an answer in time from an etcd that does not start.
func TestStartBound(t *testing.T) {
	t.Parallel()
	_, err := OpenEmbedded(t.Context(), Embedded{Dir: t.TempDir(), StartTimeout: time.Nanosecond})
	wantKind(t, err, imprint.Unavailable)
}
