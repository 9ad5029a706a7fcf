package verify

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"

	"github.com/assay-dev/assay/verify/attest"
)

// keypair makes a Key a sigstore-go Keypair.
type keypair struct{ *Key }

func (k keypair) GetHashAlgorithm() protocommon.HashAlgorithm {
	return protocommon.HashAlgorithm_SHA2_256
}
func (k keypair) GetSigningAlgorithm() protocommon.PublicKeyDetails {
	return protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256
}
func (k keypair) GetHint() []byte                  { return []byte(k.Hint()) }
func (k keypair) GetKeyAlgorithm() string          { return "ECDSA" }
func (k keypair) GetPublicKey() crypto.PublicKey   { return &k.private.PublicKey }
func (k keypair) GetPublicKeyPem() (string, error) { return string(k.PublicPEM()), nil }
func (k keypair) SignData(_ context.Context, data []byte) (sig, digest []byte, err error) {
	digest, sig, err = k.sign(data)
	return sig, digest, err
}

// SignStatement signs the bytes of an in-toto statement with a key into a
// Sigstore bundle v0.3, without any network.
func SignStatement(ctx context.Context, key *Key, statement []byte) ([]byte, error) {
	return NewSigner(key).Sign(ctx, statement)
}

// SignRefusal signs the bytes of a statement whose predicate is a refusal into
// a DSSE envelope.
func SignRefusal(key *Key, statement []byte) ([]byte, error) {
	s, err := attest.ParseStatement(statement)
	if err != nil {
		return nil, err
	}
	if s.PredicateType != attest.PredicateRefusal {
		return nil, fmt.Errorf("%s is no refusal", s.PredicateType)
	}
	return signEnvelope(key, attest.InTotoPayloadType, statement)
}

// A Referrer is a manifest that attaches signed bytes to a subject, with the
// blobs it names.
type Referrer struct {
	Descriptor ocispec.Descriptor
	Manifest   []byte
	Config     []byte // "{}"
	Layer      ocispec.Descriptor
	Signed     []byte
}

// AttachBundle returns the manifest by which a bundle becomes a referrer of
// its subject, as `cosign sign` and `cosign attest` v3 write it
// (cosign specs/BUNDLE_SPEC.md): one layer, an empty config, and the
// predicate type as an annotation.
func AttachBundle(subject ocispec.Descriptor, bundle []byte, predicateType string, created time.Time) (*Referrer, error) {
	return attach(subject, bundle, attest.BundleType, map[string]string{
		ocispec.AnnotationCreated:   created.UTC().Format(time.RFC3339),
		attest.AnnotationBundleKind: "dsse-envelope",
		attest.AnnotationPredicate:  predicateType,
	})
}

// AttachRefusal returns the manifest by which a refusal becomes a referrer of
// its replay.
func AttachRefusal(replay ocispec.Descriptor, envelope []byte, created time.Time) (*Referrer, error) {
	return attach(replay, envelope, attest.RefusalType, map[string]string{
		ocispec.AnnotationCreated: created.UTC().Format(time.RFC3339),
	})
}

func attach(subject ocispec.Descriptor, signed []byte, mediaType string, annotations map[string]string) (*Referrer, error) {
	layer := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(signed), Size: int64(len(signed))}
	config := ocispec.DescriptorEmptyJSON
	config.Data = nil
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: mediaType,
		Config:       config,
		Layers:       []ocispec.Descriptor{layer},
		Subject:      &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations:  annotations,
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &Referrer{
		Descriptor: ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))},
		Manifest:   body, Config: ocispec.DescriptorEmptyJSON.Data, Layer: layer, Signed: signed,
	}, nil
}
