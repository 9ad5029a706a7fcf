// Package verify turns a bundle, a digest and a trust file into a *[Verified],
// or into a *[Failure] that says why not. It signs statements ([Signer]), keeps
// trust per role ([Trust]) and gathers all evidence about a model from wherever
// it is stored ([Gather]).
//
// What is verified: Sigstore bundles v0.1 to v0.3, signed with a key, with a
// certificate of a private authority, or keyless (Fulcio, Rekor v1 and v2),
// with RFC 3161 timestamps, over a statement or over the manifest itself; and
// what cosign before version 3 attached, signed in the same ways. Signatures of
// Notation are recognized and shown as unverified.
//
// A Verified exists only if verification succeeded: who holds one needs no
// further check of the signature, the subject, the role or the window.
package verify

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	"google.golang.org/protobuf/encoding/protojson"

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
	CodeCertificate   = "signature.certificate" // of nobody who is trusted to issue any
	CodeRekor         = "signature.not-logged"
	CodeTime          = "signature.no-time"
	CodeSignature     = "signature.invalid"
	CodeIdentity      = "signature.unknown-identity"
	CodeRole          = "signature.role"
	CodeRepository    = "signature.repository"
	CodeWindow        = "signature.window"
	CodeStatement     = "statement.invalid"
	CodeSubject       = "statement.wrong-subject"
	CodePredicate     = "statement.unknown-predicate"
	CodeNegative      = "statement.negative"
	CodeUnsupported   = "signature.unsupported"
	CodePerson        = "approval.wrong-person"
	CodeStatusInvalid = "status.invalid"
	CodeStatusStale   = "status.stale"
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
	Payload   []byte // exactly the bytes that were signed; nil if those are the subject itself
	Subject   digest.Digest
	Identity  string // id of the signer in the trust file
	Holder    string // whose identity it is; counts toward a quorum
	Role      Role
	Signed    Time // when, and how that is known

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

// Bundle verifies a Sigstore bundle (v0.1 to v0.3: signed with a key, with a
// certificate of a private authority, or keyless) as a statement about
// subject. The error is always a *[Failure].
func Bundle(raw []byte, subject digest.Digest, trust *Trust, c Context) (*Verified, error) {
	o, err := open(raw)
	if err != nil {
		return nil, err
	}
	return o.Verify(subject, trust, c)
}

// An Opened is a bundle that was parsed. [Ahead] makes one.
type Opened struct {
	raw     []byte
	bundle  *bundle.Bundle
	content sgverify.VerificationContent
	env     *dsse.Envelope // nil if it signs a manifest, and no statement
	payload []byte

	// What was found out ahead: key, of the trust file whose digest trust is,
	// verifies it as the statement said, about subject. Nothing if key is nil.
	said    attest.Statement
	subject digest.Digest
	trust   digest.Digest
	key     *trustedKey
}

// Ahead does the part of [Bundle] that takes most of the time and depends
// neither on what the bundle will be attached to nor on when: a server has
// time for it while the bundle's bytes are made durable. What depends on them
// is left to [Opened.Verify]. ok is false if no key of the trust file verifies
// the bundle, which says nothing yet: a certificate may.
func Ahead(raw []byte, trust *Trust) (o *Opened, ok bool) {
	o, err := open(raw)
	if err != nil || o.content.PublicKey() == nil || o.env == nil {
		return nil, false
	}
	if o.said, err = attest.ParseStatement(o.payload); err != nil {
		return nil, false
	}
	if o.subject, err = o.said.Subject[0].Digest.OCI(); err != nil {
		return nil, false
	}
	k := trust.byHint[o.content.PublicKey().Hint()]
	if k == nil {
		if k = trust.keyOf(o.env, o.payload); k == nil {
			return nil, false
		}
	}
	digests, err := artifact(o.subject)
	if err != nil || !verifiesUnder(o.bundle, k.key, digests) {
		return nil, false
	}
	o.key, o.trust = k, trust.Digest()
	return o, true
}

// Raw are the bytes of the bundle.
func (o *Opened) Raw() []byte { return o.raw }

// Verify is [Bundle], for a bundle that was opened. What was found out ahead
// counts only for the same subject under the same trust file.
func (o *Opened) Verify(subject digest.Digest, trust *Trust, c Context) (*Verified, error) {
	digests, err := artifact(subject)
	if err != nil {
		return nil, err
	}
	signed, err := signedAt(o.bundle, trust, c)
	if err != nil {
		return nil, err
	}
	switch {
	case o.env == nil:
		return o.message(subject, digests, trust, signed, c)
	case o.key != nil && o.trust == trust.Digest() && o.subject == subject:
		return acceptStatement(o.said, o.payload, subject, o.key.identities, trust, signed, c)
	case o.content.PublicKey() != nil:
		return byKey(o.bundle, o.content.PublicKey().Hint(), o.env, o.payload, subject, digests, trust, signed, c)
	}
	return byCertificate(o.bundle, o.content, o.payload, subject, digests, trust, signed, c)
}

func artifact(subject digest.Digest) ([]sgverify.ArtifactDigest, error) {
	sum, err := hex.DecodeString(subject.Encoded())
	if err != nil {
		return nil, fail(CodeSubject, "", "subject %q: %v", subject, err)
	}
	return []sgverify.ArtifactDigest{{Algorithm: subject.Algorithm().String(), Digest: sum}}, nil
}

// message verifies a bundle whose signature is over the bytes of the manifest it
// is attached to ("message-signature", cosign specs/BUNDLE_SPEC.md). It says
// what `cosign sign` says in a statement: released. Which bytes were signed is
// known by their digest alone.
func (o *Opened) message(subject digest.Digest, digests []sgverify.ArtifactDigest, trust *Trust, signed Time, c Context) (*Verified, error) {
	said := o.bundle.GetMessageSignature()
	elsewhere := func() error {
		return fail(CodeSubject, "attach it to the manifest that was signed", "it signs the content with the digest %x", said.GetMessageDigest().GetDigest())
	}
	if o.content.PublicKey() != nil {
		k := trust.keyOfDigest(said.GetMessageDigest().GetDigest(), said.GetSignature())
		switch {
		case k == nil:
			return nil, fail(CodeUnknownKey, "add the signer's public key to the trust file, or sign with a key that is in it", "no key of the trust file verifies it")
		case !verifiesUnder(o.bundle, k.key, digests):
			return nil, elsewhere()
		}
		return released(nil, subject, k.identities, trust, signed, c)
	}
	ids, when, err := trust.certifiedSigner(o.bundle, o.content, digests, signed, c)
	if errors.Is(err, errSubject) {
		return nil, elsewhere()
	}
	if err != nil {
		return nil, err
	}
	return released(nil, subject, ids, trust, when, c)
}

// open parses a bundle, and checks nothing that it says.
func open(raw []byte) (*Opened, error) {
	b, err := parseBundle(raw)
	if err != nil {
		return nil, err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "%v", err)
	}
	if b.GetMessageSignature() != nil {
		return &Opened{raw: raw, bundle: b, content: content}, nil
	}
	env, err := b.Envelope()
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign a statement: 'assay sign' or 'cosign sign' v3", "it holds no DSSE envelope: %v", err)
	}
	if n := len(env.Signatures); n != 1 {
		return nil, fail(CodeBundleInvalid, "attach one bundle for each signer", "its envelope has %d signatures; a bundle's has one", n)
	}
	if env.PayloadType != attest.InTotoPayloadType {
		return nil, fail(CodeStatement, "sign an in-toto statement", "its payload is of type %q", env.PayloadType)
	}
	payload, err := base64.StdEncoding.DecodeString(env.Payload)
	if err != nil {
		return nil, fail(CodeStatement, "sign again", "its payload is not base64: %v", err)
	}
	return &Opened{raw: raw, bundle: b, content: content, env: env.Envelope, payload: payload}, nil
}

// parseBundle reads a bundle. One of v0.3 may carry the intermediates of a
// private authority's chain, but no root: who sends a root would have it
// trusted.
func parseBundle(raw []byte) (*bundle.Bundle, error) {
	if len(raw) > MaxBundle {
		return nil, fail(CodeTooLarge, "keep large evidence in a blob and name it by digest", "the bundle has %d bytes, at most %d are read", len(raw), MaxBundle)
	}
	invalid := func(err error) error {
		return fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "it is no Sigstore bundle: %v", err)
	}
	// protojson refuses duplicate and unknown fields.
	var pb protobundle.Bundle
	if err := protojson.Unmarshal(raw, &pb); err != nil {
		return nil, invalid(err)
	}
	var opts []bundle.Option
	if strings.Contains(pb.GetMediaType(), "0.3") && pb.GetVerificationMaterial().GetX509CertificateChain() != nil {
		opts = append(opts, bundle.AllowCertificateChain())
	}
	b, err := bundle.NewBundle(&pb, opts...)
	if err != nil {
		return nil, invalid(err)
	}
	return b, nil
}

// byKey verifies a bundle that names no certificate. The hint in it is
// whatever its sender wrote: it says which key to try first, and no more.
func byKey(b *bundle.Bundle, keyHint string, env *dsse.Envelope, payload []byte, subject digest.Digest, digests []sgverify.ArtifactDigest, trust *Trust, signed Time, c Context) (*Verified, error) {
	k := trust.byHint[keyHint]
	if k == nil || !verifiesUnder(b, k.key, digests) {
		// Which key it is, is found by the bare check, so that a large bundle
		// is not parsed and hashed once for every key.
		if k = trust.keyOf(env, payload); k == nil {
			return nil, fail(CodeUnknownKey, "add the signer's public key to the trust file, or sign with a key that is in it",
				"no key of the trust file verifies it")
		}
		if !verifiesUnder(b, k.key, digests) {
			s, err := attest.ParseStatement(payload)
			if err != nil {
				return nil, fail(CodeStatement, "sign again", "%v", err)
			}
			return nil, fail(CodeSubject, "attach it to the content it speaks of", "it speaks of %v", s.Subject[0].Digest)
		}
	}
	return accept(payload, subject, k.identities, trust, signed, c)
}

// verifiesUnder runs sigstore-go's verifier with one key and no time policy:
// windows are enforced by us, in accept, because with WithNoObserverTimestamps
// the library looks at none.
func verifiesUnder(b *bundle.Bundle, key *ecdsa.PublicKey, digests []sgverify.ArtifactDigest) bool {
	kv, err := signature.LoadDefaultVerifier(key)
	if err != nil {
		return false
	}
	material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		return root.NewExpiringKey(kv, time.Time{}, time.Time{}), nil
	})
	// The statement is parsed by us, strictly, after this.
	v, err := sgverify.NewVerifier(material, sgverify.WithNoObserverTimestamps(), sgverify.WithoutStatementPredicate())
	if err != nil {
		return false
	}
	_, err = v.Verify(b, sgverify.NewPolicy(sgverify.WithArtifactDigests(digests), sgverify.WithKey()))
	return err == nil
}

// keyOf returns the key of the trust file that verifies a DSSE envelope with
// one signature, or nil.
func (t *Trust) keyOf(env *dsse.Envelope, payload []byte) *trustedKey {
	if len(env.Signatures) != 1 {
		return nil
	}
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	if err != nil {
		return nil
	}
	return t.keyOfMessage(dsse.PAE(env.PayloadType, payload), sig)
}

// keyOfMessage returns the key of the trust file that verifies a signature of
// a message, or nil.
func (t *Trust) keyOfMessage(message, sig []byte) *trustedKey {
	sums := map[crypto.Hash][]byte{}
	for _, k := range t.keys {
		h := hashFor(k.key)
		if sums[h] == nil {
			hash := h.New()
			hash.Write(message)
			sums[h] = hash.Sum(nil)
		}
		if ecdsa.VerifyASN1(k.key, sums[h], sig) {
			return k
		}
	}
	return nil
}

// keyOfDigest returns the key of the trust file that verifies a signature of
// what has a digest, or nil.
func (t *Trust) keyOfDigest(sum, sig []byte) *trustedKey {
	for _, k := range t.keys {
		if len(sum) == hashFor(k.key).Size() && ecdsa.VerifyASN1(k.key, sum, sig) {
			return k
		}
	}
	return nil
}

// certifiedSigner verifies a bundle with a certificate, and returns whose it
// is.
func (t *Trust) certifiedSigner(b *bundle.Bundle, content sgverify.VerificationContent, digests []sgverify.ArtifactDigest, signed Time, c Context) ([]*Identity, Time, error) {
	return t.vouched(func(a *authority) (s signer, err error) {
		if a.keyless() {
			return a.publicly(b, sgverify.WithArtifactDigests(digests), c)
		}
		if s, err = a.privately(content, signed, c); err == nil {
			err = signedByCertificate(b, content, digests)
		}
		return s, err
	})
}

// byCertificate verifies a bundle under each authority of the trust file that
// issues certificates, until one has issued its.
func byCertificate(b *bundle.Bundle, content sgverify.VerificationContent, payload []byte, subject digest.Digest, digests []sgverify.ArtifactDigest, trust *Trust, signed Time, c Context) (*Verified, error) {
	ids, when, err := trust.certifiedSigner(b, content, digests, signed, c)
	if errors.Is(err, errSubject) {
		st, err := attest.ParseStatement(payload)
		if err != nil {
			return nil, fail(CodeStatement, "sign again", "%v", err)
		}
		return nil, fail(CodeSubject, "attach it to the content it speaks of", "it speaks of %v", st.Subject[0].Digest)
	}
	if err != nil {
		return nil, err
	}
	return accept(payload, subject, ids, trust, when, c)
}

// closer returns that of two failures which came further: to mend the other
// would not help.
func closer(a, b error) error {
	order := []string{CodeCertificate, CodeRekor, CodeTime, CodeSignature, CodeIdentity, CodeRole, CodeRepository, CodeWindow}
	if a == nil || slices.Index(order, failureOf(b).Code) > slices.Index(order, failureOf(a).Code) {
		return b
	}
	return a
}

// accept checks what a signature does not: what was said, whether one of the
// identities that made it may say it, and when.
func accept(payload []byte, subject digest.Digest, ids []*Identity, trust *Trust, signed Time, c Context) (*Verified, error) {
	s, err := attest.ParseStatement(payload)
	if err != nil {
		return nil, fail(CodeStatement, "sign a well-formed in-toto statement", "%v", err)
	}
	return acceptStatement(s, payload, subject, ids, trust, signed, c)
}

// acceptStatement is accept, of a payload that was parsed.
func acceptStatement(s attest.Statement, payload []byte, subject digest.Digest, ids []*Identity, trust *Trust, signed Time, c Context) (*Verified, error) {
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
	id, err := whoMay(ids, role, c, signed)
	if err != nil {
		return nil, err
	}
	switch {
	case attest.IsOurs(s.PredicateType):
		p, err := attest.ParsePredicate(s)
		if err != nil {
			return nil, fail(CodeStatement, "sign a complete predicate", "%v", err)
		}
		// "Signed electronic records shall contain information … that clearly
		// indicates … the printed name of the signer" (21 CFR 11.50): the person
		// that it names has to be the one whose key it is.
		if a, ok := p.(attest.Approval); ok && a.Person != id.holder {
			return nil, fail(CodePerson, "sign it with the key of "+a.Person+", or make that the holder of "+id.ID+" in the trust file",
				"it names %s, and the key is that of %s", a.Person, id.holder)
		}
	case s.PredicateType == attest.PredicateTestResult:
		// A test result that names the model as its subject must be a good
		// one: whoever asks only whether it is signed gets a yes.
		if err := attest.CheckTestResult(s); err != nil {
			return nil, fail(CodeNegative, "sign a refusal, whose subject is the replay: 'assay certify' does", "%v", err)
		}
	}
	return &Verified{
		Statement: s, Payload: payload, Subject: subject,
		Identity: id.ID, Holder: id.holder, Role: role, Signed: signed, Trust: trust.Digest(),
	}, nil
}

// whoMay returns the first of the identities that may say it, or why the one
// that came closest may not.
func whoMay(ids []*Identity, role Role, c Context, signed Time) (*Identity, error) {
	var best error
	for _, id := range ids {
		err := id.may(role, c, signed)
		if err == nil {
			return id, nil
		}
		best = closer(best, err)
	}
	return nil, best
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
	payload, err := env.DecodeB64Payload()
	if err != nil {
		return nil, fail(CodeStatement, "", "its payload is not base64: %v", err)
	}
	k := trust.keyOf(&env, payload)
	if k == nil {
		return nil, fail(CodeUnknownKey, "add the signer's public key to the trust file", "no key of the trust file verifies it")
	}
	signed := Time{By: NoTime}
	if !c.AdmittedAt.IsZero() {
		signed = Time{At: c.AdmittedAt, By: ByLog}
	}
	return accept(payload, replay, k.identities, trust, signed, c)
}

// failureOf makes any error a *Failure.
func failureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return fail(CodeUnreadable, "push it again, or look at the registry with 'assay fsck'", "%v", err)
}
