package registry

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/assay-dev/assay/registry/tlog"
)

// An Identity is what makes a server this server: its own keys. Users'
// signing keys never come to the server.
type Identity struct {
	// Log signs checkpoints (Ed25519) in the log's name.
	Log *tlog.Signer

	// Status signs status lists (ECDSA P-256).
	Status *ecdsa.PrivateKey

	// uploads authenticates the offsets in upload locations.
	uploads []byte

	checkpoint ed25519.PrivateKey // of Log
}

func makeKeys() (checkpoint ed25519.PrivateKey, status *ecdsa.PrivateKey, uploads []byte, err error) {
	if _, checkpoint, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, nil, nil, err
	}
	if status, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, nil, err
	}
	uploads = make([]byte, 32)
	rand.Read(uploads)
	return checkpoint, status, uploads, nil
}

// NewIdentity makes an identity that is kept nowhere.
func NewIdentity(origin string) (*Identity, error) {
	checkpoint, status, uploads, err := makeKeys()
	if err != nil {
		return nil, err
	}
	return assemble(origin, checkpoint, status, uploads)
}

func assemble(origin string, checkpoint ed25519.PrivateKey, status *ecdsa.PrivateKey, uploads []byte) (*Identity, error) {
	log, err := tlog.NewSigner(origin, checkpoint)
	if err != nil {
		return nil, err
	}
	return &Identity{log, status, uploads, checkpoint}, nil
}

// LoadIdentity reads the identity in dir, which is made at first start: the
// files origin, checkpoint.key, status.key (PKCS #8 PEM) and uploads.secret.
// A folder that holds some of them and lacks others is an error: a key that
// was lost must not be replaced by a new one in silence.
func LoadIdentity(dir string) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	names := []string{"checkpoint.key", "status.key", "uploads.secret", "origin"}
	var missing []string
	content := map[string][]byte{}
	for _, n := range names {
		raw, err := os.ReadFile(filepath.Join(dir, n))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, n)
		case err != nil:
			return nil, err
		default:
			content[n] = raw
		}
	}
	// The origin is written last: without it the making was interrupted, and
	// nothing was signed yet.
	if _, made := content["origin"]; !made {
		return makeIdentity(dir)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("the server's identity in %s lacks %s: restore it from a backup", dir, strings.Join(missing, ", "))
	}
	checkpoint, err := parseKey[ed25519.PrivateKey](content["checkpoint.key"])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "checkpoint.key"), err)
	}
	status, err := parseKey[*ecdsa.PrivateKey](content["status.key"])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "status.key"), err)
	}
	uploads, err := hex.DecodeString(strings.TrimSpace(string(content["uploads.secret"])))
	if err != nil || len(uploads) < 32 {
		return nil, fmt.Errorf("%s is damaged: restore it from a backup", filepath.Join(dir, "uploads.secret"))
	}
	return assemble(strings.TrimSpace(string(content["origin"])), checkpoint, status, uploads)
}

func makeIdentity(dir string) (*Identity, error) {
	var raw [8]byte
	rand.Read(raw[:])
	id, err := NewIdentity("assay.log/" + hex.EncodeToString(raw[:]))
	if err != nil {
		return nil, err
	}
	files, err := id.files()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := writeDurably(filepath.Join(dir, f.name), f.data); err != nil {
			return nil, fmt.Errorf("making the server's identity: %w", err)
		}
	}
	return id, nil
}

type identityFile struct {
	name string
	data []byte
}

// files are what a folder with the identity holds, in the order in which they
// are written: the origin is the last.
func (id *Identity) files() ([]identityFile, error) {
	checkpoint, err := keyPEM(id.checkpoint)
	if err != nil {
		return nil, err
	}
	status, err := keyPEM(id.Status)
	if err != nil {
		return nil, err
	}
	return []identityFile{
		{"checkpoint.key", checkpoint},
		{"status.key", status},
		{"uploads.secret", []byte(hex.EncodeToString(id.uploads) + "\n")},
		{"origin", []byte(id.Log.Origin() + "\n")},
	}, nil
}

func keyPEM(k any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey[T any](raw []byte) (k T, err error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return k, errors.New("it is damaged: no PEM block; restore it from a backup")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return k, fmt.Errorf("it is damaged: %w; restore it from a backup", err)
	}
	k, ok := parsed.(T)
	if !ok {
		return k, fmt.Errorf("it holds a %T", parsed)
	}
	return k, nil
}

// writeDurably writes a file and its name, readable by the owner only.
func writeDurably(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
