// Package attest holds every document Assay puts its name to or passes from
// one room to another: the statements that are signed, and the suite,
// criteria, plan, replay and environment documents they speak of.
//
// It is a leaf: types, their canonical form, strict parsing, JSON Schemas and
// test vectors, and nothing that signs, verifies, stores or decides. The
// registry and the conformance runner never import each other; they meet here
// and in OCI artifacts.
//
// # Two kinds of documents
//
// A statement ([Statement]) is an in-toto Statement v1 with one of our
// predicates. It is signed, carried in a Sigstore bundle, and attached to its
// subject as an OCI referrer. Only positive statements name a model as
// subject, because `cosign verify` accepts any statement of a trusted key
// over the subject, whatever it says.
//
// An artifact (suite, plan, replay, environment) is an OCI manifest whose
// artifactType is one of the media types below. Its digest is its identity.
//
// # Canonical form
//
// What we write is the JSON Canonicalization Scheme (RFC 8785): [Marshal].
// What we read is parsed strictly ([Unmarshal]): one value, valid UTF-8, no
// duplicate keys, no unknown fields, bounded depth and size. The bytes that
// were signed are kept and never written again.
package attest

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// predicateBase is the one place that says under which URI our predicates live.
const predicateBase = "https://assay.dev/attestation/"

// Predicate types of statements. The URIs of others are given by their makers.
const (
	PredicateCertificate = predicateBase + "certificate/v1"
	PredicateRefusal     = predicateBase + "refusal/v1"
	PredicateLineage     = predicateBase + "lineage/v1"
	PredicateDeployment  = predicateBase + "deployment/v1"
	PredicateApproval    = predicateBase + "approval/v1"
	PredicateWithdrawal  = predicateBase + "withdrawal/v1"

	// PredicateSignature is what `cosign sign` v3 writes: a statement with an
	// empty predicate. It says "released by the holder of this key".
	PredicateSignature = "https://sigstore.dev/cosign/sign/v1"

	// PredicateTestResult is in-toto's test-result v0.1; we write PASSED only.
	PredicateTestResult = "https://in-toto.io/attestation/test-result/v0.1"

	// PredicateProvenance is SLSA provenance v1, which is read as lineage.
	PredicateProvenance = "https://slsa.dev/provenance/v1"
)

// Artifact types of our OCI manifests. A manifest of one of these types is a
// document about a model, never a model version.
const (
	SuiteType       = "application/vnd.assay.suite.v1+json"
	PlanType        = "application/vnd.assay.plan.v1+json"
	ReplayType      = "application/vnd.assay.replay.v1+json"
	EnvironmentType = "application/vnd.assay.environment.v1+json"

	// PiecesType is a referrer that a registry adds to a manifest which names
	// large blobs: a layer of type PiecesDocumentType for each of them, with
	// the blob's digest in AnnotationBlob. It is unsigned: see [Pieces].
	PiecesType = "application/vnd.assay.pieces.v1+json"

	// RefusalType is the media type of a signed refusal: a DSSE envelope,
	// deliberately outside application/vnd.dev.sigstore.bundle*, so that no
	// Sigstore client ever takes a refusal for a signature of the model.
	RefusalType = "application/vnd.assay.refusal.v1+json"

	// BundleType is the artifact type and layer media type of a Sigstore bundle.
	BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// Media types of the layers inside our artifacts.
const (
	SuiteDocumentType    = "application/vnd.assay.suite.document.v1+json"
	CriteriaType         = "application/vnd.assay.criteria.v1+json"
	CasesType            = "application/vnd.assay.cases.v1+jsonl"
	TensorsType          = "application/vnd.assay.tensors.v1+safetensors"
	TextsType            = "application/vnd.assay.texts.v1+jsonl"
	ObservationsType     = "application/vnd.assay.observations.v1+jsonl"
	PlanDocumentType     = "application/vnd.assay.plan.document.v1+json"
	ReplayDocumentType   = "application/vnd.assay.replay.document.v1+json"
	ReportType           = "application/vnd.assay.report.v1+json"
	ReportHTMLType       = "text/html"
	EnvironmentDocument  = "application/vnd.assay.environment.document.v1+json"
	PiecesDocumentType   = "application/vnd.assay.pieces.document.v1+json"
	AnnotationBlob       = "dev.assay.pieces.blob"
	InTotoPayloadType    = "application/vnd.in-toto+json"
	StatementTypeV1      = "https://in-toto.io/Statement/v1"
	StatementTypeV01     = "https://in-toto.io/Statement/v0.1" // `cosign attest` still writes it; we read it, and write v1
	AnnotationBundleKind = "dev.sigstore.bundle.content"       // "dsse-envelope"
	AnnotationPredicate  = "dev.sigstore.bundle.predicateType" // the predicate URI
)

// IsDocument reports whether a manifest with this artifact type (or, without
// one, with this config media type) is a document about models rather than a
// model: ours, or a signature or attestation of Sigstore or Notation.
func IsDocument(artifactType string) bool {
	for _, p := range []string{
		"application/vnd.assay.",
		"application/vnd.dev.sigstore.bundle",
		"application/vnd.dev.cosign.",
		"application/vnd.cncf.notary.signature",
		"application/vnd.in-toto+json",
		"application/vnd.dsse.envelope",
	} {
		if strings.HasPrefix(artifactType, p) {
			return true
		}
	}
	return false
}

// EnvironmentRepository is the repository in which the environment documents
// of the environment called name are kept: an environment is a repository, so
// that it has history, access rules and log entries as every other.
func EnvironmentRepository(name string) string { return environmentPrefix + name }

// EnvironmentName is the reverse of [EnvironmentRepository]; ok is false for
// repositories that are no environments.
func EnvironmentName(repository string) (name string, ok bool) {
	name, ok = strings.CutPrefix(repository, environmentPrefix)
	return name, ok && name != ""
}

const environmentPrefix = "env/"

// A DigestSet maps algorithm names to lower-case hexadecimal digests
// (in-toto attestation framework v1, "DigestSet").
type DigestSet map[string]string

// Digests makes a DigestSet of one OCI digest.
func Digests(d digest.Digest) DigestSet {
	return DigestSet{d.Algorithm().String(): d.Encoded()}
}

// OCI returns the SHA-256 (or else the SHA-512) digest of the set in OCI form.
func (s DigestSet) OCI() (digest.Digest, error) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		if hex, ok := s[alg.String()]; ok {
			d := digest.NewDigestFromEncoded(alg, hex)
			return d, d.Validate()
		}
	}
	return "", fmt.Errorf("digest set has neither sha256 nor sha512")
}

// A Resource names a thing by content: the in-toto ResourceDescriptor, less
// the fields we have no use for.
type Resource struct {
	Name      string    `json:"name,omitempty"`
	URI       string    `json:"uri,omitempty"`
	Digest    DigestSet `json:"digest,omitempty"`
	MediaType string    `json:"mediaType,omitempty"`
}

// ResourceOf names an OCI artifact by digest.
func ResourceOf(mediaType string, d digest.Digest) Resource {
	return Resource{Digest: Digests(d), MediaType: mediaType}
}
