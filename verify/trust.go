package verify

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"

	"github.com/assay-dev/assay/verify/attest"
)

// A Role is what an identity is trusted to say.
type Role string

const (
	Release     Role = "release"     // this version is released
	Provenance  Role = "provenance"  // this is where it came from
	Conformance Role = "conformance" // this environment behaves, or does not
	Deployment  Role = "deployment"  // this runs there
	Approval    Role = "approval"    // a person approves
	Withdrawal  Role = "withdrawal"  // this is taken back
)

// Roles are all of them.
var Roles = []Role{Release, Provenance, Conformance, Deployment, Approval, Withdrawal}

// roleFor is the one table of which role a statement needs.
func roleFor(s attest.Statement) (Role, error) {
	switch s.PredicateType {
	case attest.PredicateSignature:
		return Release, nil
	case attest.PredicateLineage, attest.PredicateProvenance:
		return Provenance, nil
	case attest.PredicateCertificate, attest.PredicateTestResult, attest.PredicateRefusal:
		return Conformance, nil
	case attest.PredicateDeployment:
		return Deployment, nil
	case attest.PredicateApproval:
		return Approval, nil
	case attest.PredicateWithdrawal:
		return Withdrawal, nil
	}
	return "", fail(CodePredicate, "", "predicate type %q has no role, so nobody is trusted to state it", s.PredicateType)
}

// A Trust says who may say what, where and when. It does not change.
type Trust struct {
	identities []*Identity
	digest     digest.Digest
}

// An Identity is one key with what it is trusted for.
type Identity struct {
	ID           string    `json:"id" yaml:"id"`
	PublicKey    string    `json:"publicKey" yaml:"publicKey"`
	Roles        []Role    `json:"roles" yaml:"roles"`
	Repositories []string  `json:"repositories" yaml:"repositories"`
	NotBefore    time.Time `json:"notBefore,omitzero" yaml:"notBefore,omitempty"`
	NotAfter     time.Time `json:"notAfter,omitzero" yaml:"notAfter,omitempty"`

	// DistrustAfter is when the key may have been lost: what a log admitted
	// before it stands, everything else does not.
	DistrustAfter time.Time `json:"distrustAfter,omitzero" yaml:"distrustAfter,omitempty"`

	key *ecdsa.PublicKey
}

// trustFile is the form of trust.yaml.
type trustFile struct {
	Version    int         `json:"version" yaml:"version"`
	Identities []*Identity `json:"identities" yaml:"identities"`
}

const maxTrustFile = 1 << 20

// NoTrust trusts nobody.
func NoTrust() *Trust {
	t, err := newTrust(trustFile{Version: 1, Identities: []*Identity{}})
	if err != nil {
		panic(err) // it is valid as it stands
	}
	return t
}

// ParseTrust reads a trust file (YAML, version 1), strictly: unknown fields,
// unknown roles, keys that cannot be read and identities without roles or
// repositories are errors.
func ParseTrust(raw []byte) (*Trust, error) {
	if len(raw) > maxTrustFile {
		return nil, fmt.Errorf("trust file: %d bytes, at most %d are read", len(raw), maxTrustFile)
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var f trustFile
	if err := dec.Decode(&f); err != nil {
		if err == io.EOF {
			return nil, fmt.Errorf("trust file: it is empty")
		}
		return nil, fmt.Errorf("trust file: %w", err)
	}
	var more any
	if err := dec.Decode(&more); err != io.EOF {
		return nil, fmt.Errorf("trust file: something follows the first document")
	}
	return newTrust(f)
}

func newTrust(f trustFile) (*Trust, error) {
	if f.Version != 1 {
		return nil, fmt.Errorf("trust file: version %d is unknown; write version: 1", f.Version)
	}
	seen := map[string]bool{}
	for i, id := range f.Identities {
		if id == nil {
			return nil, fmt.Errorf("trust file: identity %d is empty", i+1)
		}
		wrong := func(format string, args ...any) (*Trust, error) {
			return nil, fmt.Errorf("trust file: identity %q: %s", id.ID, fmt.Sprintf(format, args...))
		}
		switch {
		case id.ID == "":
			return nil, fmt.Errorf("trust file: identity %d has no id", i+1)
		case seen[id.ID]:
			return wrong("the id is used twice")
		case len(id.Roles) == 0:
			return wrong("it has no roles; write roles: [release], or one of %v", Roles)
		case len(id.Repositories) == 0:
			return wrong(`it has no repositories; write repositories: ["**"] for all`)
		case !id.NotAfter.IsZero() && !id.NotBefore.Before(id.NotAfter):
			return wrong("its window ends before it begins")
		}
		seen[id.ID] = true
		for _, r := range id.Roles {
			if !slices.Contains(Roles, r) {
				return wrong("role %q is unknown; the roles are %v", r, Roles)
			}
		}
		for _, p := range id.Repositories {
			if _, err := path.Match(strings.TrimSuffix(p, "**"), ""); err != nil || p == "" {
				return wrong("repository pattern %q is malformed", p)
			}
		}
		k, err := parsePublic([]byte(id.PublicKey))
		if err != nil {
			return wrong("publicKey: %v", err)
		}
		id.key = k
		// One form for every way to write the same key, so that the digest
		// is of what the file means.
		id.PublicKey = string(publicPEM(k))
		id.NotBefore, id.NotAfter, id.DistrustAfter = id.NotBefore.UTC(), id.NotAfter.UTC(), id.DistrustAfter.UTC()
	}
	canonical, err := attest.Marshal(f)
	if err != nil {
		return nil, err
	}
	return &Trust{identities: f.Identities, digest: digest.FromBytes(canonical)}, nil
}

// Digest identifies what the trust file says, whatever its layout.
func (t *Trust) Digest() digest.Digest { return t.digest }

// Identities lists who is trusted.
func (t *Trust) Identities() []Identity {
	var list []Identity
	for _, id := range t.identities {
		list = append(list, *id)
	}
	return list
}

// MarshalJSON implements json.Marshaler: the canonical form.
func (t *Trust) MarshalJSON() ([]byte, error) {
	return json.Marshal(trustFile{Version: 1, Identities: t.identities})
}

// candidates lists the identities, those whose key has the hint first.
func (t *Trust) candidates(keyHint string) []*Identity {
	list := slices.Clone(t.identities)
	slices.SortStableFunc(list, func(a, b *Identity) int {
		return boolCompare(hint(b.key) == keyHint, hint(a.key) == keyHint)
	})
	return list
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// may says whether the identity is trusted for a role in a context.
func (id *Identity) may(role Role, c Context) error {
	if !slices.Contains(id.Roles, role) {
		return fail(CodeRole, fmt.Sprintf("sign with a key that has the role %s, or give %s that role in the trust file", role, id.ID),
			"%s signed it, who is not trusted for the role %s", id.ID, role)
	}
	if !slices.ContainsFunc(id.Repositories, func(p string) bool { return matchRepository(p, c.Repository) }) {
		return fail(CodeRepository, fmt.Sprintf("give %s the repository in the trust file", id.ID),
			"%s signed it, who is not trusted in %s", id.ID, c.Repository)
	}
	// Time evidence: the log leaf that admitted the statement, else none, and
	// then the key must be good at the time of the question.
	at, evidence := c.AdmittedAt, "admitted at "+c.AdmittedAt.UTC().Format(time.RFC3339)
	if at.IsZero() {
		at, evidence = c.Now, "without evidence of when it was signed"
		if !id.DistrustAfter.IsZero() {
			return fail(CodeWindow, "sign again with another key",
				"%s signed it, whose key is distrusted after %s, and nothing shows that it was signed before", id.ID, id.DistrustAfter.Format(time.RFC3339))
		}
	}
	switch {
	case !id.NotBefore.IsZero() && at.Before(id.NotBefore):
		return fail(CodeWindow, "sign again, or correct notBefore", "%s signed it, trusted from %s on; it is %s", id.ID, id.NotBefore.Format(time.RFC3339), evidence)
	case !id.NotAfter.IsZero() && !at.Before(id.NotAfter):
		return fail(CodeWindow, "sign again with a key that is valid now", "%s signed it, trusted until %s; it is %s", id.ID, id.NotAfter.Format(time.RFC3339), evidence)
	case !id.DistrustAfter.IsZero() && at.After(id.DistrustAfter):
		return fail(CodeWindow, "sign again with another key", "%s signed it, distrusted after %s; it is %s", id.ID, id.DistrustAfter.Format(time.RFC3339), evidence)
	}
	return nil
}

// matchRepository matches as access.Match does; a leaf imports no other.
func matchRepository(pattern, repository string) bool {
	if pattern == "**" {
		return true
	}
	if prefix, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(repository, prefix+"/")
	}
	ok, err := path.Match(pattern, repository)
	return ok && err == nil
}
