// Package verify turns a bundle, a digest and a trust file into a *[Verified],
// or into a *[Failure] that says why not. It signs statements ([SignStatement]),
// keeps trust per role ([Trust]) and gathers all evidence about a model from
// wherever it is stored ([Gather]).
//
// A Verified exists only if verification succeeded: who holds one needs no
// further check of the signature, the subject, the role or the window.
package verify

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/assay-dev/assay/verify/attest"
)

// MaxBundle is the largest bundle that is read, in bytes.
const MaxBundle = 10 << 20

// Reason codes of failures. They are part of the interface: policies, tests
// and people refer to them.
const (
	CodeUnreadable    = "evidence.unreadable"
	CodeTooLarge      = "evidence.too-large"
	CodeBundleInvalid = "bundle.invalid"
	CodeUnknownKey    = "signature.unknown-key"
	CodeRole          = "signature.role"
	CodeRepository    = "signature.repository"
	CodeWindow        = "signature.window"
	CodeStatement     = "statement.invalid"
	CodeSubject       = "statement.wrong-subject"
	CodePredicate     = "statement.unknown-predicate"
	CodeNegative      = "statement.negative"
	CodeUnsupported   = "signature.unsupported"
	OutcomeVerified   = "verified"
)

// A Failure says why something did not verify and what would change that.
type Failure struct {
	Code    string
	Message string
	Remedy  string
}

func (f *Failure) Error() string { return f.Code + ": " + f.Message }

func fail(code, remedy, format string, args ...any) *Failure {
	return &Failure{Code: code, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// A Verified is a statement whose signature, subject, signer's role and
// signer's window were checked. Only this package makes one.
type Verified struct {
	Statement attest.Statement
	Payload   []byte // exactly the bytes that were signed
	Subject   digest.Digest
	Identity  string // id of the signer in the trust file
	Role      Role

	// Trust is the digest of the trust file that this rests on.
	Trust digest.Digest
}

// A Context is what a statement is verified in.
type Context struct {
	// Repository is the one the statement was found in.
	Repository string

	// AdmittedAt is when a log admitted the statement: evidence that it
	// existed then. Zero is no evidence.
	AdmittedAt time.Time

	// Now is the time of the question; needed.
	Now time.Time
}

// Bundle verifies a Sigstore bundle (v0.1 to v0.3, signed with a key) as a
// statement about subject. The error is always a *[Failure].
func Bundle(raw []byte, subject digest.Digest, trust *Trust, c Context) (*Verified, error) {
	if len(raw) > MaxBundle {
		return nil, fail(CodeTooLarge, "keep large evidence in a blob and name it by digest", "the bundle has %d bytes, at most %d are read", len(raw), MaxBundle)
	}
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return nil, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "it is no Sigstore bundle: %v", err)
	}
	content, err := b.VerificationContent()
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "%v", err)
	}
	if content.PublicKey() == nil {
		return nil, fail(CodeUnsupported, "sign with a key that the trust file names", "it is signed with a certificate; only keys are accepted")
	}
	env, err := b.Envelope()
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign a statement: 'assay sign' or 'cosign sign' v3", "it holds no DSSE envelope: %v", err)
	}
	if env.PayloadType != attest.InTotoPayloadType {
		return nil, fail(CodeStatement, "sign an in-toto statement", "its payload is of type %q", env.PayloadType)
	}
	sum, err := hex.DecodeString(subject.Encoded())
	if err != nil {
		return nil, fail(CodeSubject, "", "subject %q: %v", subject, err)
	}
	// The key hint in a bundle is whatever its sender wrote: it says which key
	// to try first, and every other one is tried as well.
	for _, id := range trust.candidates(content.PublicKey().Hint()) {
		if !verifiesUnder(&b, id.key, subject.Algorithm().String(), sum) {
			continue
		}
		payload, err := base64.StdEncoding.DecodeString(env.Payload)
		if err != nil {
			return nil, fail(CodeStatement, "sign again", "its payload is not base64: %v", err)
		}
		return accept(payload, subject, id, trust, c)
	}
	return nil, unknownOrWrongSubject(&b, trust)
}

// verifiesUnder runs sigstore-go's verifier with one key and no time policy:
// windows are enforced by us, in accept, because with WithNoObserverTimestamps
// the library looks at none.
func verifiesUnder(b *bundle.Bundle, key *ecdsa.PublicKey, algorithm string, subject []byte) bool {
	kv, err := signature.LoadDefaultVerifier(key)
	if err != nil {
		return false
	}
	material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		return root.NewExpiringKey(kv, time.Time{}, time.Time{}), nil
	})
	v, err := sgverify.NewVerifier(material, sgverify.WithNoObserverTimestamps())
	if err != nil {
		return false
	}
	_, err = v.Verify(b, sgverify.NewPolicy(sgverify.WithArtifactDigest(algorithm, subject), sgverify.WithKey()))
	return err == nil
}

// unknownOrWrongSubject tells a statement about something else from one by
// somebody else.
func unknownOrWrongSubject(b *bundle.Bundle, trust *Trust) error {
	env, err := b.Envelope()
	if err == nil {
		if payload, _, ok := openEnvelope(env.Envelope, trust); ok {
			s, err := attest.ParseStatement(payload)
			if err != nil {
				return fail(CodeStatement, "sign again", "%v", err)
			}
			return fail(CodeSubject, "attach it to the content it speaks of", "it speaks of %v", s.Subject[0].Digest)
		}
	}
	return fail(CodeUnknownKey, "add the signer's public key to the trust file, or sign with a key that is in it",
		"no key of the trust file verifies it")
}

// openEnvelope verifies a DSSE envelope with one signature under any key of
// the trust file.
func openEnvelope(env *dsse.Envelope, trust *Trust) (payload []byte, id *Identity, ok bool) {
	payload, err := env.DecodeB64Payload()
	if err != nil || len(env.Signatures) != 1 {
		return nil, nil, false
	}
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	if err != nil {
		return nil, nil, false
	}
	pae := dsse.PAE(env.PayloadType, payload)
	for _, id := range trust.candidates("") {
		if verifyECDSA(id.key, pae, sig) {
			return payload, id, true
		}
	}
	return nil, nil, false
}

// accept checks what a signature does not: what was said, whether the signer
// may say it, and when.
func accept(payload []byte, subject digest.Digest, id *Identity, trust *Trust, c Context) (*Verified, error) {
	s, err := attest.ParseStatement(payload)
	if err != nil {
		return nil, fail(CodeStatement, "sign a well-formed in-toto statement", "%v", err)
	}
	if !s.Names(subject) {
		return nil, fail(CodeSubject, "attach it to the content it speaks of", "it does not speak of %s", subject)
	}
	role, err := roleFor(s)
	if err != nil {
		return nil, err
	}
	// Subjects are matched one by one, so a statement of ours with several
	// would say of each what was meant of one.
	if len(s.Subject) != 1 && attest.IsOurs(s.PredicateType) {
		return nil, fail(CodeSubject, "sign one statement for each subject", "it has %d subjects", len(s.Subject))
	}
	if err := id.may(role, c); err != nil {
		return nil, err
	}
	if attest.IsOurs(s.PredicateType) {
		if _, err := attest.ParsePredicate(s); err != nil {
			return nil, fail(CodeStatement, "sign a complete predicate", "%v", err)
		}
	}
	return &Verified{Statement: s, Payload: payload, Subject: subject, Identity: id.ID, Role: role, Trust: trust.Digest()}, nil
}

// Refusal verifies a signed refusal: a DSSE envelope outside Sigstore's
// formats, whose subject is a replay. The error is always a *[Failure].
func Refusal(raw []byte, replay digest.Digest, trust *Trust, c Context) (*Verified, error) {
	if len(raw) > MaxBundle {
		return nil, fail(CodeTooLarge, "", "the refusal has %d bytes, at most %d are read", len(raw), MaxBundle)
	}
	var env dsse.Envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		return nil, fail(CodeBundleInvalid, "", "it is no DSSE envelope: %v", err)
	}
	if env.PayloadType != attest.InTotoPayloadType {
		return nil, fail(CodeStatement, "", "its payload is of type %q", env.PayloadType)
	}
	payload, id, ok := openEnvelope(&env, trust)
	if !ok {
		return nil, fail(CodeUnknownKey, "add the signer's public key to the trust file", "no key of the trust file verifies it")
	}
	return accept(payload, replay, id, trust, c)
}

// failureOf makes any error a *Failure.
func failureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return fail(CodeUnreadable, "push it again, or look at the registry with 'assay fsck'", "%v", err)
}
