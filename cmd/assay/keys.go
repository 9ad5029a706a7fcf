package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/assay-dev/assay/verify"
)

// passphraseVariable is where the passphrase of key files is looked for; it
// is cosign's, so that one setting serves both programs.
const passphraseVariable = "COSIGN_PASSWORD"

func newKeysCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "Make and show signing keys",
		Long: `Make and show signing keys: ECDSA P-256, in files that cosign reads too.

One key is for one role. 'cosign verify --key release.pub' accepts any statement
signed with the key, so a release key must sign nothing but releases.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newKeysGenerateCommand(g), newKeysImportCommand(g), newKeysShowCommand(g))
	return c
}

// A keyInfo is what the keys commands print.
type keyInfo struct {
	Role    verify.Role `json:"role,omitempty"`
	Private string      `json:"private,omitempty"`
	Public  string      `json:"public,omitempty"`
	Hint    string      `json:"hint"`
	PEM     string      `json:"pem"`
}

func newKeysGenerateCommand(g *globals) *cobra.Command {
	var roles []string
	var out string
	c := &cobra.Command{
		Use:   "generate",
		Short: "Make a key for each role",
		Long: `Make a key pair for each role: ROLE.key and ROLE.pub. The private key is encrypted
under the passphrase in ` + passphraseVariable + `, which may be empty. Files that
are there are never overwritten.`,
		Example: `  assay keys generate --role release --out keys
  assay keys generate --role release,provenance,conformance,deployment --out keys`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return generateKeys(g, roles, out) },
	}
	c.Flags().StringSliceVar(&roles, "role", nil, fmt.Sprintf("the roles: some of %v", verify.Roles))
	c.Flags().StringVar(&out, "out", ".", "the folder for the files; made if it is not there")
	c.MarkFlagRequired("role")
	return c
}

func generateKeys(g *globals, roles []string, out string) error {
	for _, r := range roles {
		if !slices.Contains(verify.Roles, verify.Role(r)) {
			return usagef("role %q is unknown: use some of %v", r, verify.Roles)
		}
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	var list []keyInfo
	for _, r := range roles {
		k, err := verify.GenerateKey()
		if err != nil {
			return err
		}
		private, err := k.EncryptedPEM([]byte(os.Getenv(passphraseVariable)))
		if err != nil {
			return err
		}
		info := keyInfo{
			Role: verify.Role(r), Private: filepath.Join(out, r+".key"), Public: filepath.Join(out, r+".pub"),
			Hint: k.Hint(), PEM: string(k.PublicPEM()),
		}
		if err := writeNew(info.Private, private, 0o600); err != nil {
			return err
		}
		if err := writeNew(info.Public, k.PublicPEM(), 0o644); err != nil {
			return err
		}
		list = append(list, info)
	}
	return g.print(list, func(w io.Writer) {
		for _, k := range list {
			fmt.Fprintf(w, "%-12s %s and %s\n", k.Role, k.Private, k.Public)
		}
	})
}

// writeNew writes a file that must not be there yet.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return remedy(fmt.Errorf("%s is there already", path), "a key is never overwritten: move it away, or choose another folder")
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func newKeysImportCommand(g *globals) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "import KEYFILE",
		Short: "Encrypt a key that is there already, as cosign does",
		Long: `Read an ECDSA P-256 key that cosign or openssl wrote (PKCS #8, SEC 1), and write
it encrypted under the passphrase in ` + passphraseVariable + `, with its public key
beside it. The file that is read stays as it is.`,
		Example: "  assay keys import ec.pem --out keys/release",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			k, err := loadKey(args[0])
			if err != nil {
				return err
			}
			private, err := k.EncryptedPEM([]byte(os.Getenv(passphraseVariable)))
			if err != nil {
				return err
			}
			info := keyInfo{Private: out + ".key", Public: out + ".pub", Hint: k.Hint(), PEM: string(k.PublicPEM())}
			if err := writeNew(info.Private, private, 0o600); err != nil {
				return err
			}
			if err := writeNew(info.Public, k.PublicPEM(), 0o644); err != nil {
				return err
			}
			return g.print(info, func(w io.Writer) { fmt.Fprintf(w, "%s and %s\n", info.Private, info.Public) })
		},
	}
	c.Flags().StringVar(&out, "out", "", "the files to write, without .key and .pub")
	c.MarkFlagRequired("out")
	return c
}

func newKeysShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "show KEY",
		Short: "Show the public key of a private key",
		Long:  "Show the public key of a private key, in a file or in a KMS, and the hint by which bundles name it.",
		Example: `  assay keys show keys/release.key > release.pub
  assay keys show awskms:///alias/release > release.pub`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := (&signing{key: args[0]}).signer(cmd.Context())
			if err != nil {
				return err
			}
			public, err := s.PublicPEM()
			if err != nil {
				return err
			}
			return g.print(keyInfo{Hint: s.Hint(), PEM: public}, func(w io.Writer) { io.WriteString(w, public) })
		},
	}
}

// loadKey reads a private key file.
func loadKey(path string) (*verify.Key, error) {
	if path == "" {
		return nil, remedy(usagef("no key to sign with"), "name it with --key; 'assay keys generate' makes one")
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, remedy(fmt.Errorf("key %s does not exist", path), "make one: assay keys generate --role ROLE --out %s", filepath.Dir(path))
	}
	if err != nil {
		return nil, err
	}
	k, err := verify.LoadKey(raw, []byte(os.Getenv(passphraseVariable)))
	if errors.Is(err, verify.ErrPassphrase) {
		return nil, remedy(fmt.Errorf("key %s: %w", path, err), "set %s to the passphrase", passphraseVariable)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return k, nil
}
