package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/assay-dev/assay/verify/attest"
)

// A Signer signs statements into Sigstore bundles: with a key, a key in a
// KMS, a key with a certificate, or keyless. Make one with [NewSigner],
// [KMSSigner] or [KeylessSigner]; it asks only the services that it is given.
type Signer struct {
	keypair sign.Keypair
	key     *Key // nil unless it is one that is here
	options sign.BundleOptions
}

// NewSigner signs with a key.
func NewSigner(k *Key) *Signer { return &Signer{keypair: keypair{k}, key: k} }

// Key returns the key it signs with, if that is one that is here.
func (s *Signer) Key() (*Key, bool) { return s.key, s.key != nil }

// PublicPEM renders the public key, as a trust file names it.
func (s *Signer) PublicPEM() (string, error) { return s.keypair.GetPublicKeyPem() }

// Hint names the key in bundles.
func (s *Signer) Hint() string { return string(s.keypair.GetHint()) }

// IsKMS reports whether a key reference names a key in a KMS, such as
// "awskms:///alias/release", rather than a file.
func IsKMS(ref string) bool { return strings.Contains(ref, "://") }

// KMSSigner signs with a key in a KMS, through Sigstore's interface: a
// provider that is compiled in, or the plugin program sigstore-kms-NAME on the
// path. The key has to be ECDSA P-256.
func KMSSigner(ctx context.Context, ref string) (*Signer, error) {
	sv, err := kms.Get(ctx, ref, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", ref, err)
	}
	public, err := sv.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("key %s: its public key: %w", ref, err)
	}
	k, ok := public.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("key %s: it is a %T: only ECDSA P-256 keys are used, because every Sigstore client verifies them", ref, public)
	}
	return &Signer{keypair: remoteKey{sv, k}}, nil
}

// remoteKey makes a key in a KMS a sigstore-go Keypair.
type remoteKey struct {
	sv     kms.SignerVerifier
	public *ecdsa.PublicKey
}

func (k remoteKey) GetHashAlgorithm() protocommon.HashAlgorithm {
	return protocommon.HashAlgorithm_SHA2_256
}

func (k remoteKey) GetSigningAlgorithm() protocommon.PublicKeyDetails {
	return protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256
}

func (k remoteKey) GetHint() []byte                  { return []byte(hint(k.public)) }
func (k remoteKey) GetKeyAlgorithm() string          { return "ECDSA" }
func (k remoteKey) GetPublicKey() crypto.PublicKey   { return k.public }
func (k remoteKey) GetPublicKeyPem() (string, error) { return string(publicPEM(k.public)), nil }

func (k remoteKey) SignData(_ context.Context, data []byte) (sig, digest []byte, err error) {
	sum := sha256.Sum256(data)
	sig, err = k.sv.SignMessage(bytes.NewReader(data))
	// A KMS that signs something else, or in another encoding, is found out
	// here and not by those who verify.
	if err == nil && !ecdsa.VerifyASN1(k.public, sum[:], sig) {
		err = errors.New("the KMS answered with something that is no signature by its key")
	}
	return sig, sum[:], err
}

// Keyless says where a signer without a key of its own gets what it needs.
type Keyless struct {
	Fulcio string   // URL
	Token  string   // OIDC identity token, for Fulcio
	Rekor  []string // URLs, of logs of version 2 unless they end in "#v1"; none if the trust file's root names none

	// Transport is for requests to Fulcio; nil is the usual. Rekor's client
	// takes none.
	Transport http.RoundTripper
}

// KeylessSigner signs with a key that is made for it and forgotten: Fulcio
// certifies whose it is.
func KeylessSigner(k Keyless) (*Signer, error) {
	if k.Fulcio == "" || k.Token == "" {
		return nil, errors.New("keyless signing needs the address of a Fulcio and an identity token for it")
	}
	kp, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		return nil, err
	}
	s := &Signer{keypair: kp, options: sign.BundleOptions{
		CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: strings.TrimSuffix(k.Fulcio, "/"), Transport: k.Transport}),
		CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: k.Token},
	}}
	for _, url := range k.Rekor {
		address, v1 := strings.CutSuffix(url, "#v1")
		version := uint32(2)
		if v1 {
			version = 1
		}
		s.options.TransparencyLogs = append(s.options.TransparencyLogs, sign.NewRekor(&sign.RekorOptions{BaseURL: address, Version: version}))
	}
	return s, nil
}

// Certified makes the signer say whose key it is by a certificate (PEM) of a
// private authority: the signer's first, then the intermediates, no root.
func (s *Signer) Certified(chain []byte) error {
	certs, err := parseCertificates(string(chain))
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	public, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(s.keypair.GetPublicKey()) {
		return errors.New("certificate: the first one is not of the key that signs")
	}
	var der certificateChain
	for _, c := range certs {
		der = append(der, c.Raw)
	}
	s.options.CertificateChainProvider = der
	return nil
}

// certificateChain is a sign.CertificateChainProvider.
type certificateChain [][]byte

func (c certificateChain) GetCertificateChain(context.Context, sign.Keypair, *sign.CertificateProviderOptions) ([][]byte, error) {
	return slices.Clone(c), nil
}

// Timestamped makes the signer ask RFC 3161 authorities for when it signs.
// transport is for the requests; nil is the usual.
func (s *Signer) Timestamped(transport http.RoundTripper, urls ...string) {
	for _, url := range urls {
		s.options.TimestampAuthorities = append(s.options.TimestampAuthorities, sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: url, Transport: transport}))
	}
}

// Sign signs the bytes of an in-toto statement into a bundle v0.3. A bundle's
// bytes differ from one signing to the next: store what was made.
func (s *Signer) Sign(ctx context.Context, statement []byte) ([]byte, error) {
	parsed, err := attest.ParseStatement(statement)
	if err != nil {
		return nil, err
	}
	if parsed.Type != attest.StatementTypeV1 {
		return nil, fmt.Errorf("statement: _type is %q; statements are signed as %q", parsed.Type, attest.StatementTypeV1)
	}
	options := s.options
	options.Context = ctx
	b, err := sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: attest.InTotoPayloadType}, s.keypair, options)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return protojson.Marshal(b)
}
