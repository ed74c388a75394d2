package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"strconv"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/host"
	"imprint/internal/seal"
	"imprint/internal/server"
	"imprint/internal/store"
)

// openKeys opens the key file. One that is missing although the store holds what
// was sealed with it is not made anew: it has to be brought back.
func openKeys(ctx context.Context, docs documents, path string) (*seal.File, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		switch _, _, err := docs.Document(ctx, logsDocument); {
		case err == nil:
			return nil, imprint.Errorf(imprint.NotFound, "read", path, "the key file is missing, and the store was sealed with it").
				WithHint("restore it from its backup, or name the right one as keyFile in the configuration")
		case imprint.KindOf(err) != imprint.NotFound:
			return nil, err
		}
	}
	return seal.OpenFile(path)
}

// logsDocument is where the store keeps the keys of all servers' issuance logs.
const logsDocument = "logs"

// logKeys is the key of one server's issuance log, sealed, and what verifies it.
type logKeys struct {
	Key      []byte `json:"key"`
	Verifier string `json:"verifier"`
}

func logContext(server imprint.HostName) string { return logsDocument + "/" + string(server) }

// logKey returns the key of server's issuance log and what verifies it, making
// them the first time.
func logKey(ctx context.Context, docs documents, keys sealer, server imprint.HostName) (key imprint.Secret, verifier string, err error) {
	err = editDocument(ctx, docs, logsDocument, func(logs *map[imprint.HostName]logKeys) (bool, error) {
		if have, ok := (*logs)[server]; ok {
			verifier = have.Verifier
			key, err = keys.Open(have.Key, logContext(server))
			return false, err
		}
		fresh := logKeys{}
		if key, fresh.Verifier, err = ca.GenerateLogKey(server); err != nil {
			return false, err
		}
		verifier = fresh.Verifier
		fresh.Key, err = keys.Seal(key, logContext(server))
		if *logs == nil {
			*logs = map[imprint.HostName]logKeys{}
		}
		(*logs)[server] = fresh
		return true, err
	})
	return key, verifier, err
}

// sealing changes the key-encryption key of everything that is sealed.
type sealing struct {
	keys        *seal.File
	store       *store.Store
	values      *values
	authorities *authorities
	logger      *slog.Logger
}

// Rotate makes a new key, gives it everything that was sealed, and then forgets
// the old ones. Readers and writers go on meanwhile. If it is broken off, the
// old keys stay, and it can be repeated.
func (s *sealing) Rotate(ctx context.Context, by string) (key string, instances int, err error) {
	id, err := s.keys.Rotate()
	if err != nil {
		return "", 0, err
	}
	s.logger.WarnContext(ctx, "rotating the key-encryption key", "key", id.String(), "by", by)
	s.values.settle() // no value that the old key sealed is on its way into the store
	instances, err = s.store.RewriteSealed(ctx, func(id imprint.InstanceID, name string, blob []byte) ([]byte, bool, error) {
		return s.keys.Rewrap(blob, paramContext(id, name))
	})
	if err != nil {
		return "", 0, err
	}
	if err := s.authorities.rewrap(ctx); err != nil {
		return "", 0, err
	}
	err = editDocument(ctx, s.store, logsDocument, func(logs *map[imprint.HostName]logKeys) (bool, error) {
		for server, k := range *logs {
			if k.Key, _, err = s.keys.Rewrap(k.Key, logContext(server)); err != nil {
				return false, err
			}
			(*logs)[server] = k
		}
		return true, nil
	})
	if err != nil {
		return "", 0, err
	}
	return id.String(), instances, s.keys.Retire()
}

// ownerOf finds the user to whom guest sockets belong; nil is this process's own.
func ownerOf(name string) (*host.Owner, error) {
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "use", "guestOwner "+name, "there is no such user").
			WithHint("it is the user who runs the hypervisor, for example libvirt-qemu")
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "use", "guestOwner "+name, "its number is %q", u.Uid)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "use", "guestOwner "+name, "its group is %q", u.Gid)
	}
	return &host.Owner{UID: uid, GID: gid}, nil
}

// apiTLS reads the certificates of the control API over TCP.
func apiTLS(c APIConfig) (*tls.Config, error) {
	cert, clients, err := readTLS("api", c.Cert, c.Key, c.ClientCA)
	if err != nil {
		return nil, err
	}
	return server.TLSConfig(cert, clients), nil
}

// readTLS reads an endpoint's certificate and those whose clients it admits, which
// section of the configuration names.
func readTLS(section, certFile, keyFile, clientCA string) (cert tls.Certificate, clients *x509.CertPool, err error) {
	cert, err = tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return cert, nil, imprint.Errorf(imprint.Invalid, "read", section+".cert and "+section+".key", "%w", err)
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return cert, nil, imprint.Errorf(imprint.Invalid, "read", section+".clientCA", "%w", err)
	}
	clients = x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return cert, nil, imprint.Errorf(imprint.Invalid, "read", section+".clientCA", "%s holds no certificate in PEM", clientCA)
	}
	return cert, clients, nil
}
