package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"aead.dev/minisign"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
)

// signedList returns what of a list of sums is signed by key: all of it, if signature
// is a detached one, or what the list has its own signature around.
func signedList(key string, list, signature []byte) ([]byte, error) {
	if signature != nil {
		return list, signedFile(key, bytes.NewReader(list), signature)
	}
	ring, err := pinned(key)
	if err != nil {
		return nil, err
	}
	if ring == nil {
		return nil, errors.New("a minisign signature is a file of its own, and none is named")
	}
	block, rest := clearsign.Decode(list)
	if block == nil {
		return nil, errors.New("it has no signature around it, and none beside it is named")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("something follows its signature")
	}
	if _, err := block.VerifySignature(ring, nil); err != nil {
		return nil, err
	}
	return block.Plaintext, nil
}

// signedFile fails unless signature is a detached one of all that in has, by key.
func signedFile(key string, in io.Reader, signature []byte) error {
	ring, err := pinned(key)
	if err != nil {
		return err
	}
	if ring == nil {
		return signedMinisign(key, in, signature)
	}
	if bytes.HasPrefix(bytes.TrimSpace(signature), []byte("-----BEGIN PGP SIGNATURE-----")) {
		block, err := armor.Decode(bytes.NewReader(signature))
		if err != nil {
			return fmt.Errorf("its signature is damaged: %w", err)
		}
		if signature, err = io.ReadAll(io.LimitReader(block.Body, maxSums)); err != nil {
			return fmt.Errorf("its signature is damaged: %w", err)
		}
	}
	_, err = openpgp.CheckDetachedSignature(ring, in, bytes.NewReader(signature), nil)
	return err
}

// pinned returns the OpenPGP keys in key; nil if it is a minisign key.
func pinned(key string) (openpgp.EntityList, error) {
	if !strings.Contains(key, "-----BEGIN PGP") {
		return nil, nil
	}
	ring, err := openpgp.ReadArmoredKeyRing(strings.NewReader(key))
	if err != nil {
		return nil, fmt.Errorf("the key is no OpenPGP key: %w", err)
	}
	if len(ring) == 0 {
		return nil, errors.New("there is no OpenPGP key in it")
	}
	return ring, nil
}

func signedMinisign(key string, in io.Reader, signature []byte) error {
	var public minisign.PublicKey
	if err := public.UnmarshalText([]byte(strings.TrimSpace(key))); err != nil {
		return errors.New("the key is neither an OpenPGP key in ASCII armour nor a minisign one")
	}
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return errors.New("its signature is no minisign signature")
	}
	if s.KeyID != public.ID() {
		return fmt.Errorf("its signature is by the minisign key %X", s.KeyID)
	}
	var good bool
	if s.Algorithm == minisign.HashEdDSA {
		r := minisign.NewReader(in)
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		good = r.Verify(public, signature)
	} else {
		// The old form is of all the bytes at once.
		b, err := io.ReadAll(io.LimitReader(in, maxSums+1))
		if err != nil {
			return err
		}
		if len(b) > maxSums {
			return errors.New("its signature is of minisign's old form, which is for small files: sign it again, or a list of sums")
		}
		good = minisign.Verify(public, b, signature)
	}
	if !good {
		return errors.New("its signature is wrong")
	}
	return nil
}
