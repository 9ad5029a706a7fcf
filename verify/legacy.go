package verify

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/assay-dev/assay/verify/attest"
)

// What cosign wrote before version 3 is read and never written: signatures
// (simple signing) and attestations (DSSE envelopes), one a layer, in a
// manifest that is found by a tag made from the subject's digest.
const (
	legacySignature   = "application/vnd.dev.cosign.simplesigning.v1+json"
	legacyAttestation = "application/vnd.dsse.envelope.v1+json"

	// LegacyArtifact is the artifact type of the same with a subject, as
	// cosign 2 wrote it with --registry-referrers-mode=oci-1-1.
	LegacyArtifact = "application/vnd.dev.cosign.artifact.sig.v1+json"

	// NotationArtifact is the artifact type of signatures of Notation, which
	// are shown and not verified.
	NotationArtifact = "application/vnd.cncf.notary.signature"

	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"
)

// maxLegacyLayers bounds how many signatures of one manifest are read.
const maxLegacyLayers = 64

var legacyTagRE = regexp.MustCompile(`^sha256-([0-9a-f]{64})\.(sig|att)$`)

// LegacyTag returns of what a tag holds the signatures or attestations of
// cosign before version 3.
func LegacyTag(tag string) (subject digest.Digest, ok bool) {
	m := legacyTagRE.FindStringSubmatch(tag)
	if m == nil {
		return "", false
	}
	return digest.NewDigestFromEncoded(digest.SHA256, m[1]), true
}

// legacyTags are the tags to look under for what was said of a subject.
func legacyTags(subject digest.Digest) []string {
	if subject.Algorithm() != digest.SHA256 {
		return nil
	}
	return []string{"sha256-" + subject.Encoded() + ".sig", "sha256-" + subject.Encoded() + ".att"}
}

// A Said is one signed statement: what it says, or why it does not verify.
type Said struct {
	Verified *Verified // nil if it does not verify
	Failure  *Failure  // then why
	Claimed  string    // and which predicate type it claims
}

// Legacy verifies what cosign before version 3 attached to a subject, with
// the blobs that fetch reads: at least one outcome. An error is one of fetch
// only.
func Legacy(ctx context.Context, manifest []byte, subject digest.Digest, fetch func(context.Context, ocispec.Descriptor) ([]byte, error), trust *Trust, c Context) ([]Said, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return []Said{{Failure: fail(CodeUnreadable, "", "its manifest does not parse: %v", err)}}, nil
	}
	var list []Said
	var size int64
	for i, layer := range m.Layers {
		said := Said{Claimed: attest.PredicateSignature}
		switch layer.MediaType {
		case legacySignature:
		case legacyAttestation:
			said.Claimed = layer.Annotations["predicateType"]
		default:
			continue
		}
		if size += layer.Size; i >= maxLegacyLayers || size > MaxBundle || layer.Size < 0 {
			said.Failure = fail(CodeTooLarge, "sign with cosign v3, which attaches each signature for itself", "its manifest has more than %d signatures or %d bytes of them", maxLegacyLayers, MaxBundle)
			return append(list, said), nil
		}
		blob, err := fetch(ctx, layer)
		if err != nil {
			return nil, err
		}
		if layer.MediaType == legacySignature {
			said.Verified, err = simpleSigning(blob, layer.Annotations, subject, trust, c)
		} else {
			said.Verified, err = legacyEnvelope(blob, layer.Annotations, subject, trust, c)
		}
		if err != nil {
			said.Failure = failureOf(err)
		} else {
			said.Claimed = said.Verified.Statement.PredicateType
		}
		list = append(list, said)
	}
	if len(list) == 0 {
		list = append(list, Said{Failure: fail(CodeBundleInvalid, "sign with 'assay sign' or cosign v3", "it holds no signature of cosign")})
	}
	return list, nil
}

// simpleSigning verifies a signature of cosign before version 3. It says what
// a bundle of `cosign sign` v3 says: released.
func simpleSigning(payload []byte, annotations map[string]string, subject digest.Digest, trust *Trust, c Context) (*Verified, error) {
	sig, err := base64.StdEncoding.DecodeString(annotations[annotationSignature])
	if err != nil || len(sig) == 0 {
		return nil, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "its annotation %s is no signature", annotationSignature)
	}
	k := trust.keyOfMessage(payload, sig)
	if k == nil {
		return nil, legacyUnknown(annotations)
	}
	if err := attest.CheckJSON(payload); err != nil {
		return nil, fail(CodeStatement, "sign again", "its payload: %v", err)
	}
	// "critical … type: must be 'cosign container image signature'"
	// (cosign specs/SIGNATURE_SPEC.md, Payload).
	var p struct {
		Critical struct {
			Type  string `json:"type"`
			Image struct {
				Digest digest.Digest `json:"docker-manifest-digest"`
			} `json:"image"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return nil, fail(CodeStatement, "sign again", "its payload: %v", err)
	}
	switch {
	case p.Critical.Type != "cosign container image signature":
		return nil, fail(CodePredicate, "", "its payload is of type %q", p.Critical.Type)
	case p.Critical.Image.Digest != subject:
		return nil, fail(CodeSubject, "attach it to the content it speaks of", "it speaks of %s", p.Critical.Image.Digest)
	}
	signed, err := legacyTime(sig, annotations, trust, c)
	if err != nil {
		return nil, err
	}
	id, err := whoMay(k.identities, Release, c, signed)
	if err != nil {
		return nil, err
	}
	return &Verified{
		Statement: attest.Statement{
			Type: attest.StatementTypeV1, Subject: []attest.Resource{{Digest: attest.Digests(subject)}},
			PredicateType: attest.PredicateSignature, Predicate: json.RawMessage("{}"),
		},
		Payload: payload, Subject: subject, Identity: id.ID, Holder: id.holder, Role: Release, Signed: signed, Trust: trust.Digest(),
	}, nil
}

func legacyEnvelope(raw []byte, annotations map[string]string, subject digest.Digest, trust *Trust, c Context) (*Verified, error) {
	var env dsse.Envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		return nil, fail(CodeBundleInvalid, "sign again", "it is no DSSE envelope: %v", err)
	}
	if env.PayloadType != attest.InTotoPayloadType {
		return nil, fail(CodeStatement, "sign an in-toto statement", "its payload is of type %q", env.PayloadType)
	}
	payload, err := env.DecodeB64Payload()
	if err != nil {
		return nil, fail(CodeStatement, "sign again", "its payload is not base64: %v", err)
	}
	k := trust.keyOf(&env, payload)
	if k == nil {
		return nil, legacyUnknown(annotations)
	}
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again", "its signature is not base64: %v", err)
	}
	signed, err := legacyTime(sig, annotations, trust, c)
	if err != nil {
		return nil, err
	}
	return accept(payload, subject, k.identities, trust, signed, c)
}

func legacyUnknown(annotations map[string]string) error {
	if annotations[annotationCertificate] != "" {
		return fail(CodeUnsupported, "sign with cosign v3, whose bundles carry all that a certificate needs to be verified",
			"it is signed with a certificate in the form of cosign before version 3; only keys are accepted there")
	}
	return fail(CodeUnknownKey, "add the signer's public key to the trust file, or sign with a key that is in it", "no key of the trust file verifies it")
}

// legacyTime is the best evidence of when a signature was made.
func legacyTime(sig []byte, annotations map[string]string, trust *Trust, c Context) (Time, error) {
	best := Time{By: NoTime}
	if !c.AdmittedAt.IsZero() {
		best = Time{At: c.AdmittedAt, By: ByLog}
	}
	var stamp struct {
		SignedRFC3161Timestamp []byte
	}
	if json.Unmarshal([]byte(annotations[annotationTimestamp]), &stamp) != nil || len(stamp.SignedRFC3161Timestamp) == 0 {
		return best, nil
	}
	for _, a := range trust.timestamps.TimestampingAuthorities() {
		if ts, err := a.Verify(stamp.SignedRFC3161Timestamp, sig); err == nil {
			best = Time{At: ts.Time.UTC(), By: ByTimestamp, Authority: ts.URI}
			return best, notAhead(best, c)
		}
	}
	return best, nil
}

// notationFailure is what is said of signatures of Notation.
func notationFailure() *Failure {
	return fail(CodeUnsupported, "sign it with 'assay sign' or cosign v3 as well", "it is a Notation signature, which is kept and not verified")
}

// Unverifiable returns what is said of a signature of a kind that is
// recognized by its artifact type and not verified, and whether it is one.
func Unverifiable(artifactType string) (*Failure, bool) {
	if artifactType == NotationArtifact {
		return notationFailure(), true
	}
	return nil, false
}

// contextOf is the context in which a source's manifest is verified.
func (g *gatherer) contextOf(ctx context.Context, manifest digest.Digest) (Context, error) {
	c := Context{Repository: g.opt.Repository, Now: g.opt.Now}
	if a, ok := g.src.(Admitter); ok {
		at, err := a.Admitted(ctx, manifest)
		if err != nil {
			return c, fmt.Errorf("when %s was admitted: %w", manifest, err)
		}
		c.AdmittedAt = at
	}
	return c, nil
}
