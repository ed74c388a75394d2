package cli

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"imprint"
	"imprint/api"
	"imprint/internal/dialect"
)

// defaultKey is the private key that is tried if none is named, below the home
// directory.
const defaultKey = ".ssh/id_rsa"

// guestPassword is the password of a machine, as "imprint password" prints it.
type guestPassword struct {
	Instance   string             `json:"instance"`
	Generation imprint.Generation `json:"generation"`
	Password   string             `json:"password"`
}

func (p *program) passwordCommand() *cobra.Command {
	var key, passphrase string
	var encrypted bool
	c := &cobra.Command{
		Use:   "password NAME",
		Short: "Print the password that a machine made up for its administrator",
		Long: `Print the password that a machine made up and posted, encrypted to its SSH key,
as cloudbase-init does on Windows. The private key may be an OpenSSH or a PEM
file; if it is encrypted, its passphrase is asked for on the terminal.

Whatever runs in the machine may post, and the first post of a generation counts:
if the machine does not take the password, something was quicker.

With --encrypted it is printed as it was posted, for "openssl pkeyutl -decrypt" or
somebody else who has the key: base64 of RSA PKCS #1 v1.5, and with -o json in the
shape of EC2's get-password-data.`,
		Example:           "  imprint password win-1 --key ~/.ssh/id_rsa\n  imprint password win-1 --key lab.pem --passphrase-file lab.passphrase -o json\n  imprint password win-1 --encrypted -o json",
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			return p.password(c.Context(), args[0], key, passphrase, encrypted)
		},
	}
	c.Flags().StringVar(&key, "key", "", "private key `file` of one of the instance's SSH keys (default ~/"+defaultKey+")")
	c.Flags().StringVar(&passphrase, "passphrase-file", "", "read the key's passphrase from the first line of this `file`")
	c.Flags().BoolVar(&encrypted, "encrypted", false, "print it as it was posted; no key is needed")
	c.MarkFlagsMutuallyExclusive("encrypted", "key")
	c.MarkFlagsMutuallyExclusive("encrypted", "passphrase-file")
	c.MarkFlagFilename("key")
	c.MarkFlagFilename("passphrase-file")
	return c
}

func (p *program) password(ctx context.Context, ref, keyFile, passphraseFile string, encrypted bool) error {
	client := p.client()
	defer client.Close()
	one, err := client.Get(ctx, ref)
	if err != nil {
		return err
	}
	if len(one.Enrolment.Password) == 0 { // before anybody types a passphrase
		return imprint.Errorf(imprint.Conflict, "show password of", one.Ref, "generation %d has posted none", one.Generation).
			WithHint("cloudbase-init posts it late in the first boot, if the instance has an ssh-rsa key; imprint watch %s shows it", one.Ref)
	}
	if encrypted {
		posted := dialect.NewEC2Password(one.ID, one.Updated, one.Enrolment.Password)
		return p.print(posted, func(w io.Writer) { fmt.Fprintln(w, string(harmless([]byte(posted.PasswordData)))) })
	}
	if keyFile == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return imprint.Errorf(imprint.Invalid, "find", "private key", "%w", err).WithHint("name it with --key")
		}
		keyFile = filepath.Join(home, defaultKey)
	}
	key, err := readKey(keyFile, func() (imprint.Secret, error) { return p.passphrase(keyFile, passphraseFile) })
	if err != nil {
		return err
	}
	password, err := decryptPassword(one, keyFile, key)
	if err != nil {
		return err
	}
	return p.printPassword(one, password)
}

// passphrase returns the passphrase of a key: from a file, or else from the
// terminal.
func (p *program) passphrase(keyFile, file string) (imprint.Secret, error) {
	if file != "" {
		b, err := readFile(file, maxKeyFile)
		if err != nil {
			return imprint.Secret{}, err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		return imprint.NewSecret([]byte(strings.TrimSuffix(line, "\r"))), nil
	}
	ask := p.asker()
	if ask == nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "read", keyFile, "it is encrypted, and there is no terminal to ask for its passphrase").
			WithHint("name a file that holds it with --passphrase-file")
	}
	return ask("Passphrase of " + keyFile)
}

// decryptPassword decrypts what the guest posted, which is in base64: lines may
// be folded. PKCS #1 v1.5 is what all guests and tools of this kind use; nobody
// can ask this key a second question, so its padding is no oracle here.
func decryptPassword(one *api.Instance, keyFile string, key *rsa.PrivateKey) (imprint.Secret, error) {
	text := strings.Join(strings.Fields(string(one.Enrolment.Password)), "")
	ciphertext, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "decrypt password of", one.Ref, "what it posted is not base64").
			WithHint("imprint get %s -o json has it as it was posted, below enrolment", one.Ref)
	}
	if len(ciphertext) == key.Size() {
		password, err := rsa.DecryptPKCS1v15(nil, key, ciphertext) //nolint:staticcheck // the guest chose the scheme
		if err == nil {
			return imprint.NewSecret(password), nil
		}
	}
	if isKeyOf(one, key) {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "decrypt password of", one.Ref, "%s does not open it", keyFile).
			WithHint("the machine encrypted it to another key, perhaps to another of the instance's SSH keys")
	}
	return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "decrypt password of", one.Ref, "%s does not open it; it belongs to none of the instance's SSH keys", keyFile).
		WithHint("name the private key of one of them with --key")
}

// isKeyOf reports whether the instance has the key's public half among its SSH keys.
func isKeyOf(one *api.Instance, key *rsa.PrivateKey) bool {
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return false
	}
	return slices.ContainsFunc(one.Spec.SSHKeys, func(line string) bool {
		other, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		return err == nil && string(other.Marshal()) == string(public.Marshal())
	})
}

// printPassword prints what the guest encrypted. Anything may be in it: the key
// that it was encrypted to is public.
func (p *program) printPassword(one *api.Instance, password imprint.Secret) error {
	shown := password.Reveal()
	if p.output != asTable {
		if !utf8.Valid(shown) {
			return imprint.Errorf(imprint.Invalid, "print password of", one.Ref, "it is not text").WithHint("print it without -o")
		}
		return p.print(guestPassword{one.Ref, one.Generation, string(shown)}, nil)
	}
	if isTerminal(p.out) {
		shown = harmless(shown)
	}
	_, err := fmt.Fprintf(p.out, "%s\n", shown)
	return err
}
