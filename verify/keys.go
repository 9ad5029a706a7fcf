package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// A Key signs. Keys are ECDSA P-256 with SHA-256: the one kind that every
// version of every Sigstore client takes without further flags.
type Key struct {
	private *ecdsa.PrivateKey
}

// GenerateKey makes a new key.
func GenerateKey() (*Key, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Key{k}, nil
}

// NewKey is a key that is there already.
func NewKey(k *ecdsa.PrivateKey) (*Key, error) {
	if k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("it is of curve %s: only ECDSA P-256 keys are used", k.Params().Name)
	}
	return &Key{k}, nil
}

// PEM types of private keys: cosign's, its older one, and plain PKCS #8.
const (
	pemSigstore = "ENCRYPTED SIGSTORE PRIVATE KEY"
	pemCosign   = "ENCRYPTED COSIGN PRIVATE KEY"
	pemPKCS8    = "PRIVATE KEY"
	pemSEC1     = "EC PRIVATE KEY"
	pemPublic   = "PUBLIC KEY"
)

// ErrPassphrase says that a key file does not open with the passphrase given.
var ErrPassphrase = errors.New("the passphrase does not open the key")

// LoadKey reads a private key: one that cosign wrote (or EncryptedPEM), with
// its passphrase, or an unencrypted PKCS #8 or SEC 1 key, as openssl writes
// them.
func LoadKey(raw, passphrase []byte) (*Key, error) {
	block, rest := pem.Decode(raw)
	if block == nil || len(rest) > 0 && len(trimSpace(rest)) > 0 {
		return nil, errors.New("it is no private key: a single PEM block is expected")
	}
	der := block.Bytes
	switch block.Type {
	case pemPKCS8, pemSEC1:
	case pemSigstore, pemCosign:
		var err error
		if der, err = encrypted.Decrypt(block.Bytes, passphrase); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrPassphrase, err)
		}
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("it is an encrypted PKCS #8 key: decrypt it with 'openssl pkcs8' first, and import it with 'assay keys import', which encrypts it as cosign does")
	case pemPublic:
		return nil, errors.New("it is a public key; a private one is needed to sign")
	default:
		return nil, fmt.Errorf("PEM block %q is no private key that is known", block.Type)
	}
	var parsed any
	var err error
	if block.Type == pemSEC1 {
		parsed, err = x509.ParseECPrivateKey(der)
	} else {
		parsed, err = x509.ParsePKCS8PrivateKey(der)
	}
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	k, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("it is a %T: only ECDSA P-256 keys are used, because every Sigstore client verifies them", parsed)
	}
	return &Key{k}, nil
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == '\n' || b[0] == ' ' || b[0] == '\r' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// EncryptedPEM renders the key as cosign does, under a passphrase, which may
// be empty.
func (k *Key) EncryptedPEM(passphrase []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, err
	}
	sealed, err := encrypted.Encrypt(der, passphrase)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemSigstore, Bytes: sealed}), nil
}

// PublicPEM renders the public key.
func (k *Key) PublicPEM() []byte { return publicPEM(&k.private.PublicKey) }

func publicPEM(k *ecdsa.PublicKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemPublic, Bytes: publicDER(k)})
}

func publicDER(k *ecdsa.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		panic(err) // a P-256 key on its curve can be encoded
	}
	return der
}

// Hint names the key in bundles: "base64(sha256(DER SPKI))", as cosign and
// sigstore-go write it.
func (k *Key) Hint() string { return hint(&k.private.PublicKey) }

func hint(k *ecdsa.PublicKey) string {
	sum := sha256.Sum256(publicDER(k))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// parsePublic reads a public key in PEM.
func parsePublic(raw []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != pemPublic {
		return nil, errors.New("it is no public key in PEM")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	k, ok := parsed.(*ecdsa.PublicKey)
	if !ok || !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
		return nil, fmt.Errorf("it is a %T: only ECDSA keys on P-256, P-384 and P-521 are verified", parsed)
	}
	return k, nil
}

func (k *Key) sign(message []byte) (digest, sig []byte, err error) {
	sum := sha256.Sum256(message)
	sig, err = ecdsa.SignASN1(rand.Reader, k.private, sum[:])
	return sum[:], sig, err
}

// SignMessage signs a message as it is, which is how cosign before version 3
// signed: ECDSA over its SHA-256, in ASN.1. Statements are signed with
// [SignStatement].
func SignMessage(k *Key, message []byte) ([]byte, error) {
	_, sig, err := k.sign(message)
	return sig, err
}
