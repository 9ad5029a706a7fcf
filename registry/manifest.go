package registry

import (
	"encoding/json"
	"fmt"
	"mime"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify/attest"
)

const (
	// MaxManifest is the largest manifest, in bytes. "Registries SHOULD
	// accept at least 4 megabytes" (distribution-spec, Pushing Manifests).
	MaxManifest = 8 << 20

	// MaxDescriptors is how much a manifest may name.
	MaxDescriptors = 10_000

	// inlineManifest is the largest manifest that is kept in a row; larger
	// ones are blobs with a row.
	inlineManifest = 64 << 10

	// MaxAnnotations is how many bytes of annotations a referrer's
	// descriptor repeats.
	MaxAnnotations = 16 << 10
)

// Media types of Docker's manifests, which Ollama and older clients push.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// A manifest is one that was parsed: it cannot be malformed any more.
type manifest struct {
	body      []byte
	digest    digest.Digest
	mediaType string

	// artifactType is the manifest's, or the config's media type: "If the
	// artifactType is empty or missing in an image manifest, the value of
	// artifactType MUST be set to the config descriptor mediaType value"
	// (distribution-spec, Listing Referrers). An index has its own or none.
	artifactType string

	subject     digest.Digest // "" if there is none
	annotations map[string]string

	config    *ocispec.Descriptor
	layers    []ocispec.Descriptor
	blobs     []digest.Digest // that must be in the repository
	manifests []digest.Digest // that must be in the repository
}

// parseManifest parses the body of a manifest that was sent under a content
// type and is going to have a digest of the algorithm.
func parseManifest(contentType string, body []byte, alg digest.Algorithm) (*manifest, error) {
	if len(body) > MaxManifest {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are accepted", ErrManifestTooLarge, len(body), MaxManifest)
	}
	invalid := func(format string, a ...any) (*manifest, error) {
		return nil, fmt.Errorf("%w: %s", ErrManifestInvalid, fmt.Sprintf(format, a...))
	}
	if err := attest.CheckJSON(body); err != nil {
		return invalid("%v", err)
	}
	var raw struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		ArtifactType  string               `json:"artifactType"`
		Config        *ocispec.Descriptor  `json:"config"`
		Layers        []ocispec.Descriptor `json:"layers"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
		Subject       *ocispec.Descriptor  `json:"subject"`
		Annotations   map[string]string    `json:"annotations"`
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return invalid("%v", err)
	}
	sent := contentType
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		sent = t
	}
	if sent == "" {
		sent = raw.MediaType
	}
	// "If the manifest has a mediaType field, clients MUST set the
	// Content-Type header to the value specified by the mediaType field"
	// (distribution-spec, Pushing Manifests).
	if raw.MediaType != "" && raw.MediaType != sent {
		return invalid("it was sent as %s and says that it is %s", sent, raw.MediaType)
	}
	if raw.SchemaVersion != 2 {
		return invalid("schemaVersion is %d; only 2 is known", raw.SchemaVersion)
	}
	if n := len(raw.Layers) + len(raw.Manifests); n > MaxDescriptors {
		return nil, fmt.Errorf("%w: it names %d things, at most %d are accepted", ErrManifestTooLarge, n, MaxDescriptors)
	}

	m := &manifest{
		body: body, digest: alg.FromBytes(body), mediaType: sent, artifactType: raw.ArtifactType,
		annotations: raw.Annotations, config: raw.Config, layers: raw.Layers,
	}
	seen := map[digest.Digest]bool{}
	need := func(list *[]digest.Digest, d ocispec.Descriptor, what string) error {
		if err := checkDigest(d.Digest); err != nil {
			return fmt.Errorf("%w: %s: %v", ErrManifestInvalid, what, err)
		}
		if d.Size < 0 {
			return fmt.Errorf("%w: %s has size %d", ErrManifestInvalid, what, d.Size)
		}
		if !seen[d.Digest] {
			seen[d.Digest] = true
			*list = append(*list, d.Digest)
		}
		return nil
	}
	switch sent {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if raw.Config == nil {
			return invalid("it has no config")
		}
		if raw.Manifests != nil {
			return invalid("an image manifest has no field manifests")
		}
		if m.artifactType == "" {
			m.artifactType = raw.Config.MediaType
		}
		if err := need(&m.blobs, *raw.Config, "config"); err != nil {
			return nil, err
		}
		for i, l := range raw.Layers {
			if len(l.URLs) > 0 || isForeign(l.MediaType) {
				continue // its bytes are elsewhere
			}
			if err := need(&m.blobs, l, fmt.Sprintf("layer %d", i+1)); err != nil {
				return nil, err
			}
		}
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		if raw.Config != nil || raw.Layers != nil {
			return invalid("an index has no config and no layers")
		}
		for i, c := range raw.Manifests {
			if err := need(&m.manifests, c, fmt.Sprintf("manifest %d", i+1)); err != nil {
				return nil, err
			}
		}
	case "":
		return invalid("it says nowhere which media type it has: send a Content-Type")
	default:
		return invalid("media type %s is unknown: push an OCI or Docker image manifest or index", sent)
	}
	if raw.Subject != nil {
		if err := checkDigest(raw.Subject.Digest); err != nil {
			return invalid("subject: %v", err)
		}
		m.subject = raw.Subject.Digest
	}
	return m, nil
}

// isForeign reports whether a layer of this media type need not be pushed.
func isForeign(mediaType string) bool {
	return strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, "rootfs.foreign")
}

// checkDigest accepts the digests this registry can compute.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: %q: %v", ErrDigestInvalid, d, err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return fmt.Errorf("%w: %q: use sha256 or sha512", ErrDigestInvalid, d)
	}
	return nil
}

// A file is a file of a model: a layer that is the bare file.
func (m *manifest) files() (files []File) {
	for i, l := range m.layers {
		name := l.Annotations[ocispec.AnnotationTitle]
		if name == "" {
			name = l.Annotations["org.cncf.model.filepath"]
		}
		if name == "" {
			name = fmt.Sprintf("layer-%d", i+1)
		}
		files = append(files, File{Name: name, Digest: l.Digest, Size: l.Size, MediaType: l.MediaType})
	}
	return files
}

var (
	// "<name> MUST match the following regular expression" (distribution-spec,
	// Pulling manifests).
	nameRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

	// releaseRE are full SemVer versions, which are write-once.
	releaseRE = regexp.MustCompile(`^v?(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)

	// attachedRE are the tags by which clients attach things where there is
	// no referrers API: of the fallback scheme, and cosign's older ones.
	attachedRE = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{32,128}(\.[a-z]+)?$`)
)

// checkName accepts repository names. "Many clients impose a limit of 255
// characters on the length of the concatenation of the registry hostname …
// and <name>" (distribution-spec).
func checkName(repo string) error {
	if len(repo) > 230 || !nameRE.MatchString(repo) {
		return fmt.Errorf("%w: %.300q: use lower-case letters, digits and single . _ - between them, in parts separated by /, 230 characters at most", ErrNameInvalid, repo)
	}
	return nil
}

func checkTag(tag string) error {
	if !tagRE.MatchString(tag) {
		return fmt.Errorf("%w: %.200q: use up to 128 letters, digits, . _ and -, not beginning with . or -", ErrTagInvalid, tag)
	}
	return nil
}

// IsRelease reports whether a tag is a full SemVer version and so write-once.
func IsRelease(tag string) bool { return releaseRE.MatchString(tag) }
