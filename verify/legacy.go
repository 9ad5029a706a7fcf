package verify

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

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
	annotationChain       = "dev.sigstore.cosign/chain"
	annotationRekor       = "dev.sigstore.cosign/bundle"
	annotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"
)

// IsLegacy reports whether manifests of an artifact type may be what cosign
// before version 3 attached: signatures, or attestations, whose type is that of
// the statements inside and is others' too.
func IsLegacy(artifactType string) bool {
	return artifactType == LegacyArtifact || artifactType == attest.InTotoPayloadType
}

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
// the blobs that fetch reads: at least one outcome, unless it is somebody else's
// manifest of in-toto statements that nobody signed. An error is one of fetch
// only, unless that is a *[Failure], which is the outcome of its layer.
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
		if errors.As(err, &said.Failure) {
			list = append(list, said)
			continue
		}
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
	if len(list) == 0 && m.ArtifactType != attest.InTotoPayloadType {
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
	ids, signed, err := attached{message: payload, sig: sig, stamped: sig, annotations: annotations}.signer(trust, c)
	if err != nil {
		return nil, err
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
		return nil, fail(CodePredicate, "sign with 'assay sign' or cosign v3", "its payload is of type %q", p.Critical.Type)
	case p.Critical.Image.Digest != subject:
		return nil, fail(CodeSubject, "attach it to the content it speaks of", "it speaks of %s", p.Critical.Image.Digest)
	}
	return released(payload, subject, ids, trust, signed, c)
}

// released is what a signature means that is over the content itself, or over
// its digest, and no statement: what a bundle of `cosign sign` v3 says.
func released(payload []byte, subject digest.Digest, ids []*Identity, trust *Trust, signed Time, c Context) (*Verified, error) {
	id, err := whoMay(ids, Release, c, signed)
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
	if n := len(env.Signatures); n != 1 {
		return nil, fail(CodeBundleInvalid, "attach one envelope for each signer", "its envelope has %d signatures; one is verified", n)
	}
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again", "its signature is not base64: %v", err)
	}
	// cosign has the whole envelope timestamped, and not only the signature.
	ids, signed, err := attached{
		message: dsse.PAE(env.PayloadType, payload), sig: sig, stamped: raw, annotations: annotations,
		envelope: &protodsse.Envelope{Payload: payload, PayloadType: env.PayloadType, Signatures: []*protodsse.Signature{{Sig: sig}}},
	}.signer(trust, c)
	if err != nil {
		return nil, err
	}
	return accept(payload, subject, ids, trust, signed, c)
}

// attached is a signature in the form of cosign before version 3: what a
// bundle holds stands beside it, in annotations of its layer.
type attached struct {
	message     []byte // what was signed
	sig         []byte
	envelope    *protodsse.Envelope // nil unless the message is that of one
	stamped     []byte              // what a timestamp is of
	annotations map[string]string
}

// signer verifies the signature, by a key of the trust file or else by the
// certificate that is there, and returns whose it is and when it was made.
func (s attached) signer(trust *Trust, c Context) ([]*Identity, Time, error) {
	if k := trust.keyOfMessage(s.message, s.sig); k != nil {
		signed, err := s.signedAt(trust, c)
		return k.identities, signed, err
	}
	if s.annotations[annotationCertificate] == "" {
		return nil, Time{}, fail(CodeUnknownKey, "add the signer's public key to the trust file, or sign with a key that is in it", "no key of the trust file verifies it")
	}
	return trust.vouched(func(a *authority) (signer, error) {
		if a.keyless() {
			return s.publicly(a, c)
		}
		return s.privately(a, trust, c)
	})
}

func (s attached) certificates(annotation string) ([]*x509.Certificate, error) {
	if s.annotations[annotation] == "" {
		return nil, nil
	}
	list, err := parseCertificates(s.annotations[annotation])
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "its annotation %s: %v", annotation, err)
	}
	return list, nil
}

// bundle is what cosign version 3 would have written, as far as an old
// signature has it. Timestamps stay out, because they are of something else.
func (s attached) bundle(mediaType string, certs []*x509.Certificate, entries ...*protorekor.TransparencyLogEntry) (*bundle.Bundle, error) {
	chain := &protocommon.X509CertificateChain{}
	for _, c := range certs {
		chain.Certificates = append(chain.Certificates, &protocommon.X509Certificate{RawBytes: c.Raw})
	}
	pb := &protobundle.Bundle{
		MediaType: mediaType,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: chain}, TlogEntries: entries,
		},
	}
	if s.envelope != nil {
		pb.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: s.envelope}
	} else {
		sum, alg := s.sum(certs[0])
		pb.Content = &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: alg, Digest: sum}, Signature: s.sig,
		}}
	}
	var opts []bundle.Option
	if mediaType == attest.BundleType {
		opts = append(opts, bundle.AllowCertificateChain())
	}
	b, err := bundle.NewBundle(pb, opts...)
	if err != nil {
		return nil, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "its annotations make no bundle: %v", err)
	}
	return b, nil
}

// sum is the hash of the message that goes with the key of a certificate.
func (s attached) sum(leaf *x509.Certificate) ([]byte, protocommon.HashAlgorithm) {
	h := crypto.SHA256
	if k, ok := leaf.PublicKey.(*ecdsa.PublicKey); ok {
		h = hashFor(k)
	}
	hash := h.New()
	hash.Write(s.message)
	alg := protocommon.HashAlgorithm_SHA2_256
	switch h {
	case crypto.SHA384:
		alg = protocommon.HashAlgorithm_SHA2_384
	case crypto.SHA512:
		alg = protocommon.HashAlgorithm_SHA2_512
	}
	return hash.Sum(nil), alg
}

// verify checks the signature alone, against the certificate's key.
func (s attached) verify(b *bundle.Bundle, content sgverify.VerificationContent) error {
	sig, err := b.SignatureContent()
	if err != nil {
		return fail(CodeBundleInvalid, "sign again", "%v", err)
	}
	if s.envelope != nil {
		err = sgverify.VerifySignature(sig, content, &material{})
	} else {
		sum, _ := s.sum(content.Certificate())
		err = sgverify.VerifySignatureWithArtifactDigests(sig, content, &material{}, []sgverify.ArtifactDigest{{Digest: sum}})
	}
	if err != nil {
		return fail(CodeSignature, "sign again", "its signature is not by the key of its certificate")
	}
	return nil
}

// privately verifies it under a private authority. The chain that is there
// usually ends in a root, which counts for nothing.
func (s attached) privately(a *authority, trust *Trust, c Context) (signer, error) {
	leaf, err := s.certificates(annotationCertificate)
	if err != nil {
		return signer{}, err
	}
	chain, err := s.certificates(annotationChain)
	if err != nil {
		return signer{}, err
	}
	certs := leaf
	for _, c := range chain {
		if !selfSigned(c) {
			certs = append(certs, c)
		}
	}
	b, err := s.bundle(attest.BundleType, certs)
	if err != nil {
		return signer{}, err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return signer{}, fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "its certificates: %v", err)
	}
	signed, err := s.signedAt(trust, c)
	if err != nil {
		return signer{}, err
	}
	who, err := a.privately(content, signed, c)
	if err != nil {
		return signer{}, err
	}
	return who, s.verify(b, content)
}

// publicly verifies it under a Sigstore instance, which has to have logged it
// where the trusted root names a log, and a time of which has to be there.
func (s attached) publicly(a *authority, c Context) (signer, error) {
	leaf, err := s.certificates(annotationCertificate)
	if err != nil {
		return signer{}, err
	}
	entries, err := s.logged()
	if err != nil {
		return signer{}, err
	}
	// "Bundle v0.1: an inclusion promise" (sigstore bundle format) is what there
	// was then: a log's signature over the entry and its time.
	b, err := s.bundle("application/vnd.dev.sigstore.bundle+json;version=0.1", leaf[:1], entries...)
	if err != nil {
		return signer{}, err
	}
	v, err := a.verifier()
	if err != nil {
		return signer{}, err
	}
	var stamps []sgverify.TimestampVerificationResult
	if ts := s.stamp(a.sigstore.TimestampingAuthorities()); ts != nil {
		stamps = append(stamps, sgverify.TimestampVerificationResult{Type: "TimestampAuthority", URI: ts.URI, Timestamp: ts.Time})
	}
	times, content, err := a.dated(v, b, stamps)
	if err != nil {
		return signer{}, err
	}
	if err := s.verify(b, content); err != nil {
		return signer{}, err
	}
	summary, err := certificate.SummarizeCertificate(content.Certificate())
	if err != nil {
		return signer{}, fail(CodeCertificate, "sign again", "its certificate names nobody: %v", err)
	}
	who := signer{issuer: summary.Issuer, san: summary.SubjectAlternativeName, time: bestOf(times)}
	return who, notAhead(who.time, c)
}

// logged is the Rekor entry that is there, if one is.
func (s attached) logged() ([]*protorekor.TransparencyLogEntry, error) {
	raw := s.annotations[annotationRekor]
	if raw == "" {
		return nil, nil
	}
	invalid := func(err error) error {
		return fail(CodeBundleInvalid, "sign again with 'assay sign' or cosign v3", "its annotation %s: %v", annotationRekor, err)
	}
	var said struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := attest.CheckJSON([]byte(raw)); err != nil {
		return nil, invalid(err)
	}
	if err := json.Unmarshal([]byte(raw), &said); err != nil {
		return nil, invalid(err)
	}
	if len(said.SignedEntryTimestamp) == 0 {
		return nil, fail(CodeRekor, "sign again, with the Rekor that the trust file names", "its entry in the transparency log has no signed promise")
	}
	id, err := hex.DecodeString(said.Payload.LogID)
	if err != nil {
		return nil, invalid(err)
	}
	var kind struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(said.Payload.Body, &kind); err != nil {
		return nil, invalid(err)
	}
	return []*protorekor.TransparencyLogEntry{{
		LogIndex: said.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: id}, IntegratedTime: said.Payload.IntegratedTime, CanonicalizedBody: said.Payload.Body,
		KindVersion:      &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: said.SignedEntryTimestamp},
	}}, nil
}

// stamp is the timestamp that is there, if one of the authorities made it.
func (s attached) stamp(authorities []root.TimestampingAuthority) *root.Timestamp {
	var stamp struct {
		SignedRFC3161Timestamp []byte
	}
	if json.Unmarshal([]byte(s.annotations[annotationTimestamp]), &stamp) != nil || len(stamp.SignedRFC3161Timestamp) == 0 {
		return nil
	}
	for _, a := range authorities {
		if ts, err := a.Verify(stamp.SignedRFC3161Timestamp, s.stamped); err == nil {
			return ts
		}
	}
	return nil
}

// signedAt is the best evidence of when it was signed, besides a log's of a
// Sigstore instance.
func (s attached) signedAt(trust *Trust, c Context) (Time, error) {
	best := Time{By: NoTime}
	if !c.AdmittedAt.IsZero() {
		best = Time{At: c.AdmittedAt, By: ByLog}
	}
	if ts := s.stamp(trust.timestamps.TimestampingAuthorities()); ts != nil {
		best = Time{At: ts.Time.UTC(), By: ByTimestamp, Authority: ts.URI}
	}
	return best, notAhead(best, c)
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
