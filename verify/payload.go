package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"errors"

	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
)

// A SignedPayload is what a bundle holds: its signature, its signer's role and
// window were checked, and nothing of what it says.
type SignedPayload struct {
	Payload  []byte
	Type     string
	Identity string
	Holder   string
	Role     Role
	Signed   Time
	Trust    digest.Digest
}

// Payload verifies a bundle for a caller who judges what it says: forms of
// signatures that are about something else than an OCI manifest, such as
// OpenSSF Model Signing. encodings are further ways in which the payload may
// have been encoded before it was signed, besides DSSE's own. The error is
// always a *[Failure].
func Payload(raw []byte, role Role, trust *Trust, c Context, encodings ...func(payloadType string, payload []byte) []byte) (*SignedPayload, error) {
	b, err := parseBundle(raw)
	if err != nil {
		return nil, err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again", "%v", err)
	}
	env, err := b.Envelope()
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again", "it holds no DSSE envelope: %v", err)
	}
	if n := len(env.Signatures); n != 1 {
		return nil, fail(CodeBundleInvalid, "sign again", "its envelope has %d signatures; a bundle's has one", n)
	}
	payload, err := base64.StdEncoding.DecodeString(env.Payload)
	if err != nil {
		return nil, fail(CodeStatement, "sign again", "its payload is not base64: %v", err)
	}
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again", "its signature is not base64: %v", err)
	}
	signed, err := signedAt(b, trust, c)
	if err != nil {
		return nil, err
	}
	messages := [][]byte{dsse.PAE(env.PayloadType, payload)}
	for _, encode := range encodings {
		messages = append(messages, encode(env.PayloadType, payload))
	}
	verifies := func(k *ecdsa.PublicKey) bool {
		for _, m := range messages {
			if checkECDSA(k, m, sig) {
				return true
			}
		}
		return false
	}
	done := func(ids []*Identity, signed Time) (*SignedPayload, error) {
		id, err := whoMay(ids, role, c, signed)
		if err != nil {
			return nil, err
		}
		return &SignedPayload{Payload: payload, Type: env.PayloadType, Identity: id.ID, Holder: id.holder, Role: role, Signed: signed, Trust: trust.Digest()}, nil
	}
	if content.PublicKey() != nil {
		for _, k := range trust.keys {
			if verifies(k.key) {
				return done(k.identities, signed)
			}
		}
		return nil, fail(CodeUnknownKey, "add the signer's public key to the trust file, or sign with a key that is in it", "no key of the trust file verifies it")
	}
	ids, when, err := trust.vouched(func(a *authority) (s signer, err error) {
		if a.keyless() {
			return a.publicly(b, sgverify.WithoutArtifactUnsafe(), c)
		}
		if s, err = a.privately(content, signed, c); err == nil {
			if k, ok := content.Certificate().PublicKey.(*ecdsa.PublicKey); !ok || !verifies(k) {
				err = fail(CodeSignature, "sign again", "its signature is not by the key of its certificate")
			}
		}
		return s, err
	})
	if errors.Is(err, errSubject) {
		// What it is about is the caller's to judge, and nothing else failed.
		return nil, fail(CodeSignature, "sign again", "its signature does not verify")
	}
	if err != nil {
		return nil, err
	}
	return done(ids, when)
}

// checkECDSA verifies with the hash that goes with the curve, or with SHA-256,
// which older tools used with all of them.
func checkECDSA(k *ecdsa.PublicKey, message, sig []byte) bool {
	for _, h := range []crypto.Hash{hashFor(k), crypto.SHA256} {
		hash := h.New()
		hash.Write(message)
		if ecdsa.VerifyASN1(k, hash.Sum(nil), sig) {
			return true
		}
	}
	return false
}

func hashFor(k *ecdsa.PublicKey) crypto.Hash {
	switch k.Curve {
	case elliptic.P384():
		return crypto.SHA384
	case elliptic.P521():
		return crypto.SHA512
	}
	return crypto.SHA256
}
